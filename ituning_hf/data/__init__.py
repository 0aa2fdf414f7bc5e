"""Captioned images: reading, drawing, ordering and batching them."""
