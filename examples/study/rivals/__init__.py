"""Rivals of I-Tuning over the same frozen language model, with one interface (`frozen.py`)."""
