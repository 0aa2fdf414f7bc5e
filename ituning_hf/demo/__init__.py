"""`ituning demo`: I-Tuning on synthetic scenes, with the two bundled miniature backbones."""
