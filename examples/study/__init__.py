"""A study of I-Tuning and its rivals on real photographs; docs/study.md has its results."""
