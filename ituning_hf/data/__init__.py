"""Captioned images: file formats, synthetic scenes, sampling and batching."""
