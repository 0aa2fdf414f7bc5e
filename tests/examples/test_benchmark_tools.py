"""What the benchmark commands share."""

import logging
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks.arguments import benchmark_parser, quiet
from benchmarks.backbones import forget_shared, frozen_text_model, unshared_text_model
from benchmarks.captions import LENGTHS, caption_rows, random_batch
from benchmarks.growth import draw, grow, ratios
from benchmarks.memory import can_measure, peak_memory
from benchmarks.report import Report, format_table
from benchmarks.rounds import Timings, measure
from benchmarks.sizes import SIZES, captioner_config, num_image_tokens
from benchmarks.storage import saved_bytes
from benchmarks.throughput import coco_minutes, count_flops, matrix_rate
from small_models import SHARED_DATA
from transformers import GPT2Tokenizer

from ituning_hf import ITuningForCaptioning
from ituning_hf.data.loading import load_captioned_images


@pytest.mark.parametrize(
    ("size", "trainable"), [("base", 14_178_816), ("medium", 44_101_632), ("large", 94_487_040)]
)
def test_the_sizes_are_the_papers(size: str, trainable: int):
    with torch.device("meta"):
        captioner = ITuningForCaptioning(captioner_config(size))
    assert sum(p.numel() for p in captioner.parameters() if p.requires_grad) == trainable
    assert num_image_tokens(captioner.config.vision_config) == 197
    assert SIZES == ("small", "base", "medium", "large")


def test_a_pictures_tokens_follow_its_size():
    vision = captioner_config("base", image_size=384, patch_size=16).vision_config
    assert num_image_tokens(vision) == 577


def test_captions_are_as_long_as_real_ones():
    assert sum(LENGTHS.values()) == 4375
    assert sum(length * count for length, count in LENGTHS.items()) / 4375 == pytest.approx(12.55, abs=0.001)
    rows = caption_rows(captioner_config("base").text_config, 1000, 5, seed=3)
    lengths = rows["attention_mask"].sum(1) - 2
    assert lengths.double().mean() == pytest.approx(12.55, abs=0.2)
    assert lengths.min() >= 3
    assert lengths.max() <= 38


@pytest.mark.skipif(
    not SHARED_DATA.exists(), reason="no Flickr8k captions and GPT-2 tokenizer beside the repository"
)
def test_the_lengths_are_those_of_flickr8k():
    folder = SHARED_DATA / "flickr8k-mini"
    records = [
        record
        for split in ("train", "val")
        for record in load_captioned_images(
            str(folder / "dataset_flickr8k_mini.json"), split, image_root=str(folder / "images")
        )
    ]
    tokenizer = GPT2Tokenizer.from_pretrained(SHARED_DATA / "gpt2-tokenizer")
    captions = [caption for record in records for caption in record.captions]
    counts = Counter(len(ids) for ids in tokenizer(captions)["input_ids"])
    assert counts == {length: count for length, count in LENGTHS.items() if count}


def test_rows_are_laid_out_as_the_processor_does():
    text = captioner_config("small").text_config
    text.bos_token_id, text.eos_token_id = 998, 999
    rows = caption_rows(text, 1, 2, seed=0, length=3, width=7)
    ids, mask, labels = rows["input_ids"], rows["attention_mask"], rows["labels"]
    assert ids.shape == mask.shape == labels.shape == (2, 7)
    assert ids[:, 0].tolist() == [998, 998]
    assert ids[:, 4:].tolist() == [[999] * 3] * 2
    assert mask.tolist() == [[1, 1, 1, 1, 1, 0, 0]] * 2
    assert torch.equal(labels[:, 1:5], ids[:, 1:5])
    assert labels[:, [0, 5, 6]].tolist() == [[-100] * 3] * 2


def test_a_batch_is_a_function_of_its_seed():
    config = captioner_config("small")
    one, again, other = (random_batch(config, 2, 5, seed) for seed in (1, 1, 2))
    assert torch.equal(one.pixel_values, again.pixel_values)
    assert torch.equal(one.input_ids, again.input_ids)
    assert one.captions_per_image == 5
    assert one.visual_features.shape == (2, 17, 64)
    assert one.input_ids.shape != other.input_ids.shape or not torch.equal(one.input_ids, other.input_ids)


def test_ways_take_turns(monkeypatch: pytest.MonkeyPatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def way(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            clock[0] += seconds * len(calls)  # a machine that gets slower and slower

        return call

    timings = measure(
        {"a": way("a", 1), "b": way("b", 2)}, rounds=3, warm_up=1, before_round=lambda i: calls.append(i)
    )
    assert calls == [0, "a", "b", 1, "b", "a", 2, "a", "b", 3, "b", "a"]
    assert timings.seconds == {"a": [6.0, 8.0, 12.0], "b": [10.0, 18.0, 22.0]}
    assert timings.median("a") == 8.0
    assert timings.quartiles("b") == (14.0, 20.0)
    assert timings.ratio("b", over="a") == pytest.approx(22 / 12)


def test_one_round_has_quartiles_too():
    assert Timings({"a": [3.0]}).quartiles("a") == (3.0, 3.0)


def allocate(megabytes: int) -> Callable[[], torch.Tensor]:
    held = torch.ones(megabytes, 2**18)  # each row is a megabyte
    return lambda: (held * 2).sum()


@pytest.mark.skipif(not can_measure("cpu"), reason="no /proc/self/clear_refs here")
def test_peak_memory_is_that_of_the_call():
    memory = peak_memory(allocate, 300)
    assert memory.total / 2**20 == pytest.approx(600, abs=40)
    assert memory.own / 2**20 == pytest.approx(300, abs=40)


def test_a_report_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = Report.of("Costs", "/anywhere/benchmark_x.py", ["--size", "small", "--ways", "a b"], "cpu")
    report.tables["seconds"] = [{"way": "a", "s": 0.25, "n": 12_345}, {"way": "bcd", "s": None, "n": 1}]
    report.notes.append("No GPU.")
    report.save(tmp_path / "new" / "report.json")
    assert Report.load(tmp_path / "new" / "report.json") == report
    assert report.command == "python examples/benchmark_x.py --size small --ways 'a b'"
    assert {"python", "torch", "transformers", "ituning_hf"} <= set(report.versions)
    assert report.machine["threads"] == torch.get_num_threads()
    report.print()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Costs", "  python examples/benchmark_x.py --size small --ways 'a b'"]
    assert lines[-6:] == [
        "seconds",
        "way      s       n",
        "a    0.250  12,345",
        "bcd              1",
        "",
        "No GPU.",
    ]


def test_columns_of_any_row_are_shown():
    assert format_table([{"a": 1}, {"b": "x"}]) == "a  b\n1\n   x"


def test_a_table_is_no_wider_than_it_must_be():
    rows = [
        {"way": "floor", "over the floor": 1.0, "": "x"},
        {"way": "floor, no padding", "over the floor": 0.5, "": None},
        {"way": "peer, no padding", "over the floor": None, "": None},
    ]
    assert format_table(rows).splitlines() == [
        "                  over the",
        "way                  floor",
        "floor                1.000  x",
        "  no padding         0.500",
        "peer, no padding",
    ]


def test_the_same_random_weights_are_drawn_again():
    config = captioner_config("small")
    one = frozen_text_model(config)
    torch.rand(7)
    forget_shared()
    assert torch.equal(one.lm_head.weight, frozen_text_model(config).lm_head.weight)
    other = unshared_text_model(config)
    assert torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert other.lm_head.weight is not frozen_text_model(config).lm_head.weight


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--rounds 0", "argument --rounds: '0' is no positive whole number"),
        ("--warm_up -1", "argument --warm_up: '-1' is no whole number from 0"),
        ("--device tpu", "argument --device: 'tpu' is no device: give cpu or cuda"),
        ("--output {}", "is a folder: give a file in it"),
        ("--output {}/file/report.json", "file' cannot be written to (File exists): give a folder that can"),
    ],
)
def test_flags_that_end_before_anything_is_measured(flags: str, message: str, tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        benchmark_parser("", rounds=1).parse_args(flags.format(tmp_path).split())
    assert message in capsys.readouterr().err


def test_nothing_is_heard_of_what_a_user_cannot_mend(caplog: pytest.LogCaptureFixture):
    with quiet(), warnings.catch_warnings():
        warnings.warn("`is_gradient_checkpointing` is deprecated, and so on", FutureWarning, stacklevel=1)
        logging.getLogger("transformers.modeling_utils").warning("`loss_type=None` was set")
    assert not caplog.records
    with quiet(), pytest.raises(FutureWarning):
        warnings.warn("another name is deprecated", FutureWarning, stacklevel=1)


def test_growth_is_measured_and_drawn_again(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install 'ituning_hf[viz]'")
    report = Report("Costs", "", {}, {})
    rows = grow("batch", [1, 2, 64], lambda n: Timings({"floor": [2.0 * n], "ours": [3.0 * n]}))
    assert rows[2] == {"batch": 64, "floor": 128.0, "ours": 192.0}
    assert ratios(rows, "floor")[2] == {"batch": 64, "floor": 1.0, "ours": 1.5}
    report.tables["seconds"] = rows
    report.save(tmp_path / "growth.json")
    draw(Report.load(tmp_path / "growth.json"), "seconds", tmp_path / "plots" / "growth.svg")
    assert "<svg" in (tmp_path / "plots" / "growth.svg").read_text()


def test_operations_are_counted_and_rated():
    one, other = torch.randn(7, 11, requires_grad=True), torch.randn(11, 13)
    assert count_flops(lambda: (one @ other).sum().backward()) == 2 * (2 * 7 * 11 * 13)
    query, key = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(2, 3, 7, 4)
    product = 2 * (2 * 3 * 5 * 7 * 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attend(query, key, key)) == 2 * product
    assert count_flops(lambda: attend(query, key, key).sum().backward()) == (2 + 5) * product
    assert matrix_rate("cpu", torch.float32, width=64) > 0
    assert coco_minutes(seconds=0.06, captions=100) == pytest.approx(30 * 566_435 / 100 * 0.06 / 60)


def test_what_is_not_a_transformers_model_saves_what_is_trained():
    random.seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1000).requires_grad_(False))
    assert 4 * 20 < saved_bytes(model).weights < 4 * 20 + 300
