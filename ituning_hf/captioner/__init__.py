"""The captioner. Every other file in this folder is copied into each saved captioner."""
