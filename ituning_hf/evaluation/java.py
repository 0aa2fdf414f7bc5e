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
import tempfile
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from .tokenizer import PUNCTUATION

# Java 18 and later read file.encoding but write in stdout.encoding.
_SETTINGS = ["-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_SPICE_JAVA = range(8, 12)  # SPICE's own store of parses opens with no later Java
_SPICE_PROGRAM = """
import json, sys
from pycocoevalcap.spice import spice
spice.get_stanford_models = lambda: None  # else Spice() would download what it does not find
predictions, references = json.load(sys.stdin)
print("\\n" + json.dumps(float(spice.Spice().compute_score(references, predictions)[0])))
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
    answer = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(?:1\.)?(\d+)', answer.stderr)
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


def meteor(references: dict[int, list[str]], predictions: dict[int, list[str]], java: Java) -> float:
    """Score tokenized captions with METEOR 1.5, which needs 2 GB and several seconds to start.

    Raises:
        RuntimeError: METEOR's program failed.
    """
    from pycocoevalcap.meteor.meteor import METEOR_JAR, Meteor

    command = [
        java.program,
        *_SETTINGS,
        "-Xmx2G",
        "-jar",
        METEOR_JAR,
        "-",
        "-",
        "-stdio",
        "-l",
        "en",
        "-norm",
    ]
    scorer: Any = Meteor.__new__(Meteor)  # its __init__ would start Java in its own way
    scorer.lock = threading.Lock()
    with tempfile.TemporaryFile() as complaints:
        scorer.meteor_p = subprocess.Popen(
            command,
            cwd=_package_folder("meteor"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
        )
        try:
            with scorer.meteor_p:
                score = scorer.compute_score(references, predictions)[0]
                scorer.meteor_p.kill()  # it would wait for more
        except (ValueError, OSError) as error:  # no number came back, or nothing listens
            complaints.seek(0)
            raise RuntimeError(_failure("METEOR", complaints.read())) from error
        finally:
            scorer.lock = threading.Lock()  # a failure leaves the old one held, and __del__ waits for it
    return float(score)


def spice_can_run(java: Java) -> bool:
    """Whether SPICE's models are installed and this Java is one that it runs on.

    The models are never downloaded here: `python -m pycocoevalcap.spice.get_stanford_models` does it.
    """
    library = _package_folder("spice") / "lib"
    return java.version in _SPICE_JAVA and all((library / name).is_file() for name in _SPICE_MODELS)


def spice(references: dict[int, list[str]], predictions: dict[int, list[str]]) -> float:
    """Score tokenized captions with SPICE, which needs up to 8 GB.

    It runs in a process of its own, since it prints.

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
    return float(json.loads(answer.stdout.splitlines()[-1]))


def _package_folder(name: str) -> Path:
    specification = find_spec(f"pycocoevalcap.{name}")
    assert specification is not None
    assert specification.submodule_search_locations is not None
    return Path(next(iter(specification.submodule_search_locations)))


def _failure(program: str, complaints: bytes) -> str:
    last_words = complaints.decode(errors="replace").strip()[-500:]
    return f"{program} failed; java=False computes the metrics that need no Java. It said: {last_words!r}"
