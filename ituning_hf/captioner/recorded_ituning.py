"""What a configuration records of a frozen model, and what stands in for an encoder that is not loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn
from transformers.utils.hub import resolve_revision

from .backbones_ituning import load_backbone_config
from .configuration_ituning import as_recorded_path
from .fingerprint_ituning import fingerprint


@dataclass(frozen=True)
class RecordedBackbone:
    """What is known of a frozen model without its weights.

    Args:
        name: A Hub id, or a local folder's absolute path.
        revision: Its revision on the Hub, a commit hash where it is known.
        fingerprint: What its weights hash to; see `fingerprint_ituning.py`.
        config: Its configuration, as `to_dict` gives it.
    """

    name: str
    revision: str | None
    fingerprint: str
    config: dict[str, Any]


def record_backbone(
    kind: str, name: str | os.PathLike[str], revision: str | None = None, **hub_kwargs: Any
) -> RecordedBackbone:
    """Look at a frozen model where it lies; of its weights a small part is read.

    Args:
        kind: "vision" or "text".
        name: A local folder or a Hub id. Of a full CLIP the vision part is taken.
        revision: Its revision on the Hub.
        **hub_kwargs: `token`, `cache_dir`, `local_files_only`.

    Raises:
        OSError: if it is not there.
        ValueError: if it is no such model.
    """
    place = as_recorded_path(name)
    revision = resolve_revision(place, revision, **hub_kwargs)
    commit = getattr(revision, "resolved", revision)
    return RecordedBackbone(
        name=place,
        revision=commit,
        config=load_backbone_config(kind, place, revision=commit, **hub_kwargs).to_dict(),
        fingerprint=fingerprint(kind, place, revision=commit, **hub_kwargs),
    )


def recorded_fields(kind: str, backbone: RecordedBackbone) -> dict[str, Any]:
    """Return the fields of an [`ITuningConfig`] that record a backbone; `kind` is "vision" or "text"."""
    return {
        f"{kind}_config": backbone.config,
        f"{kind}_model_name_or_path": backbone.name,
        f"{kind}_model_revision": backbone.revision,
        f"{kind}_model_fingerprint": backbone.fingerprint,
    }


class UnloadedVisionModel(nn.Module):
    """In the place of a vision encoder whose features come from elsewhere: a configuration and no weights.

    Args:
        config: The encoder's configuration.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to encode images.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "This captioner's vision encoder is not loaded, so it cannot take pixel_values: give "
            "visual_features, which the encoder made of the images before, or load the captioner with its "
            "encoder, from_pretrained(...) without load_vision_model=False."
        )


__all__ = ["RecordedBackbone", "UnloadedVisionModel", "record_backbone", "recorded_fields"]
