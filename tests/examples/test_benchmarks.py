"""The benchmarks run, and compare what they say."""

import argparse
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import benchmark_generation
import benchmark_loading
import benchmark_training
import benchmarking
import pytest
import torch
from benchmark_training import (
    CROSS_ATTENTION,
    FLOOR,
    METHODS,
    NO_OPTIMIZER,
    PICTURES,
    STORED,
    UPPER_HALF,
    Step,
)
from benchmarking import LENGTHS, Timings, captioner_config, measure, random_batch
from small_models import SHARED_DATA
from transformers import GPT2Tokenizer

from ituning_hf import ITuningForCaptioning
from ituning_hf.data.loading import load_captioned_images


@pytest.fixture(autouse=True)
def _new_backbones() -> Iterator[None]:
    """Give each test weights of its own: methods of one run share them and may cast them."""
    yield
    benchmarking._frozen_vision.cache_clear()
    benchmarking._frozen_text.cache_clear()


def training_options(dtype: str = "float32") -> argparse.Namespace:
    flags = ["--size", "small", "--device", "cpu", "--batch_size", "2", "--captions_per_image", "3"]
    return benchmark_training.make_options([*flags, "--dtype", dtype])


@pytest.mark.parametrize(
    ("size", "trainable"),
    [
        *[("base", 14_178_816), ("medium", 44_101_632), ("large", 94_487_040)],  # the paper's
        *[("smollm2-135m", 23_267_520), ("qwen2.5-0.5b", 35_836_416)],
    ],
)
def test_trained_parameters_of_the_sizes(size: str, trainable: int):
    with torch.device("meta"):
        captioner = ITuningForCaptioning(captioner_config(size))
    assert sum(p.numel() for p in captioner.parameters() if p.requires_grad) == trainable


def test_rows_are_as_long_as_real_captions():
    assert sum(LENGTHS.values()) == 4375
    assert sum(length * count for length, count in LENGTHS.items()) / 4375 == pytest.approx(12.55, abs=0.001)
    config = captioner_config("small")
    config.text_config.bos_token_id, config.text_config.eos_token_id = 998, 999
    batch = random_batch(config, 200, 5, 3, "cpu", torch.float32)
    ids, mask, labels = (batch.text[name] for name in ("input_ids", "attention_mask", "labels"))
    lengths = mask.sum(1)
    assert (lengths - 2).double().mean() == pytest.approx(12.55, abs=0.5)
    assert ids[:, 0].tolist() == [998] * 1000
    for row in range(0, 1000, 97):
        length = int(lengths[row])
        assert torch.equal(labels[row, 1:length], ids[row, 1:length])
        assert (ids[row, length - 1 :] == 999).all()
        assert (labels[row, [0, *range(length, ids.shape[1])]] == -100).all()
    again = random_batch(config, 200, 5, 3, "cpu", torch.float32)
    assert torch.equal(batch.pixel_values, again.pixel_values)
    assert torch.equal(ids, again.text["input_ids"])
    assert torch.equal(batch.pixel_values_for_rows()[7], batch.pixel_values[1])


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="no Flickr8k captions and GPT-2 tokenizer")
def test_lengths_are_those_of_flickr8k():
    folder = SHARED_DATA / "flickr8k-mini"
    path, images = str(folder / "dataset_flickr8k_mini.json"), str(folder / "images")
    splits = [load_captioned_images(path, split, image_root=images) for split in ("train", "val")]
    captions = [caption for records in splits for record in records for caption in record.captions]
    tokenizer = GPT2Tokenizer.from_pretrained(SHARED_DATA / "gpt2-tokenizer")
    counts = Counter(len(ids) for ids in tokenizer(captions)["input_ids"])
    assert counts == {length: count for length, count in LENGTHS.items() if count}


def test_methods_alternate_and_ratios_are_taken_within_rounds():
    calls: list[str | int] = []
    methods = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = measure(methods, rounds=3, before_round=calls.append)
    warm = [["a", "a", "b", "b"], ["b", "b", "a", "a"]]  # a warm-up call before each measured one
    assert calls == [0, *warm[0], 1, *warm[1], 2, *warm[0]]
    assert [len(seconds) for seconds in timings.seconds.values()] == [3, 3]
    known = Timings({"a": [6.0, 8.0, 12.0], "b": [10.0, 18.0, 22.0]})
    assert known.median("a") == 8.0
    assert known.ratio("b", over="a") == pytest.approx(22 / 12)
    assert known.ratio("b", over="c") is None


def allocate(megabytes: int) -> Callable[[], torch.Tensor]:
    held = torch.ones(megabytes, 2**18)  # one MiB in each row
    return lambda: (held * 2).sum()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs")
def test_peak_memory_is_that_of_the_call(monkeypatch: pytest.MonkeyPatch):
    fork = multiprocessing.get_context("fork")  # has everything imported
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    total, own = benchmarking.peak_memory(allocate, 300, device="cpu")
    assert total * 10**6 / 2**20 == pytest.approx(600, abs=40)
    assert own * 10**6 / 2**20 == pytest.approx(300, abs=40)


def test_report_is_printed_and_written(tmp_path: Path, capsys):
    report = benchmarking.make_report("/anywhere/benchmark_x.py", ["--size", "small"], "cpu")
    report["tables"]["seconds"] = [{"way": "a", "s": 0.25, "n": 12_345}, {"way": "bcd", "s": None, "n": 1}]
    benchmarking.publish(report, tmp_path / "new" / "report.json")
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == report
    assert {"python", "torch", "transformers", "ituning_hf"} <= set(report["versions"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "python examples/benchmark_x.py --size small"
    assert [line.rstrip() for line in lines[-4:]] == [
        "seconds",
        "way      s       n",
        "a    0.250  12,345",
        "bcd              1",
    ]


def test_floors_and_untrained_captioners_have_the_same_loss():
    options = training_options()
    batch = benchmark_training.make_batch(options, seed=5)
    assert (batch.text["attention_mask"] == 0).any()
    steps = {name: Step(name, options) for name in (FLOOR, STORED, UPPER_HALF, PICTURES)}
    expected = steps[FLOOR].loss(batch)
    for name, step in steps.items():
        torch.testing.assert_close(step.loss(batch), expected, msg=name, check_stride=False)
        embeddings = step.model.get_input_embeddings().weight
        assert embeddings is steps[FLOOR].model.get_input_embeddings().weight  # shared by all methods


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_changes_only_the_trained_weights(dtype: str):
    width, depth, vision = 64, 2, 64
    adapter = 2 * (width * 32 + vision * 32) + 3 * 32 + width  # r = d / 2
    cross = 4 * (width * width + width) + 2 * width  # queries, keys and values, output, layer norm
    counts = {
        FLOOR: 0,
        **dict.fromkeys((STORED, NO_OPTIMIZER, PICTURES), depth * adapter),
        UPPER_HALF: adapter,
        CROSS_ATTENTION: depth * cross,
    }
    for name, count in counts.items():
        step = Step(name, training_options(dtype=dtype))
        parameters = dict(step.model.named_parameters())
        before = {key: p.detach().clone() for key, p in parameters.items()}
        trained = {key for key, p in parameters.items() if p.requires_grad}
        assert step.trainable == count
        step()
        step()
        changed = {key for key, p in parameters.items() if not torch.equal(p, before[key])}
        assert changed == (set() if name == NO_OPTIMIZER else trained), name
        assert {parameters[key].dtype for key in trained} <= {torch.float32}


def test_training_benchmark(tmp_path: Path):
    path = tmp_path / "training.json"
    flags = ["--size", "small", "--rounds", "1", "--no_memory", "--report", str(path)]
    report = benchmark_training.main(flags)
    assert json.loads(path.read_text()) == report
    (rows,) = report["tables"].values()
    assert [row["method"] for row in rows] == [*METHODS]
    assert rows[0]["over floor"] == 1
    assert all(row["seconds"] > 0 and row["peak MB"] is None for row in rows)


def test_generation_benchmark():
    flags = ["--size", "small", "--rounds", "1", "--new_tokens", "4", "--num_beams", "1", "--no_memory"]
    report = benchmark_generation.main(flags)
    (rows,) = report["tables"].values()
    by_method = {row["method"]: row for row in rows}
    assert [*by_method] == [*benchmark_generation.METHODS]
    assert by_method[benchmark_generation.PICTURES]["captions changed"] == 0
    assert by_method[benchmark_generation.PEFT]["captions changed"] == 0
    assert all(row["seconds"] > 0 for row in rows)


def test_every_generation_has_the_same_length_and_captions_depend_on_the_picture():
    flags = ["--size", "small", "--batch_size", "3", "--num_beams", "2", "--new_tokens", "4"]
    models = benchmark_generation.Models(benchmark_generation.make_options(flags))
    calls = {name: build(models) for name, build in benchmark_generation.METHODS.items()}
    for name, generate in calls.items():
        assert generate().shape == (3, 5), name
    captions = calls[benchmark_generation.FEATURES]()
    assert not torch.equal(captions[0], captions[1])


def test_loading_benchmark():
    report = benchmark_loading.main(["--size", "small", "--rounds", "1"])
    sizes, seconds = report["tables"].values()
    trainable = 16_704
    assert 4 * trainable < sizes[0]["bytes"] < 4 * trainable + 6_000  # and a header
    assert sizes[0]["over I-Tuning"] == 1 < sizes[2]["over I-Tuning"]
    assert [row["method"] for row in seconds][-1] == benchmark_loading.ENCODER_DECODER
    assert all(row["seconds"] > 0 for row in seconds)


def test_loaded_captioners_generate_the_same(tmp_path: Path):
    benchmark_loading.save_models(tmp_path, "small", torch.float32)
    calls = benchmark_loading.make_calls(tmp_path, "cpu")
    whole = calls[benchmark_loading.WHOLE]()
    onto = calls[benchmark_loading.ONTO_BACKBONES]()
    calls[benchmark_loading.ANOTHER_ADAPTER]()
    features = torch.randn(2, 17, 64)
    length = {"min_new_tokens": 4, "max_new_tokens": 4}
    expected = whole.generate(visual_features=features, **length)
    assert torch.equal(onto.generate(visual_features=features, **length), expected)


@pytest.mark.parametrize("flags", ["--rounds 0", "--methods GIT", "--size huge"])
def test_unknown_flags_are_refused(flags: str, capsys):
    with pytest.raises(SystemExit):
        benchmark_training.main(flags.split())
    assert flags.split()[0] in capsys.readouterr().err
