"""Saved models of one size, and ways to load them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from ituning_hf import ITuningForCaptioning
from ituning_hf.tuner.conversion import to_peft

from .backbones import frozen_text_model, frozen_vision_model, over_the_same_weights
from .peers import PEERS, peer_names
from .sizes import captioner_config
from .storage import Saved, save

CAPTIONER, PEFT, BACKBONES = "I-Tuning", "PEFT adapter", "the two frozen models"
ENCODER_DECODER = "VisionEncoderDecoder"
ONTO_BACKBONES = "adapter onto backbones in memory"
SWITCH = "adapter, in place of another one"


class SavedModels:
    """The captioner and its peers at one size, with random weights, saved as their users save them.

    Args:
        folder: An empty folder.
        size: One of `sizes.SIZES`.
        dtype: The precision of everything.
        device: Where the models are loaded to.
        peers: Those that are saved too; all there are at that size by default.
    """

    def __init__(
        self,
        folder: Path,
        size: str,
        dtype: torch.dtype,
        device: str = "cpu",
        peers: Sequence[str] | None = None,
    ) -> None:
        self.folder, self.device = folder, device
        config = captioner_config(size)
        vision, text = frozen_vision_model(config, dtype), frozen_text_model(config, dtype)
        self.saved = {BACKBONES: _save_backbones(folder, vision, text)}
        self._save_captioner(dtype)
        # Of weights that no file backs: mapped pages stay in the cache, and nothing could be read cold.
        own = over_the_same_weights(vision), over_the_same_weights(text)
        self.captioner: Any = ITuningForCaptioning(config, *own).to(device, dtype)
        self.vision, self.text = vision.to(device), text.to(device)
        self.peer_classes: dict[str, type] = {}
        for name in saved_peers(size) if peers is None else peers:
            model = PEERS[name](config).model.to(dtype)
            self._save(name, model)
            self.peer_classes[name] = type(model)

    def _save_captioner(self, dtype: torch.dtype) -> None:
        places = self.folder / "vision", self.folder / "text"
        captioner: Any = ITuningForCaptioning.from_vision_text_pretrained(*places).to(dtype)
        for adapter in captioner.adapters().values():
            nn.init.normal_(adapter.out_proj.weight, std=0.02)
        self._save(CAPTIONER, captioner)
        self._save(PEFT, to_peft(captioner))

    def _save(self, name: str, model: nn.Module) -> None:
        (self.folder / name).mkdir()
        self.saved[name] = save(model, self.folder / name)

    def files(self, *names: str) -> list[Path]:
        """Return the weight files of saved models."""
        folders = [f for name in names for f in (("vision", "text") if name == BACKBONES else (name,))]
        return [path for folder in folders for path in sorted((self.folder / folder).glob("*.safetensors"))]


def saved_peers(size: str) -> list[str]:
    """Return the peers at a size that differ in what they save."""
    return [name for name in (ENCODER_DECODER, "ClipCap prefix", "GIT", "BLIP") if name in peer_names(size)]


def _save_backbones(folder: Path, vision: nn.Module, text: nn.Module) -> Saved:
    for name in ("vision", "text"):
        (folder / name).mkdir()
    parts = save(vision, folder / "vision"), save(text, folder / "text")
    return Saved(sum(part.weights for part in parts), sum(part.folder for part in parts))


@dataclass(frozen=True)
class Load:
    """One way to load, or to read the same bytes and do nothing with them.

    Args:
        call: Loads.
        files: What it reads of weights.
        floor: The way that reads the same bytes.
    """

    call: Callable[[], object]
    files: list[Path]
    floor: str


def loading_ways(models: SavedModels) -> dict[str, Load]:
    """Return the ways to load what is saved, each after the way that only reads."""
    adapter, whole = "read the adapter", "read the adapter and the frozen models"
    ways = {
        adapter: _reading(adapter, models.files(CAPTIONER)),
        SWITCH: Load(partial(switch, models), models.files(CAPTIONER), adapter),
        ONTO_BACKBONES: Load(partial(put_onto_backbones, models), models.files(CAPTIONER), adapter),
        "PEFT adapter onto GPT-2 in memory": Load(partial(put_peft, models), models.files(PEFT), adapter),
        whole: _reading(whole, models.files(CAPTIONER, BACKBONES)),
        "I-Tuning, whole": Load(partial(load_whole, models), models.files(CAPTIONER, BACKBONES), whole),
    }
    for name, kind in models.peer_classes.items():
        if hasattr(kind, "from_pretrained"):
            read = f"read {name}"
            ways[read] = _reading(read, models.files(name))
            load = partial(load_peer, models, name)
            ways[f"{name}, whole"] = Load(load, models.files(name), read)
    return ways


def _reading(name: str, files: list[Path]) -> Load:
    buffer = bytearray(max(path.stat().st_size for path in files))

    def read() -> None:
        for path in files:
            with path.open("rb", buffering=0) as file, memoryview(buffer) as view:
                while file.readinto(view):
                    pass

    return Load(read, files, name)


def switch(models: SavedModels) -> None:
    """Put a saved adapter in the place of a captioner's own."""
    (path,) = models.files(CAPTIONER)
    models.captioner.load_adapter_state_dict(load_file(path), str(path))


def put_onto_backbones(models: SavedModels) -> ITuningForCaptioning:
    """Make a captioner of a saved adapter and frozen models that are in memory."""
    folder = models.folder / CAPTIONER
    backbones = {"vision_model": models.vision, "text_model": models.text}
    return ITuningForCaptioning.from_pretrained(folder, **backbones)


def put_peft(models: SavedModels) -> PeftModel:
    """Put a saved PEFT adapter onto a GPT-2 that is in memory."""
    return PeftModel.from_pretrained(over_the_same_weights(models.text), models.folder / PEFT).eval()


def load_whole(models: SavedModels) -> Any:
    """Load a captioner with its frozen models."""
    captioner: Any = ITuningForCaptioning.from_pretrained(models.folder / CAPTIONER)
    return captioner.to(models.device)


def load_peer(models: SavedModels, name: str) -> Any:
    """Load a peer."""
    kind: Any = models.peer_classes[name]
    return kind.from_pretrained(models.folder / name).eval().to(models.device)
