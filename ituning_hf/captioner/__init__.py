"""The captioner. Every file of this folder is copied into each saved captioner."""
