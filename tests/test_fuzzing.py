"""Files of a captioner changed at random: a clear error or the right captioner, and never another one."""

import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import Faults
from fuzzing import (
    Mutation,
    byte_mutations,
    header_mutations,
    json_mutations,
    judge,
    logits_of,
    outputs_of,
    settings_of,
)
from small_models import IMAGE_SIZE, make_captioner
from transformers import AutoModel, AutoProcessor

from ituning_hf import ITuningForCaptioning, ITuningProcessor, load_captioner, save_captioner
from ituning_hf.hub.inspection import describe
from ituning_hf.inference.loading import load_processor

SHORT, LONG = 60, 1000  # mutations of a file in the suite, and in its long form
SECONDS = 10  # that one load may take, on a busy machine
MEGABYTES = 300  # that all loads of a test may add to the memory

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
PROCESSOR_FILES = ("processor_config.json", "tokenizer_config.json", "tokenizer.json")
MODEL_LOADERS: dict[str, Callable[[Path], Any]] = {
    "from_pretrained": ITuningForCaptioning.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "load_captioner": lambda folder: load_captioner(folder, device="cpu")[0],
}
PROCESSOR_LOADERS: dict[str, Callable[[Path], Any]] = {
    "from_pretrained": ITuningProcessor.from_pretrained,
    "AutoProcessor": AutoProcessor.from_pretrained,
    "load_processor": load_processor,
}


@pytest.fixture(scope="module")
def original(backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    processor = ITuningProcessor.from_vision_text_pretrained(backbones["vision"], backbones["text"])
    save_captioner(make_captioner(backbones), processor, folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "captioner"))


@pytest.fixture(scope="module")
def expected(original: Path) -> dict[str, Any]:
    """What the captioner and its processor do when nothing was changed."""
    return {
        "model": outputs_of(ITuningForCaptioning.from_pretrained(original)),
        "processor": settings_of(ITuningProcessor.from_pretrained(original)),
        "description": facts(describe(original)),
    }


def facts(description: dict[str, Any]) -> dict[str, Any]:
    """Of a description what is the captioner's, and not the folder's or the file's."""
    parts = {part: description[part] for part in ("model_type", "format_version", "adapter", "parameters")}
    parts["adapter"].pop("bytes")
    return parts


@pytest.fixture(autouse=True)
def _memory_does_not_grow() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


def try_all(
    path: Path,
    mutations: Iterator[Mutation],
    times: int,
    attempt: Callable[[int], str],
    faults: Faults,
) -> None:
    """Load after each mutation of a file, and count how it ended."""
    original = path.read_bytes()
    changed = ((what, data) for what, data in mutations if data != original)
    for number, (what, data) in enumerate(islice(changed, times)):
        path.write_bytes(data)
        began = time.monotonic()
        try:
            outcome = attempt(number)
        except BaseException as error:
            error.add_note(f"{path.name}, {what}, mutation {number}: {data[:3000]!r}")
            raise
        assert time.monotonic() - began < SECONDS, what
        faults.count(f"`{path.name}` changed at random", outcome)
    path.write_bytes(original)


def nth(loaders: dict[str, Callable[[Path], Any]], number: int) -> tuple[str, Callable[[Path], Any]]:
    return list(loaders.items())[number % len(loaders)]


def judge_model(folder: Path, number: int, expected: dict[str, Any], names: list[str]) -> str:
    name, load = nth(MODEL_LOADERS | {"describe": describe}, number)
    what, compute = ("description", facts) if name == "describe" else ("model", outputs_of)
    return judge_by(name, lambda: load(folder), compute, expected[what], names)


def judge_by(
    name: str, load: Callable[[], Any], compute: Callable[[Any], Any], expected: Any, names: list[str]
) -> str:
    """As `judge`; an Auto class reads a file before ours is asked, and what it says then is not ours."""
    return judge(load, compute, expected, None if name.startswith("Auto") else names)


FORMS = [pytest.param(SHORT, 0), pytest.param(LONG, 1, marks=pytest.mark.stress)]


@pytest.mark.parametrize(("times", "seed"), FORMS)
@pytest.mark.parametrize("mutate", [json_mutations, byte_mutations])
def test_a_changed_configuration(folder, expected, faults, mutate, times: int, seed: int):
    path = folder / CONFIG
    # Where a frozen model lies is not sealed, its weights are; the message then names the field or the model.
    names = ["config.json", "_model_", str(folder), "model_type", "format_version"]
    mutations = mutate(path.read_bytes(), random.Random(seed))
    try_all(path, mutations, times, lambda n: judge_model(folder, n, expected, names), faults)


@pytest.mark.parametrize(("times", "seed"), FORMS)
@pytest.mark.parametrize("mutate", [header_mutations, byte_mutations])
def test_a_changed_adapter(folder, expected, faults, mutate, times: int, seed: int):
    path = folder / WEIGHTS
    mutations = mutate(path.read_bytes(), random.Random(seed))
    try_all(path, mutations, times, lambda n: judge_model(folder, n, expected, ["adapter file"]), faults)


# Nearly all of them load, which takes longer than to be refused.
FORMS_THAT_LOAD = [pytest.param(SHORT // 4, 0), pytest.param(LONG // 5, 1, marks=pytest.mark.stress)]


@pytest.mark.parametrize(("times", "seed"), FORMS_THAT_LOAD)
@pytest.mark.parametrize("mutate", [json_mutations, byte_mutations])
def test_changed_generation_settings(folder, expected, faults, mutate, times: int, seed: int):
    """People edit them, so that others are no damage; what cannot be meant is refused, with its name."""
    path = folder / GENERATION
    mutations = mutate(path.read_bytes(), random.Random(seed))

    image = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)

    def compute(model: ITuningForCaptioning) -> list[Any]:
        with suppress(ValueError, NotImplementedError):
            model.generate(pixel_values=image, max_new_tokens=2, num_beams=2)
        return logits_of(model)

    def attempt(number: int) -> str:
        name, load = nth(MODEL_LOADERS, number)
        return judge_by(name, lambda: load(folder), compute, expected["model"][0], [GENERATION])

    try_all(path, mutations, times, attempt, faults)


@pytest.mark.parametrize(("times", "seed"), FORMS)
@pytest.mark.parametrize("mutate", [json_mutations, byte_mutations])
@pytest.mark.parametrize("file", PROCESSOR_FILES)
def test_a_changed_processor(folder, expected, faults, file: str, mutate, times: int, seed: int):
    path = folder / file

    def attempt(number: int) -> str:
        name, load = nth(PROCESSOR_LOADERS, number)
        return judge_by(name, lambda: load(folder), settings_of, expected["processor"], [file, str(folder)])

    try_all(path, mutate(path.read_bytes(), random.Random(seed)), times, attempt, faults)


@pytest.mark.parametrize("times", [pytest.param(1), pytest.param(4, marks=pytest.mark.stress)])
def test_no_file_has_code_run_or_anything_written_beside_the_target(folder, tmp_path, faults, times: int):
    """Loaded in every way and saved again in a watched process, also as saved before fingerprints."""
    work = tmp_path / "work"
    work.mkdir()
    script = Path(__file__).with_name("watched_fuzzing.py")
    done = subprocess.run(
        [sys.executable, script, folder, work, str(times)],
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seen"] == []
    assert found["would be seen"] == [
        *("open", "os.mkdir", "os.rename", "os.utime", "ran", "subprocess.Popen")
    ]
    assert found["loads"] > found["tries"]
    assert not list(tmp_path.rglob("run-by-a-file"))
    assert {path.name for path in tmp_path.iterdir()} == {"captioner", "work"}
    faults.count("settings that point elsewhere or hold code", "nothing run, nothing written", found["tries"])
