"""The Java parts: finding Java, its failures, METEOR's process, and when SPICE may run."""

import os
import subprocess
from pathlib import Path

import pytest

from ituning_hf.evaluation import compute_caption_metrics, java
from ituning_hf.evaluation.java import Java, find_java, meteor, spice, spice_can_run, tokenize_with_java

CAPTIONS = ["a man rides a red bike", "two dogs sleep on the grass"]


@pytest.fixture
def runtime() -> Java:
    found = find_java()
    if found is None:
        pytest.skip("no Java on the PATH")
    return found


@pytest.fixture
def broken_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Java:
    """A `java` that tells its version and can do nothing else."""
    program = tmp_path / "java"
    program.write_text(
        '#!/bin/sh\ncase "$1" in -version) echo \'openjdk version "1.8.0_392"\' >&2;; '
        "*) echo out of memory >&2; exit 1;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return Java(str(program), 8)


def test_java_is_found_with_its_version(broken_java: Java):
    assert find_java() == broken_java


@pytest.mark.parametrize("script", [None, "#!/bin/sh\necho no runtime installed >&2; exit 1\n"])
def test_missing_java(script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if script:  # as where only a launcher is installed
        (tmp_path / "java").write_text(script)
        (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() is None
    references = [[caption] for caption in CAPTIONS]
    with pytest.raises(RuntimeError, match=r"java=True, but no working `java`.*java=False"):
        compute_caption_metrics(CAPTIONS, references, java=True)
    without = compute_caption_metrics(CAPTIONS, references, java=False)
    assert compute_caption_metrics(CAPTIONS, references) == without


def test_failures_show_what_java_said(broken_java: Java):
    numbered = {index: [caption] for index, caption in enumerate(CAPTIONS)}
    with pytest.raises(RuntimeError, match=r"PTB tokenizer failed; java=False .* 'out of memory'"):
        tokenize_with_java(CAPTIONS, broken_java)
    with pytest.raises(RuntimeError, match=r"METEOR failed; java=False .* 'out of memory'"):
        meteor(numbered, numbered, broken_java)


def test_empty_captions_keep_their_places(runtime: Java, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LC_ALL", "C")  # whose encoding has no é
    lines = ["", "A café\nis open\u2028here .", "", "...", "<b", "c> \ud800", "", ""]
    assert tokenize_with_java(lines, runtime) == ["", "a café is open here", "", "", "< b", "c >", "", ""]
    assert tokenize_with_java([""], runtime) == [""]


@pytest.mark.slow  # loads METEOR's paraphrases, up to a minute where the processor is busy
def test_meteor_scores_in_any_locale_and_leaves_no_process(runtime: Java, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de")
    started = []

    class Watched(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(java.subprocess, "Popen", Watched)
    references = {index: [caption, ""] for index, caption in enumerate([*CAPTIONS, "café ||| au lait"])}
    predictions = {0: [CAPTIONS[0]], 1: [""], 2: ["café ||| au lait"]}
    assert 0 < meteor(references, predictions, runtime) < 1
    assert len(started) == 1
    assert started[0].returncode is not None
    assert started[0].stdin.closed
    assert started[0].stdout.closed


def test_spice_needs_its_models_and_an_old_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(java, "_package_folder", lambda name: tmp_path / name)
    assert not spice_can_run(Java("java", 8))
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    for name in java._SPICE_MODELS:
        (tmp_path / "spice" / "lib" / name).touch()
    assert [version for version in (7, 8, 11, 17, 21) if spice_can_run(Java("java", version))] == [8, 11]


def test_spice_runs_quietly_in_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    folder = tmp_path / "pycocoevalcap" / "spice"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()  # a whole package, so that it stands before the installed one
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
        "        if predictions['0'] == ['crash']:\n"
        "            sys.exit('out of memory')\n"
        "        assert references['0'] == ['a dog', 'dogs']\n"
        "        return 0.25, []\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert spice({0: ["a dog", "dogs"]}, {0: ["dog"]}) == 0.25
    with pytest.raises(RuntimeError, match=r"SPICE failed.*'out of memory'"):
        spice({0: ["a dog"]}, {0: ["crash"]})
    assert capfd.readouterr() == ("", "")
