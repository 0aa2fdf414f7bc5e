"""`ituning demo`: I-Tuning on drawn scenes, over two miniature backbones that come with the package."""
