"""What the benchmark commands share: sizes, captions, peers, and how time and memory are measured."""
