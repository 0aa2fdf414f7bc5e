"""The files that Hugging Face Inference Endpoints need beside those of a captioner."""

from __future__ import annotations

import shutil
from importlib.metadata import requires
from pathlib import Path

_HANDLER = Path(__file__).with_name("handler.py")
# Endpoints install the requirements over a container that has PyTorch, and perhaps an older Transformers.
ENDPOINT_FILES = (_HANDLER.name, "requirements.txt")


def write_endpoint_files(folder: Path) -> None:
    """Write `ENDPOINT_FILES` to a folder."""
    shutil.copyfile(_HANDLER, folder / _HANDLER.name)
    needed = [line for line in requires("ituning_hf") or () if line.startswith("transformers")]
    (folder / "requirements.txt").write_text("\n".join([*needed, ""]), encoding="utf-8")
