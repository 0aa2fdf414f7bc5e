"""The captioner: the files that are copied beside every saved captioner, and nothing else."""
