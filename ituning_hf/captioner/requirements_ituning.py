"""Refuse a Transformers that a captioner's code does not work with, before it fails at something obscure."""

from __future__ import annotations

from transformers.utils.versions import require_version

TRANSFORMERS = "transformers>=5.23,<6"


def check_transformers() -> None:
    """Refuse another Transformers than the captioner's code was made for.

    Called before anything is imported that others do not have.

    Raises:
        ImportError: with the version that is installed, those that work, and how to get one.
    """
    require_version(TRANSFORMERS, f"I-Tuning captioners need it: pip install '{TRANSFORMERS}'")


__all__ = ["check_transformers"]
