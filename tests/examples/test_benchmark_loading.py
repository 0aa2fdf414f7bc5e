"""The benchmark of loading counts what is on disk, and loads what was saved."""

import benchmark_loading
import pytest
import torch
from benchmarks import loading_ways
from benchmarks.loading_ways import BACKBONES, CAPTIONER, ONTO_BACKBONES, PEFT, SWITCH, SavedModels
from benchmarks.page_cache import cached_share, drop_from_cache
from benchmarks.report import Report
from benchmarks.rounds import Timings

PEERS = ["VisionEncoderDecoder"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> SavedModels:
    return SavedModels(tmp_path_factory.mktemp("saved"), "small", torch.float32, peers=PEERS)


def test_what_is_counted(tmp_path):
    models = SavedModels(tmp_path, "small", torch.bfloat16, peers=PEERS)
    parameters = [*models.captioner.parameters()]
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    ours, theirs = models.saved[CAPTIONER], models.saved["VisionEncoderDecoder"]
    assert 2 * trainable <= ours.weights <= 2 * trainable + 6_000  # and a header
    assert 2 * trainable <= models.saved[PEFT].weights <= 2 * trainable + 6_000
    assert 2 * frozen <= models.saved[BACKBONES].weights <= 2 * frozen + 12_000
    assert theirs.weights > 2 * frozen
    assert ours.folder > ours.weights
    assert ours.weights == sum(path.stat().st_size for path in models.files(CAPTIONER))
    assert torch.get_default_dtype() == torch.float32


def test_an_adapter_gets_onto_backbones_that_are_in_memory(models):
    captioner, whole = loading_ways.put_onto_backbones(models), loading_ways.load_whole(models)
    features = torch.randn(2, 17, 64)
    length = {"min_new_tokens": 4, "max_new_tokens": 4}
    expected = whole.generate(visual_features=features, **length)
    assert torch.equal(captioner.generate(visual_features=features, **length), expected)
    assert captioner.text_model.transformer.wte.weight is models.text.transformer.wte.weight
    assert not hasattr(models.text.transformer.h[0], "adapter")
    loading_ways.switch(models)
    assert torch.equal(models.captioner.generate(visual_features=features, **length), expected)
    tuned = loading_ways.put_peft(models)
    assert torch.equal(tuned.generate(encoder_hidden_states=features, pad_token_id=0, **length), expected)


def test_nothing_that_is_kept_in_memory_holds_files_in_the_cache(models):
    files = models.files(CAPTIONER, BACKBONES, *PEERS)
    assert len(files) == 4
    drop_from_cache(files)
    assert cached_share(files) == 0
    for way in loading_ways.loading_ways(models).values():
        way.call()
    assert cached_share(files) > 0.99


def test_its_tables(tmp_path):
    file = tmp_path / "loading.json"
    line = ["--size", "small", "--rounds", "1", "--output", str(file)]
    report = benchmark_loading.main(line)
    assert Report.load(file) == report
    sizes, seconds = report.tables.values()
    models = [row["model"] for row in sizes]
    peers = ["VisionEncoderDecoder", "ClipCap prefix", "GIT", "BLIP"]
    assert models == ["the two frozen models", "I-Tuning", "PEFT adapter", *peers]
    assert sizes[1]["weights / I-Tuning"] == 1 < sizes[3]["weights / I-Tuning"]
    assert [row["way"] for row in seconds if not row["way"].startswith("read")] == [
        SWITCH,
        ONTO_BACKBONES,
        "PEFT adapter onto GPT-2 in memory",
        "I-Tuning, whole",
        *(f"{name}, whole" for name in peers if "prefix" not in name),
    ]
    assert all(row["median s"] > 0 and row["cold s"] > 0 for row in seconds)
    assert all(row["over reading"] == 1 for row in seconds if row["way"].startswith("read"))


def test_the_targets_beside_what_was_measured():
    rows = benchmark_loading.target_rows(Timings({ONTO_BACKBONES: [0.2], SWITCH: [0.05, 0.1, 0.3]}))
    assert [(row["measured"], row["met"]) for row in rows] == [(0.2, "no"), (0.1, "yes")]


def test_its_help(capsys):
    with pytest.raises(SystemExit):
        benchmark_loading.main(["--help"])
    assert "by its own `save_pretrained`" in capsys.readouterr().out
