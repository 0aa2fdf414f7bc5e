"""The parts of the official caption metrics that run in Java: PTB tokenizer, METEOR, SPICE.

pycocoevalcap's wrappers start Java with the locale and encoding of the process (METEOR fails with a decimal
comma), print, write into the installed package and leave pipes open. Here the same jars run with fixed
settings.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..utils.errors import WorkError
from .scores import read_meteor_counts
from .tokenizer import PUNCTUATION

# Java 18 and later read file.encoding but write in stdout.encoding.
_SETTINGS = ["-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_SPICE_JAVA = range(8, 12)  # SPICE's cache of parses does not open with later versions
_SPICE_PROGRAM = """
import json, sys
from pycocoevalcap.spice import spice
spice.get_stanford_models = lambda: None  # Spice() would download missing models
predictions, references = (
    {int(image): captions for image, captions in given.items()} for given in json.load(sys.stdin)
)  # the scorer sorts the images; as text, "10" would come before "2"
_, scores = spice.Spice().compute_score(references, predictions)
print("\\n" + json.dumps([score["All"]["f"] for score in scores]))
"""


class Java(NamedTuple):
    """A Java runtime: the program and its major version."""

    program: str
    version: int


def find_java() -> Java | None:
    """Return the `java` on the PATH; None if there is none that starts."""
    program = shutil.which("java")
    return None if program is None else _probe(program)


@cache
def _probe(program: str) -> Java | None:
    try:
        answer = subprocess.run([program, "-version"], capture_output=True, check=False)
    except OSError:  # not a program of this machine
        return None
    version = re.search(rb'version "(?:1\.)?(\d+)', answer.stderr)
    return Java(program, int(version[1])) if version and answer.returncode == 0 else None


def tokenize_with_java(captions: Sequence[str], java: Java) -> list[str]:
    """Tokenize captions with the official PTB tokenizer; see `tokenize_captions`.

    Raises:
        WorkError: The tokenizer failed.
    """
    jar = _package_folder("tokenizer") / "stanford-corenlp-3.4.1.jar"
    text = "\n".join(" ".join(caption.splitlines()) for caption in captions)
    arguments = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = _run("the PTB tokenizer", [java.program, *_SETTINGS, *arguments], text).split("\n")
    lines += [""] * (len(captions) - len(lines))  # it prints no line for empty captions at the end
    if any(lines[len(captions) :]):
        raise WorkError(f"the PTB tokenizer returned {len(lines)} lines for {len(captions)} captions")
    return [
        " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)
        for line in lines[: len(captions)]
    ]


def meteor_counts(
    references: dict[int, list[str]], predictions: dict[int, list[str]], java: Java
) -> np.ndarray:
    """Align tokenized captions with METEOR 1.5, which needs 2 GB and several seconds to start.

    Returns:
        Array of shape `(images, 23)`, the counts from which `meteor_from_counts` computes the score; of
        several references, those of the reference with the highest score.

    Raises:
        WorkError: METEOR failed.
    """
    # One call with all lines: the wrapper's dialogue would wait forever for a process that died.
    lines = [" ||| ".join(["SCORE", *references[image], predictions[image][0]]) for image in references]
    arguments = ["-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    command = [java.program, *_SETTINGS, *arguments]
    text = "".join(f"{line}\n" for line in lines)
    answers = _run("METEOR", command, text, _package_folder("meteor")).splitlines()
    if len(answers) != len(lines):
        raise WorkError(f"METEOR returned {len(answers)} lines for {len(lines)} images")
    return read_meteor_counts(answers)


def why_no_spice(java: Java) -> str | None:
    """Return why SPICE cannot run: its models or a suitable Java are missing; None if it can.

    The models are never downloaded here.
    """
    if java.version not in _SPICE_JAVA:
        return f"it needs Java 8 to 11, and this is Java {java.version}"
    library = _package_folder("spice") / "lib"
    if not all((library / name).is_file() for name in _SPICE_MODELS):
        return "its models are missing; python -m pycocoevalcap.spice.get_stanford_models installs them"
    return None


def spice_scores(references: dict[int, list[str]], predictions: dict[int, list[str]]) -> list[float]:
    """Score each image's tokenized caption with SPICE, which needs up to 8 GB.

    It runs in a process of its own, since it prints.

    Raises:
        WorkError: SPICE failed.
    """
    output = _run("SPICE", [sys.executable, "-c", _SPICE_PROGRAM], json.dumps([predictions, references]))
    return [float(score) for score in json.loads(output.splitlines()[-1])]


def _run(name: str, command: list[str], text: str, cwd: Path | None = None) -> str:
    answer = subprocess.run(
        command, input=text.encode(errors="ignore"), cwd=cwd, capture_output=True, check=False
    )
    if answer.returncode != 0:
        cause = answer.stderr.decode(errors="replace").strip()[-500:]
        advice = "the metrics that need no Java can be computed with java=False, --java false"
        raise WorkError(f"{name} failed; {advice}. The cause: {cause!r}")
    return answer.stdout.decode()


def _package_folder(name: str) -> Path:
    return Path(import_module(f"pycocoevalcap.{name}").__path__[0])
