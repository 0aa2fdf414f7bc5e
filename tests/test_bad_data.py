"""Commands report each hostile image once, in printable characters, and other results do not change."""

import json
import logging
from collections import Counter
from pathlib import Path

import hostile_corpus as corpus
import pytest
from processes import options
from safetensors.torch import load_file
from small_models import ADAPTER, read_lines

from ituning_hf import iter_captions, load_captioner
from ituning_hf.cli import main
from ituning_hf.features.store import FeatureStore
from ituning_hf.utils.terminal import printable

SEARCH = {"num_beams": 2, "max_new_tokens": 5, "batch_size": 4}
CAPTIONS = [
    "a dog runs on the grass",
    "word " * 10_000,
    "x" * 20_000,
    "a dog<|endoftext|> runs <|endoftext|>",
    "\x1b[2J red \x07 bird \x00 nul",
    "line\nbreak\r\n and\ttab",
    "שני כלבים על הדשא",
    "\u202ea dog\u202c with a change of direction",
    "👩‍👩‍👧 family 🐕‍🦺",
    "half a surrogate pair \ud83d",
]
GOOD = corpus.valid_files() | {
    name: content for name, content in corpus.odd_files().items() if not name.startswith("turned")
}
BAD = {name: content for name, content in corpus.broken_files().items() if not name.startswith("cut at 2%")}


def write_data(folder: Path, bad: dict[str, bytes]) -> tuple[list[Path], list[Path]]:
    """Write a dataset of good and bad images with hostile captions; return the paths of both kinds."""
    good = corpus.write(folder / "train", GOOD | corpus.named_files())
    broken = [*corpus.write(folder / "train", bad), *corpus.not_files(folder / "train")]
    names = sorted([path.name for path in good + broken], key=lambda name: name[::-1])
    lines = [
        {"file_name": name, "captions": ["", "  ", CAPTIONS[i % len(CAPTIONS)], "a red bird"]}
        for i, name in enumerate(names)
    ]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return good, broken


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[Path]]:
    folder = tmp_path_factory.mktemp("data")
    return folder, *write_data(folder, BAD)


def train(backbones: dict[str, Path], dataset: Path, output: Path, **changes: object) -> Path:
    """Train for an epoch, and return the file of the adapter."""
    common = ADAPTER | {"max_caption_tokens": 24, "per_device_train_batch_size": 16, "num_train_epochs": 1}
    common |= {"vision_model": backbones["vision"], "text_model": backbones["text"], "eval_split": "none"}
    common |= {"max_unreadable_share": 0.9, "dataloader_num_workers": 0, "mixed_precision": "no"}
    argv = options(**common, dataset=dataset, output_dir=output, **changes)
    assert main(["train", *argv]) == 0
    return output / "last" / "model.safetensors"


def check_report(caplog: pytest.LogCaptureFixture, broken: list[Path]) -> None:
    """Check that each bad image was reported once and no other image was."""
    reports = [r.getMessage() for r in caplog.records if "cannot read " in r.getMessage()]
    starts = [f"cannot read {printable(str(path))}: " for path in broken]
    assert Counter(start for text in reports for start in starts if start in text) == Counter(starts)
    assert len(reports) == len(broken)
    check_printable("".join(reports))
    caplog.clear()


def check_printable(text: str) -> None:
    assert {letter for letter in text if printable(letter) != letter} <= set("\n\t\r")


def test_bad_images_do_not_change_an_adapter(data, backbones, tmp_path, caplog):
    """Training on features that were stored from the same images has the same losses."""
    folder, good, broken = data
    with caplog.at_level(logging.WARNING):
        found = train(backbones, folder, tmp_path / "run")
    check_report(caplog, broken)
    write_data(tmp_path / "others", dict.fromkeys(BAD, b""))
    expected = train(backbones, tmp_path / "others", tmp_path / "run with empty files")
    assert found.read_bytes() == expected.read_bytes()
    caplog.clear()

    store = tmp_path / "features"
    argv = options(dataset=folder, vision_model=backbones["vision"], output_dir=store, storage="float32")
    argv += options(splits="train", batch_size=16, dataloader_num_workers=0, device="cpu")
    with caplog.at_level(logging.WARNING):
        assert main(["features", "build", *argv]) in (0, 1)
    check_report(caplog, broken)
    features = FeatureStore(store)
    assert len(features) == len(good)
    for path in good:
        assert features.read(f"train/{path.name}").isfinite().all()
    stored = load_file(train(backbones, folder, tmp_path / "run with features", features=store))
    for name, tensor in load_file(found).items():
        assert stored[name].allclose(tensor, rtol=1e-3, atol=1e-5), name


def test_bad_images_do_not_change_the_captions_of_others(data, saved_captioner):
    _, good, broken = data
    model, processor = load_captioner(saved_captioner, device="cpu")
    expected = [result.captions for result in iter_captions(model, processor, good, **SEARCH)]
    mixed = sorted(good + broken, key=lambda path: path.name[::-1])
    found = {result.source: result for result in iter_captions(model, processor, mixed, **SEARCH)}
    assert [found[str(path)].captions for path in good] == expected
    assert all(found[str(path)].error for path in broken)


def test_the_command_prints_a_line_for_each_image(data, saved_captioner, tmp_path, capsys):
    folder, good, broken = data
    argv = options(model=saved_captioner, num_beams=1, max_new_tokens=3, device="cpu")
    assert main(["caption", str(folder), *argv, "--output", str(tmp_path / "captions.jsonl")]) == 1
    printed = capsys.readouterr()
    check_printable(printed.out + printed.err)
    lines = printed.out.split("\n")[:-1]
    assert sorted(line.split("\t")[0] for line in lines) == sorted(printable(str(path)) for path in good)
    listed = [path for path in broken if not path.is_dir()]
    assert len([line for line in printed.err.split("\n") if "cannot read" in line]) == len(listed)
    assert f"{len(listed)} of {len(good) + len(listed)} images" in printed.err
    written = read_lines(tmp_path / "captions.jsonl")
    assert sorted(line["image"] for line in written) == sorted(map(str, good))


def test_an_evaluation_scores_the_readable_images(data, saved_captioner, tmp_path, caplog, capsys):
    folder, good, broken = data
    argv = options(
        model=saved_captioner, dataset=folder, split="train", output_dir=tmp_path / "report", **SEARCH
    )
    argv += options(java="false", dataloader_num_workers=0, max_unreadable_share=0.9)
    with caplog.at_level(logging.WARNING):
        assert main(["evaluate", *argv]) == 0
    check_report(caplog, broken)
    printed = capsys.readouterr()
    check_printable(printed.out + printed.err)
    assert f"{len(good)} images" in printed.out
