"""The parts of the official caption metrics that run in Java: PTB tokenizer, METEOR, SPICE.

Their Python wrappers start Java with whatever locale and encoding the process has (METEOR dies of a
decimal comma), print, write into the installed package and leave pipes open. Here the same jars run
with settings of their own.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .corpus_formulas import read_meteor_counts
from .tokenizer import PUNCTUATION

# Java 18 and later read file.encoding but write in stdout.encoding.
_SETTINGS = ["-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]
_METEOR_JAR = "meteor-1.5.jar"
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_SPICE_JAVA = range(8, 12)  # SPICE's own store of parses opens with no later Java
_SPICE_PROGRAM = """
import json, sys
from pycocoevalcap.spice import spice
spice.get_stanford_models = lambda: None  # else Spice() would download what it does not find
predictions, references = (
    {int(image): captions for image, captions in given.items()} for given in json.load(sys.stdin)
)  # the scorer sorts the images, and "10" comes before "2"
_, scores = spice.Spice().compute_score(references, predictions)
print("\\n" + json.dumps([score["All"]["f"] for score in scores]))
"""


class Java(NamedTuple):
    """A Java runtime: the program and its major version."""

    program: str
    version: int


def find_java() -> Java | None:
    """Find the `java` of the PATH; None if there is none that starts."""
    program = shutil.which("java")
    if program is None:
        return None
    try:
        answer = subprocess.run([program, "-version"], capture_output=True, check=False)
    except OSError:  # of another kind of machine, or no program at all
        return None
    version = re.search(rb'version "(?:1\.)?(\d+)', answer.stderr)
    return Java(program, int(version[1])) if version and answer.returncode == 0 else None


def tokenize_with_java(captions: Sequence[str], java: Java) -> list[str]:
    """Tokenize captions with the official PTB tokenizer; see `tokenize_caption`.

    Raises:
        RuntimeError: The tokenizer failed.
    """
    jar = _package_folder("tokenizer") / "stanford-corenlp-3.4.1.jar"
    command = [java.program, *_SETTINGS, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    text = "\n".join(" ".join(caption.splitlines()) for caption in captions)
    answer = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"],
        input=text.encode(errors="ignore"),
        capture_output=True,
        check=False,
    )
    lines = answer.stdout.decode().split("\n")
    lines += [""] * (len(captions) - len(lines))  # it prints no line for empty ones at the end
    if answer.returncode != 0 or any(lines[len(captions) :]):
        raise RuntimeError(_failure("the PTB tokenizer", answer.stderr))
    return [
        " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)
        for line in lines[: len(captions)]
    ]


def meteor_counts(
    references: dict[int, list[str]], predictions: dict[int, list[str]], java: Java
) -> np.ndarray:
    """Align tokenized captions with METEOR 1.5, which needs 2 GB and several seconds to start.

    Returns:
        Array of shape `(images, 23)`, the counts that `meteor_from_counts` makes a score of; with
        several references, those of the reference that scores best.

    Raises:
        RuntimeError: METEOR's program failed.
    """
    # One call with all the lines: a dialogue, as the wrapper holds it, waits for ever on a dead partner.
    lines = [" ||| ".join(["SCORE", *references[image], predictions[image][0]]) for image in references]
    answer = subprocess.run(
        [java.program, *_SETTINGS, "-Xmx2G", "-jar", _METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"],
        cwd=_package_folder("meteor"),
        input="".join(line + "\n" for line in lines).encode(errors="ignore"),
        capture_output=True,
        check=False,
    )
    said = answer.stdout.decode().splitlines()
    if answer.returncode != 0 or len(said) != len(lines):
        raise RuntimeError(_failure("METEOR", answer.stderr))
    return read_meteor_counts(said)


def why_no_spice(java: Java) -> str | None:
    """Tell why SPICE cannot run: its models, or a Java that it runs on, are missing; None if it can.

    The models are never downloaded here.
    """
    if java.version not in _SPICE_JAVA:
        return f"it needs Java 8 to 11, and this is Java {java.version}"
    library = _package_folder("spice") / "lib"
    if not all((library / name).is_file() for name in _SPICE_MODELS):
        return "its models are not installed; python -m pycocoevalcap.spice.get_stanford_models does it"
    return None


def spice(references: dict[int, list[str]], predictions: dict[int, list[str]]) -> list[float]:
    """Score tokenized captions with SPICE, which needs up to 8 GB.

    It runs in a process of its own, since it prints.

    Returns:
        The score of each image, in the order of their numbers.

    Raises:
        RuntimeError: SPICE's program failed.
    """
    answer = subprocess.run(
        [sys.executable, "-c", _SPICE_PROGRAM],
        input=json.dumps([predictions, references]).encode(),
        capture_output=True,
        check=False,
    )
    if answer.returncode != 0:
        raise RuntimeError(_failure("SPICE", answer.stderr))
    return [float(score) for score in json.loads(answer.stdout.splitlines()[-1])]


def _package_folder(name: str) -> Path:
    specification = find_spec(f"pycocoevalcap.{name}")
    assert specification is not None
    assert specification.submodule_search_locations is not None
    return Path(next(iter(specification.submodule_search_locations)))


def _failure(program: str, complaints: bytes) -> str:
    last_words = complaints.decode(errors="replace").strip()[-500:]
    way_out = "without Java (java=False, --java false) the metrics that need none can be had"
    return f"{program} failed; {way_out}. It said: {last_words!r}"
