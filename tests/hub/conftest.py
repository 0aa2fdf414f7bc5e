"""A Hub with two backbones, captioners that were trained over local copies of them, and users of both."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh_process import run_fresh
from hub_connections import LoopbackHub
from hub_server import loopback_hub
from PIL import Image
from small_models import make_captioner, randomize_adapters

from ituning_hf import ITuningForCaptioning, ITuningProcessor, save_captioner

CARD = """---
license: apache-2.0
---
# Captioner

Trained over `{clip}`, and over {text}.
"""
_CLIENTS_OWN = "Use 'content=<...>' to upload raw bytes"  # huggingface_hub's use of httpx, for large files
_OTHERS_SETTINGS = ("HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@dataclass(frozen=True)
class Client:
    """A user of the Hub: a cache, empty at first, a token or none, and processes."""

    home: Path
    endpoint: str
    token: str | None = None

    def run(self, script: str, *arguments: object, package: bool = False, **settings: str) -> dict[str, Any]:
        """Run a script in a process of its own, with the package or without it and PEFT."""
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(_OTHERS_SETTINGS)}
        own = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",  # large files by HTTP, which the loopback Hub speaks
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **({"HF_TOKEN": self.token} if self.token else {}),
        }
        self.home.mkdir(exist_ok=True)
        environment = kept | own | settings
        return run_fresh(
            script,
            self.home,
            *arguments,
            hide=not package,
            environment=environment,
            ignored_warning=_CLIENTS_OWN,
        )


@pytest.fixture(scope="module")
def hub(backbones: dict[str, Path]) -> Iterator[LoopbackHub]:
    """A Hub that has the backbones, org/clip and org/text."""
    with loopback_hub() as running:
        for kind in ("clip", "text"):
            running.repositories.add_folder(f"org/{kind}", backbones[kind])
        yield running


@pytest.fixture(scope="module")
def client(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Client]:
    """A function that makes a user with a cache of its own."""

    def make(token: str | None = None, endpoint: str = hub.endpoint) -> Client:
        return Client(tmp_path_factory.mktemp("home"), endpoint, token)

    return make


@pytest.fixture(scope="session")
def captioners(
    backbones: dict[str, Path], processor: ITuningProcessor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Two folders, "a" and "b", of captioners over local backbones, with a card; and a "picture"."""
    root = tmp_path_factory.mktemp("captioners")
    local = backbones | {"vision": backbones["clip"]}
    for seed, name in enumerate("ab"):
        model = randomize_adapters(make_captioner(local, adapter_layers=[1, 3]), seed=seed)
        save_captioner(model, processor, root / name)
        (root / name / "README.md").write_text(CARD.format(**backbones))
    pixels = np.random.default_rng(5).integers(0, 256, (45, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")
    return {"a": root / "a", "b": root / "b", "picture": root / "picture.png"}


@pytest.fixture(scope="session")
def expected(captioners: dict[str, Path], processor: ITuningProcessor) -> dict[str, list[str]]:
    """What each captioner says of the picture, and of it turned."""
    image = Image.open(captioners["picture"])
    batch = processor(images=[image, image.rotate(90)])
    found = {}
    for name in "ab":
        ids = ITuningForCaptioning.from_pretrained(captioners[name]).generate(**batch)
        found[name] = processor.batch_decode(ids, skip_special_tokens=True)
    assert len({json.dumps(captions) for captions in found.values()} | set(found["a"])) == 4
    return found
