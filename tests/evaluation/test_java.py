"""The parts that run in Java: finding Java, failures, METEOR's process, and the requirements of SPICE."""

import os
import subprocess
from pathlib import Path

import pytest

from ituning_hf.evaluation import java
from ituning_hf.evaluation.java import (
    Java,
    find_java,
    meteor_counts,
    spice_scores,
    tokenize_with_java,
    why_no_spice,
)
from ituning_hf.evaluation.metrics import compute_caption_metrics, score_captions
from ituning_hf.evaluation.scores import meteor_from_counts
from ituning_hf.utils.errors import UserError, WorkError

CAPTIONS = ["a man rides a red bike", "two dogs sleep on the grass"]
REFERENCES = [[caption] for caption in CAPTIONS]
HOSTILE = [
    "",
    "two\ndogs\r\nrun\u2028fast",
    "a ||| b ||| c",
    "\ud800 alone \udfff",
    "🙂 🙂 👍🏽 naïve café",
    "dog " * 1_000,
    "x" * 10_000,
    "\x00\x07 a\tbell",
    "SCORE ||| EVAL",
]


@pytest.fixture
def runtime() -> Java:
    found = find_java()
    if found is None:
        pytest.skip("no Java on the PATH")
    return found


@pytest.fixture
def broken_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Java:
    """A `java` that prints its version and fails otherwise."""
    program = tmp_path / "java"
    program.write_text(
        '#!/bin/sh\ncase "$1" in -version) echo \'openjdk version "1.8.0_392"\' >&2;; '
        "*) echo out of memory >&2; exit 1;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return Java(str(program), 8)


@pytest.mark.parametrize(
    "script",
    [None, "#!/bin/sh\necho no runtime installed >&2; exit 1\n", "\x7fELF of another kind of machine"],
)
def test_missing_java(script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if script:
        (tmp_path / "java").write_text(script)
        (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() is None
    with pytest.raises(UserError, match=r"no working `java`.*java=False"):
        compute_caption_metrics(CAPTIONS, REFERENCES, java=True)
    without = compute_caption_metrics(CAPTIONS, REFERENCES, java=False)
    scores = score_captions(CAPTIONS, REFERENCES)
    assert scores.metrics == without
    assert scores.left_out == {
        "meteor": "METEOR is left out: it needs Java, and no Java was found.",
        "spice": "SPICE is left out: it needs Java, and no Java was found.",
    }


def test_failures_show_the_output_of_java(broken_java: Java):
    assert find_java() == broken_java
    numbered = dict(enumerate(REFERENCES))
    with pytest.raises(WorkError, match=r"METEOR failed; .*, --java false.* 'out of memory'"):
        meteor_counts(numbered, numbered, broken_java)
    with pytest.raises(WorkError, match=r"PTB tokenizer failed; .* 'out of memory'"):
        score_captions(CAPTIONS, REFERENCES)


def test_empty_captions_and_line_breaks_in_any_locale(runtime: Java, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LC_ALL", "C")  # its encoding has no é
    lines = ["", "A café\nis open\u2028here .", "", "...", "<b", "c> \ud800", "", ""]
    assert tokenize_with_java(lines, runtime) == ["", "a café is open here", "", "", "< b", "c >", "", ""]


@pytest.mark.slow  # METEOR loads its paraphrases, up to a minute on a busy machine
def test_hostile_captions_are_scored_in_any_locale(runtime: Java, monkeypatch: pytest.MonkeyPatch):
    references = [[HOSTILE[index - 1] or "a dog", "a dog runs", ""] for index in range(len(HOSTILE))]
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    with_java = score_captions(HOSTILE, references, java=True)
    without = score_captions(HOSTILE, references, java=False)
    assert {name: with_java.metrics[name] for name in without.metrics} == pytest.approx(without.metrics)
    assert (with_java.tokenizer, with_java.java_version) == ("PTB (Java)", runtime.version)
    meteor = with_java.per_image["meteor"]
    assert (len(meteor), meteor[0]) == (len(HOSTILE), 0)
    assert 0 < with_java.metrics["meteor"] < 1
    assert with_java.part(range(len(HOSTILE))).metrics == pytest.approx(with_java.metrics, abs=1e-12)


@pytest.mark.slow  # as above
def test_meteor_agrees_with_its_program(runtime: Java):
    """The counts and the formulas against the program's EVAL command, called as the official wrapper does."""
    references = {0: [CAPTIONS[0], "a red bicycle"], 1: ["a dog asleep", "dogs on the lawn"], 2: ["cats"]}
    predictions = {0: ["a man on his bike"], 1: [CAPTIONS[1]], 2: ["cats"]}
    counts = meteor_counts(references, predictions, runtime)
    lines = [" ||| ".join(["SCORE", *references[image], predictions[image][0]]) for image in range(3)]
    command = [runtime.program, *java._SETTINGS, "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio"]
    options = {"cwd": java._package_folder("meteor"), "capture_output": True, "text": True, "check": True}

    def ask(*lines: str) -> list[str]:
        text = "\n".join(lines) + "\n"
        return subprocess.run([*command, "-l", "en", "-norm"], input=text, **options).stdout.splitlines()

    *each, together = map(float, ask(" ||| ".join(["EVAL", *ask(*lines)])))
    assert meteor_from_counts(counts).tolist() == pytest.approx(each, abs=1e-12)
    assert float(meteor_from_counts(counts.sum(0))) == pytest.approx(together, abs=1e-12)


def test_spice_needs_its_models_and_java_8_to_11(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(java, "_package_folder", lambda name: tmp_path / name)
    assert "models are missing" in why_no_spice(Java("java", 8))
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    for name in java._SPICE_MODELS:
        (tmp_path / "spice" / "lib" / name).touch()
    usable = [version for version in (7, 8, 11, 17, 21) if why_no_spice(Java("java", version)) is None]
    assert usable == [8, 11]
    assert why_no_spice(Java("java", 17)) == "it needs Java 8 to 11, and this is Java 17"


def test_spice_runs_in_its_own_process_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    folder = tmp_path / "pycocoevalcap" / "spice"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()  # a complete package, found before the installed one
    (folder / "__init__.py").touch()
    (folder / "spice.py").write_text(
        "import sys\n"
        "def get_stanford_models():\n"
        "    sys.exit('a download was tried')\n"
        "class Spice:\n"
        "    def __init__(self):\n"
        "        get_stanford_models()\n"
        "    def compute_score(self, references, predictions):\n"
        "        print('Parsing reference captions', end='')\n"
        "        if predictions[0] == ['crash']:\n"
        "            sys.exit('out of memory')\n"
        "        assert references[0] == ['a dog', 'dogs']\n"
        "        scores = [{'All': {'f': image / 100}} for image in sorted(references)]\n"
        "        return 0.0, scores\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    references = {image: ["a dog", "dogs"] for image in range(11)}
    predictions = {image: ["dog"] for image in range(11)}
    assert spice_scores(references, predictions) == [image / 100 for image in range(11)]
    with pytest.raises(WorkError, match=r"SPICE failed.*'out of memory'"):
        spice_scores({0: ["a dog"]}, {0: ["crash"]})
    assert capfd.readouterr() == ("", "")
