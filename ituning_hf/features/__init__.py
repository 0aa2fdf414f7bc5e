"""Features of the frozen vision encoder, computed once for each image and stored."""
