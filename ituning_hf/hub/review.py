"""What of a captioner's folder may go to the Hub, decided from what the files hold. No network is used."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..captioner.adapter_file_ituning import check_adapter_tensors, read_adapter_file
from ..captioner.backbones_ituning import is_local
from ..captioner.checkpoint_ituning import AUTO_MAP
from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.json_ituning import parse_json
from ..captioner.seal_ituning import check_adapter_unchanged
from ..inference.loading import load_processor
from .contents import CARD, Place, Review
from .evaluation_results import EVALUATION_FILE, read_evaluations
from .inspection import build_shapes, read_config
from .training_record import TRAINING_FILE, read_training_record
from .written_card import read_metadata

_CODE = {path.name: path for path in Path(__file__).parents[1].joinpath("captioner").glob("*_ituning.py")}
FILES = {  # all that a captioner may have
    CONFIG_NAME,
    SAFE_WEIGHTS_NAME,
    CARD,
    GENERATION_CONFIG_NAME,
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    TRAINING_FILE,
    EVALUATION_FILE,
    *_CODE,
}
_AUTO_MAP_VALUES = {*AUTO_MAP.values(), "processing_ituning.ITuningProcessor"}
_RECORDS = {TRAINING_FILE: read_training_record, EVALUATION_FILE: read_evaluations}
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_WEIGHTS = (".safetensors", ".h5", ".msgpack", ".gguf", ".onnx", ".npz", ".index.json")
_COMMIT = re.compile("[0-9a-f]{40}")


def review_captioner(
    folder: str | os.PathLike[str], *, vision_model: str | None = None, text_model: str | None = None
) -> Review:
    """Look through a saved captioner before it goes to the Hub.

    Hidden files and folders (`.git`, `.cache`, `.DS_Store`) are left out: tools put them there, and neither
    the captioner nor its user has any part in them. Whatever else is no part of a captioner is refused.

    Args:
        folder: The captioner.
        vision_model: The id on the Hub of its frozen vision encoder, in place of the recorded one.
        text_model: The id on the Hub of its frozen language model.

    Returns:
        What would go.

    Raises:
        OSError: if there is no captioner.
        ValueError: with all that stands against it: a file that is no part of a captioner, a pickle,
            weights of a backbone, a damaged adapter, code that is not this package's, a backbone in a local
            folder, no card, no processor.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}: give a saved captioner.")
    raw = read_config(folder)[1]
    entries = sorted(folder.iterdir())
    shown = [path for path in entries if not path.name.startswith(".")]
    places = {
        kind: _place(kind, raw, given) for kind, given in (("vision", vision_model), ("text", text_model))
    }
    problems = [
        *(problem for path in shown for problem in _check_file(path)),
        *_check_adapter(folder, raw),
        *_check_rest(folder),
        *(place for place in places.values() if isinstance(place, str)),
    ]
    if problems:
        listed = "".join(f"\n- {problem}" for problem in problems)
        hint = _how_to_upload(raw, {"vision": vision_model, "text": text_model})
        raise ValueError(f"{str(folder)!r} cannot go to the Hub as it is:{listed}{hint}")
    left_out = tuple(path.name for path in entries if path not in shown)
    kept = {kind: place for kind, place in places.items() if isinstance(place, Place)}
    return Review(folder, tuple(path.name for path in shown), kept, left_out)


def _check_file(path: Path) -> Iterator[str]:
    name = path.name
    if path.is_dir():
        yield f"{name}/ is a folder, and a captioner has none: move it away."
    elif not path.is_file():
        yield f"{name} is no file, or a link to none: move it away."
    elif name.endswith(_PICKLES) or _looks_pickled(path):
        yield f"{name} is a pickle, or holds one, which runs code where it is opened: move it away."
    elif name in _CODE:
        if path.read_bytes() != _CODE[name].read_bytes():
            yield (
                f"{name} is not this version's own: load the captioner and save it again, and its code is."
            )
    elif name not in FILES:
        what = "holds other weights than the adapter's" if name.endswith(_WEIGHTS) else "is no part of it"
        yield f"{name} {what}: move it away."
    elif name != SAFE_WEIGHTS_NAME:
        yield from _check_text(path)


def _looks_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\3\4" or (start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"))


def _check_text(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
        content = parse_json(text) if path.suffix == ".json" else {}
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected an object")
    except ValueError as error:
        yield f"{path.name} is damaged ({error}): save the captioner and its processor again."
        return
    if path.name == CARD:
        try:
            read_metadata(text)
        except ValueError as error:
            yield f"{CARD} cannot be read by the Hub ({' '.join(str(error).split())}): mend it."
    if (read_record := _RECORDS.get(path.name)) is not None:
        try:
            read_record(path.parent)
        except ValueError as error:
            yield str(error)
    if foreign := sorted(set(_auto_map_values(content)) - _AUTO_MAP_VALUES):
        yield f"{path.name} takes code from elsewhere, auto_map {foreign}: remove it, or save it again."


def _auto_map_values(content: Any) -> Iterator[str]:
    """Find every string under an "auto_map", at any depth."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _strings(value) if key == "auto_map" else _auto_map_values(value)
    elif isinstance(content, list):
        for value in content:
            yield from _auto_map_values(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _check_adapter(folder: Path, raw: dict[str, Any]) -> Iterator[str]:
    path = folder / SAFE_WEIGHTS_NAME
    if not path.is_file():
        yield f"there is no {SAFE_WEIGHTS_NAME}, the adapter: save the captioner again."
        return
    try:
        config = ITuningConfig.from_dict(raw)
        tensors = read_adapter_file(str(path))
        if frozen := [key for key in tensors if ".adapter." not in key]:
            yield (
                f"{SAFE_WEIGHTS_NAME} holds {len(frozen)} tensor(s) that are not the adapter's (first: "
                f"{frozen[:3]}), such as a backbone's: save the captioner with save_pretrained, which leaves "
                "them out."
            )
            return
        check_adapter_unchanged(tensors, config, str(folder))
        check_adapter_tensors(tensors, build_shapes(config).adapter_state_dict(), str(folder))
    except ValueError as error:
        yield str(error)


def _check_rest(folder: Path) -> Iterator[str]:
    if missing := sorted(name for name in _CODE if not (folder / name).is_file()):
        yield f"the code that loads it is not all there ({missing}): save the captioner again."
    if not (folder / CARD).is_file():
        yield f"there is no {CARD}, the model card that the Hub shows: save_captioner writes one."
    try:
        load_processor(folder)
    except ValueError as error:
        yield str(error)


def _place(kind: str, raw: dict[str, Any], given: str | None) -> Place | str:
    """Say where a backbone will be loaded from, or what is wrong with that."""
    recorded, fingerprint = raw.get(f"{kind}_model_name_or_path"), raw.get(f"{kind}_model_fingerprint")
    if not recorded or not fingerprint:
        return (
            f"where its frozen {kind} model comes from was not recorded: create the captioner with "
            "from_vision_text_pretrained."
        )
    name = given or recorded
    if is_local(name):
        return (
            f"its frozen {kind} model is the local folder {name!r}, which nobody else has: give the id of "
            f"the same model on the Hub, --{kind}_model ID ({kind}_model=... in Python)."
        )
    revision = raw.get(f"{kind}_model_revision")
    pinned = given is None and revision is not None and _COMMIT.fullmatch(revision)
    return Place(name, revision if pinned else None, recorded, fingerprint)


def _how_to_upload(raw: dict[str, Any], given: dict[str, str | None]) -> str:
    """Say how frozen models that are not on the Hub get there; nothing if both are."""
    names = {kind: name or raw.get(f"{kind}_model_name_or_path") for kind, name in given.items()}
    local = {kind: name for kind, name in names.items() if name and is_local(name)}
    if not local:
        return ""
    commands = " and ".join(
        f"`hf upload org/NAME-{kind} {shlex.quote(name)}`" for kind, name in local.items()
    )
    options = " ".join(f"--{kind}_model org/NAME-{kind}" for kind in local)
    return f"\nWhat is not on the Hub yet gets there by {commands}; then give {options}."


__all__ = ["FILES", "review_captioner"]
