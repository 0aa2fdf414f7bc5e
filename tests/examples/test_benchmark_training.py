"""The benchmark of training: what it compares is what it says, and it runs."""

import json
from pathlib import Path

import benchmark_training
import pytest
import torch
from benchmarks.peers import CROSS_ATTENTION, PEERS, VisionEncoderDecoder, peer_names
from benchmarks.sizes import captioner_config
from benchmarks.training_growth import AXES
from benchmarks.training_ways import (
    FLOOR,
    IN_BF16,
    NO_OPTIMIZER,
    NO_PADDING,
    OWN_WAYS,
    PICTURES,
    STORED,
    UPPER_HALF,
    Step,
    StepSettings,
    way_names,
)

SETTINGS = StepSettings(size="small", num_images=2, captions_per_image=3)
WAYS = way_names("small", "float32")


def trained_parameters(step: Step) -> dict[str, torch.Tensor]:
    return {name: p for name, p in step.model.named_parameters() if p.requires_grad}


def test_the_floors_and_an_untrained_captioner_have_one_loss():
    steps = {name: Step(name, SETTINGS) for name in OWN_WAYS if name != IN_BF16}
    batch = SETTINGS.batch(seed=5)
    assert (batch.attention_mask == 0).any()
    losses = {name: step.loss(batch) for name, step in steps.items()}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, losses[FLOOR].detach(), msg=name, check_stride=False)
    labels = (batch.labels[:, 1:] != -100).sum()
    torch.testing.assert_close(losses[NO_PADDING] * labels, losses[STORED] * labels, rtol=1e-6, atol=1e-4)


def test_the_floors_reach_their_inputs_and_train_nothing():
    for name in (FLOOR, NO_PADDING, "floor, stock loss"):
        step = Step(name, SETTINGS)
        inputs = []
        embed = step.way.embed
        step.way.embed = lambda ids, embed=embed, inputs=inputs: inputs.append(embed(ids)) or inputs[-1]
        step()
        assert inputs[0].grad.abs().sum() > 0, name
        assert step.optimizer is None
        assert not trained_parameters(step)


def test_what_is_trained():
    config = captioner_config("small")
    width, depth, vision = 64, 2, 64
    adapter = 2 * (width * 32 + vision * 32) + 3 * 32 + width  # r = d / 2
    cross = 4 * (width * width + width) + 2 * width  # its layer norm, queries, keys and values, output
    counts = {
        name: sum(p.numel() for p in trained_parameters(Step(name, SETTINGS)).values()) for name in WAYS
    }
    mlp = (vision * 320 + 320) + (320 * 640 + 640)
    everything = sum(p.numel() for p in VisionEncoderDecoder(config, train_all=True).model.parameters())
    assert counts | {"GIT": 0, "BLIP": 0} == {
        **dict.fromkeys((FLOOR, NO_PADDING, "floor, stock loss"), 0),
        **dict.fromkeys((STORED, NO_OPTIMIZER, IN_BF16, PICTURES), depth * adapter),
        UPPER_HALF: adapter,
        CROSS_ATTENTION: depth * cross,
        f"{CROSS_ATTENTION}, encoder shared by hand": depth * cross,
        "VisionEncoderDecoder": everything,
        "GIT": 0,
        "BLIP": 0,
        "ClipCap prefix": mlp,
        "ClipCap prefix, stored features": mlp,
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for dtype in ("float32", "bfloat16") for name in way_names("small", dtype)],
)
def test_a_step_changes_what_it_trains_and_nothing_else(name: str, dtype: str):
    step = Step(name, StepSettings(size="small", captions_per_image=2, dtype=dtype))
    before = {key: p.detach().clone() for key, p in step.model.named_parameters()}
    step()
    step()
    changed = {key for key, p in step.model.named_parameters() if not torch.equal(p, before[key])}
    trained = set(trained_parameters(step))
    assert changed <= trained
    if name == NO_OPTIMIZER or not trained:
        assert not changed
    elif name in OWN_WAYS:
        assert changed == trained
        assert {p.dtype for p in trained_parameters(step).values()} == {torch.float32}
    else:
        assert changed


def test_the_frozen_weights_of_a_run_are_shared_but_for_those_in_bf16():
    weights = {name: Step(name, SETTINGS).model for name in (FLOOR, STORED, IN_BF16)}
    embeddings = {name: model.get_input_embeddings().weight for name, model in weights.items()}
    assert embeddings[FLOOR] is embeddings[STORED]
    assert embeddings[FLOOR].dtype == torch.float32
    assert embeddings[IN_BF16].dtype == torch.bfloat16


def test_sharing_the_encoder_by_hand_changes_no_loss():
    peer = VisionEncoderDecoder(captioner_config("small"))
    peer.model.eval()  # dropout is by chance
    batch = SETTINGS.batch(seed=1)
    repeated = peer.loss(batch)
    peer.by_hand = True
    torch.testing.assert_close(peer.loss(batch), repeated)


def test_git_and_blip_are_compared_where_they_were_made():
    assert peer_names("base") == list(PEERS)
    assert {*PEERS} - {*peer_names("medium")} == {"GIT", "BLIP"}


def test_it_prints_and_saves_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "report.json"
    flags = ["--size", "small", "--rounds", "2", "--no_memory", "--output", str(output)]
    report = benchmark_training.main([*flags, "--ways", FLOOR, STORED, CROSS_ATTENTION])
    assert json.loads(output.read_text())["tables"] == report.tables
    time, sizes, _, arithmetic = report.tables.values()
    assert [row["way"] for row in time] == [FLOOR, STORED, CROSS_ATTENTION]
    assert time[0]["over floor"] == time[2]["over cross-att."] == 1.0
    assert [row["trainable"] for row in sizes] == [0, 16_704, 33_536]
    assert sizes[0]["checkpoint, bytes"] is None
    assert 4 * 16_704 < sizes[1]["checkpoint, bytes"] < 4 * 16_704 + 4_000
    assert arithmetic[1]["COCO run, min"] is None
    out = capsys.readouterr().out
    assert "No GPU was measured" in out
    assert "targets" not in out  # set for Base size


def test_targets_are_met_or_not():
    met = {"way": STORED, "over floor": 1.2, "over cross-att.": 0.19}
    rows = {row["what"]: row for row in benchmark_training.judge([met])}
    assert rows["step from stored features, over the floor"]["met"] == "yes"
    assert rows[f"step from stored features, over {CROSS_ATTENTION}"] == {
        "what": f"step from stored features, over {CROSS_ATTENTION}",
        "at most": 0.18,
        "measured": 0.19,
        "met": "no",
    }
    assert rows[f"step from pictures, over {CROSS_ATTENTION}"]["met"] == "not measured"


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("batch", "1 2"),
        ("captions", "1 4"),
        ("length", "3 5"),
        ("image_tokens", "50 101"),
        ("decoder", "small"),
    ],
)
def test_growth(axis: str, values: str):
    flags = ["--size", "small", "--rounds", "1", "--growth", axis, "--ways", FLOOR, STORED]
    report = benchmark_training.main([*flags, "--values", *values.split()])
    seconds, over = report.tables.values()
    assert [str(row[AXES[axis].label]) for row in seconds] == values.split()
    assert all(row[STORED] > 0 for row in seconds)
    assert all(row[FLOOR] == 1 for row in over)


@pytest.mark.parametrize(
    ("axis", "value", "message"),
    [
        ("batch", "0", "has 0, expected whole numbers from 1."),
        ("image_tokens", "49", "has 49, expected some of 50, 101, 197, 325, 577."),
        ("decoder", "7", "has 7, expected some of small, base, medium, large."),
        ("length", "a", "has 'a', expected whole numbers from 1 to 500."),
        ("length", "501", "has 501, expected whole numbers from 1 to 500."),
        ("captions", "2 1", "are 2 1, expected them from small to large, each once."),
    ],
)
def test_values_that_an_axis_does_not_have(axis: str, value: str, message: str, capsys):
    with pytest.raises(SystemExit):
        benchmark_training.main(["--growth", axis, "--values", *value.split()])
    assert f"error: --values {message}\n" in capsys.readouterr().err


def test_growth_names_its_axis(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        benchmark_training.main(["--values", "1", "2"])
    assert "--values and --plots are of --growth: say along what." in capsys.readouterr().err


def test_the_floor_without_padding_is_as_wide_as_an_images_captions():
    settings = StepSettings(size="small", num_images=3, captions_per_image=4, length=5)
    step = Step(NO_PADDING, settings)
    shapes = []
    embed = step.way.embed
    step.way.embed = lambda ids: shapes.append(ids.shape) or embed(ids)
    step()
    assert shapes == [(3, 4 * 6)]  # begin token and words; nothing is said after the end token


def test_default_values_are_fewer_on_a_cpu():
    assert AXES["batch"].parse(None, "cpu") == (1, 2, 4, 8)
    assert AXES["batch"].parse(None, "cuda")[-1] == 64
