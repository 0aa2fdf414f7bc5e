"""One file of a store: features of some hundred images, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..utils.files import draft_of, give_ordinary_permissions, put_in_place
from ..utils.json_files import parse_json
from .pictures import Picture

_PATTERN = "features-*.safetensors"


@dataclass(frozen=True)
class Unreadable:
    """A picture that has no features.

    Args:
        picture: What was there.
        reason: Why it could not be read, in one line.
    """

    picture: Picture
    reason: str


@dataclass(frozen=True)
class ShardIndex:
    """What a shard holds, as its header says.

    Args:
        spec: The digest of what the features were made by; see `FeatureSpec.digest`.
        pictures: The picture that each image's features are of, by the image's name.
        unreadable: The images whose picture could not be read.
    """

    spec: str
    pictures: dict[str, Picture]
    unreadable: dict[str, Unreadable]

    def to_json(self) -> str:
        """Return the index as the header holds it: always the same text for the same images."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ShardIndex:
        """Read what `to_json` wrote."""
        content = parse_json(text)
        return cls(
            content["spec"],
            {name: Picture(*picture) for name, picture in content["pictures"].items()},
            {
                name: Unreadable(Picture(*entry["picture"]), entry["reason"])
                for name, entry in content["unreadable"].items()
            },
        )

    def file_name(self) -> str:
        """Return the shard's name: a digest of its images' pictures and of what made their features."""
        return _file_name(self.to_json())


def write_shard(folder: Path, index: ShardIndex, packed: Mapping[str, Mapping[str, torch.Tensor]]) -> Path:
    """Write a shard; it has its name only once all of it is on the disk.

    Args:
        folder: The store's.
        index: What is written.
        packed: For each image of `index.pictures` what `pack` made of its features, without the first axis.

    Returns:
        The file.

    Raises:
        OSError: It cannot be written; nothing is left of it then.
    """
    path = folder / index.file_name()
    tensors = {
        tensor_name(kind, name): tensor.contiguous()
        for name, parts in packed.items()
        for kind, tensor in parts.items()
    }
    draft = draft_of(path)
    try:
        save_file(tensors, draft, metadata={"index": index.to_json()})
        give_ordinary_permissions(draft)
        put_in_place(path)
    except SafetensorError as error:  # of a full disk, for one
        draft.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path


def read_index(path: Path, spec: str) -> ShardIndex:
    """Read what a shard holds, and none of the features.

    Args:
        path: The file.
        spec: The digest of what its store's features were made by.

    Raises:
        ValueError: The file is damaged: cut short, or its header changed; or it is another store's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = file.metadata()["index"]
            index = ShardIndex.from_json(text)
            names = set(file.keys())
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if _file_name(text) != path.name:
        raise _damaged(path, "its name is not that of what it holds")
    if index.spec != spec:
        raise ValueError(
            f"{path} was not made by what the store's description beside it says: it is another store's, or "
            "the description was changed. Bring the one or the other back, or remove the file and build its "
            "images again."
        )
    if missing := [name for name in index.pictures if tensor_name("features", name) not in names]:
        raise _damaged(path, f"it lacks {missing[0]!r}")
    return index


def list_shards(folder: Path) -> list[Path]:
    """List a store's shards, sorted by name; drafts are not among them."""
    return sorted(folder.glob(_PATTERN))


def sweep_drafts(folder: Path) -> None:
    """Remove what a killed build left half-written."""
    for draft in folder.glob(draft_of(folder / "*").name):
        draft.unlink()


def tensor_name(kind: str, image: str) -> str:
    r"""Name a tensor of a shard.

    Args:
        kind: "features" or "scales".
        image: The image's name. Half a surrogate pair, which a file's name can hold and a shard cannot, is
            written out, and so that no two names become one, a backslash is doubled.
    """
    escaped = image.replace("\\", "\\\\").encode("utf-8", errors="backslashreplace").decode()
    return f"{kind}/{escaped}"


def _file_name(index: str) -> str:
    return _PATTERN.replace("*", hashlib.sha256(index.encode()).hexdigest()[:16])


def _damaged(path: Path, problem: str) -> ValueError:
    return ValueError(
        f"{path} is damaged ({problem}): remove it, and build its images again by the command that built the "
        "store."
    )
