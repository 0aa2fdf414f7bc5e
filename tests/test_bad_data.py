"""Hostile pictures and captions through every command that reads them: named once, and the rest unharmed."""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hostile_corpus as corpus
import pytest
from small_models import ADAPTER, make_captioner, read_log

from ituning_hf import ITuningForCaptioning, ITuningProcessor, iter_captions, save_captioner
from ituning_hf.cli import main
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.evaluation.arguments import EvaluateArguments
from ituning_hf.evaluation.run import evaluate_captioner
from ituning_hf.features.build import build_features
from ituning_hf.features.store import FeatureStore
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.cli import train
from ituning_hf.utils.terminal import printable

SHORT = {"num_beams": 2, "max_new_tokens": 5, "batch_size": 4}
CAPTIONS = [
    "a dog runs on the grass",
    "word " * 10_000,
    "x" * 20_000,
    "a dog<|endoftext|> runs <|endoftext|>",
    "\x1b[2J red \x07 bird \x00 nul",
    "line\nbreak\r\n and\ttab",
    "שני כלבים על הדשא",
    "\u202ea dog\u202c turned about",
    "👩‍👩‍👧 family 🐕‍🦺",
    "half a pair \ud83d",
]
GOOD = corpus.valid_files() | {
    name: content for name, content in corpus.odd_files().items() if not name.startswith("turned")
}
BAD = {name: content for name, content in corpus.broken_files().items() if not name.startswith("cut at 2%")}


def write_data(folder: Path, bad: dict[str, bytes]) -> tuple[list[Path], list[Path]]:
    """Write an imagefolder of good pictures with bad ones among them; return the paths of both."""
    good = corpus.write(folder / "train", GOOD | corpus.named_files())
    broken = [*corpus.write(folder / "train", bad), *(corpus.not_files(folder / "train") if bad else ())]
    names = sorted([path.name for path in good + broken], key=lambda name: name[::-1])
    lines = [
        {
            "file_name": name,
            "captions": ["", "  ", CAPTIONS[len(name) % len(CAPTIONS)], "a red bird"],
        }
        for name in names
    ]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return good, broken


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[Path]]:
    folder = tmp_path_factory.mktemp("data")
    return folder, *write_data(folder, BAD)


@pytest.fixture(scope="module")
def saved(
    backbones: dict[str, Path], processor: ITuningProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("captioner") / "best"
    save_captioner(make_captioner(backbones), processor, folder)
    return folder


def settings(backbones: dict[str, Path], dataset: Path, output: Path, **changes: Any) -> TrainArguments:
    return TrainArguments(
        **{
            "vision_model": str(backbones["vision"]),
            "text_model": str(backbones["text"]),
            **ADAPTER,
            "dataset": str(dataset),
            "max_caption_tokens": 24,
            "per_device_train_batch_size": 16,
            "num_train_epochs": 1,
            "eval_split": "none",
            "max_unreadable_share": 0.9,
            "dataloader_num_workers": 0,
            "output_dir": str(output),
        }
        | changes
    )


def named(records: Iterable[logging.LogRecord], word: str, paths: list[Path]) -> None:
    """Assert that each of these was named once, with its reason, and nothing else was."""
    told = [r.getMessage() for r in records if r.getMessage().startswith(f"{word}: cannot read ")]
    starts = [f"{word}: cannot read {printable(str(path))}: " for path in paths]
    assert Counter(start for text in told for start in starts if text.startswith(start)) == Counter(starts)
    assert len(told) == len(paths)
    assert all(printable(text) == text for text in told)


def losses(output: Path) -> list[float]:
    return [record["loss"] for record in read_log(output) if "loss" in record]


def weights(output: Path) -> bytes:
    return (output / "last" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def seen(
    data: tuple[Path, list[Path], list[Path]],
    backbones: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[logging.LogRecord]]:
    """A run over the pictures, and what was logged in it."""
    folder, _, broken = data
    output, handler, records = tmp_path_factory.mktemp("seen") / "run", logging.Handler(), []
    handler.emit = records.append
    logging.getLogger().addHandler(handler)
    try:
        assert train(settings(backbones, folder, output)).unreadable == len(broken)
    finally:
        logging.getLogger().removeHandler(handler)
    return output, records


def test_training_names_each_bad_picture_once_and_learns_of_the_rest_as_ever(
    data: tuple[Path, list[Path], list[Path]],
    seen: tuple[Path, list[logging.LogRecord]],
    backbones: dict[str, Path],
    tmp_path: Path,
) -> None:
    """What is wrong with a picture makes no difference: the adapter is the same, to the last byte."""
    _, _, broken = data
    named(seen[1], "skipped", broken)
    write_data(tmp_path / "others", dict.fromkeys(BAD, b""))
    train(settings(backbones, tmp_path / "others", tmp_path / "run with empty files"))
    assert weights(seen[0]) == weights(tmp_path / "run with empty files")


def test_a_step_over_all_pictures_is_a_step_over_the_good_ones(
    data: tuple[Path, list[Path], list[Path]], backbones: dict[str, Path], tmp_path: Path
) -> None:
    """To rounding, since sums run in another order."""
    write_data(tmp_path / "good", {})
    whole = {
        "per_device_train_batch_size": 128,
        "max_train_steps": 2,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
    }
    for name, folder in (("with", data[0]), ("without", tmp_path / "good")):
        train(settings(backbones, folder, tmp_path / name, **whole))
    found, expected = losses(tmp_path / "with"), losses(tmp_path / "without")
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[1] < found[0]


def test_features_name_each_bad_picture_and_training_on_them_is_that_on_pictures(
    data: tuple[Path, list[Path], list[Path]],
    seen: tuple[Path, list[logging.LogRecord]],
    backbones: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, good, broken = data
    records = load_captioned_images(folder, "train")
    options = {"vision_model": backbones["vision"], "storage": "float32", "num_workers": 0, "device": "cpu"}
    with caplog.at_level(logging.WARNING):
        result = build_features(records, tmp_path / "store", batch_size=16, **options)
    named(caplog.records, "skipped", broken)
    assert (result.num_encoded, len(result.unreadable)) == (len(good), len(broken))
    assert set(FeatureStore(tmp_path / "store").names) == {f"train/{path.name}" for path in good}
    stored = settings(backbones, folder, tmp_path / "stored", features=str(tmp_path / "store"))
    assert train(stored).unreadable == len(broken)
    assert losses(tmp_path / "stored") == pytest.approx(losses(seen[0]), rel=1e-4)


def test_captions_of_good_pictures_are_those_without_the_bad(
    data: tuple[Path, list[Path], list[Path]], saved: Path
) -> None:
    _, good, broken = data
    model, processor = ITuningForCaptioning.from_pretrained(saved), ITuningProcessor.from_pretrained(saved)
    expected = [result.captions for result in iter_captions(model, processor, good, **SHORT)]
    mixed = [path for pair in zip(good, broken, strict=False) for path in pair]
    mixed += good[len(broken) :] + broken[len(good) :]
    found = {result.source: result for result in iter_captions(model, processor, mixed, **SHORT)}
    assert [found[str(path)].captions for path in good] == expected
    assert all(found[str(path)].error for path in broken)


def test_the_command_prints_a_plain_line_for_each(
    data: tuple[Path, list[Path], list[Path]],
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, good, broken = data
    flags = [
        "--num_beams",
        "1",
        "--max_new_tokens",
        "3",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "x.jsonl"),
    ]
    assert main(["caption", str(folder), "--model", str(saved), *flags]) == 1
    printed = capsys.readouterr()
    listed = [path for path in broken if path.name != "folder.jpg"]
    lines = printed.out.split("\n")[:-1]
    assert sorted(line.split("\t")[0] for line in lines) == sorted(printable(str(path)) for path in good)
    told = [line for line in printed.err.split("\n") if "cannot read" in line]
    assert len(told) == len(listed)
    assert f"{len(listed)} of {len(good) + len(listed)} images could not be read" in printed.err
    assert not {letter for letter in printed.out + printed.err if printable(letter) != letter} - set("\n\t")
    written = [json.loads(line)["image"] for line in (tmp_path / "x.jsonl").read_text().split("\n") if line]
    assert sorted(written) == sorted(map(str, good))


def test_an_evaluation_leaves_the_bad_out_and_scores_the_rest(
    data: tuple[Path, list[Path], list[Path]],
    saved: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, good, broken = data
    args = EvaluateArguments(
        model=str(saved),
        dataset=str(folder),
        split="train",
        java=False,
        dataloader_num_workers=0,
        max_unreadable_share=0.9,
        output_dir=str(tmp_path / "report"),
        **SHORT,
    )
    with caplog.at_level(logging.WARNING):
        evaluation = evaluate_captioner(args)
    named(caplog.records, "left out", broken)
    assert evaluation is not None
    assert {evaluation.benchmark.images[place].source for place in evaluation.places} == set(good)
    shown = capsys.readouterr().out
    assert not {letter for letter in shown if printable(letter) != letter} - {"\n"}
