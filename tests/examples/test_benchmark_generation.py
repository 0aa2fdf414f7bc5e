"""The benchmark of generation runs each way, and compares none that gives other captions than it must."""

import dataclasses
import json
import re

import benchmark_generation
import pytest
import torch
from benchmarks import generation_ways
from benchmarks.generation_growth import AXES
from benchmarks.generation_profile import COLUMNS, PROJECTION, profile_call
from benchmarks.generation_ways import (
    ENCODER_DECODER,
    FEATURES,
    FLOOR,
    IN_BF16,
    IN_INT8,
    PEFT,
    PICTURES,
    WAYS,
    CaptionSettings,
    Models,
    build_ways,
    count_changed,
    way_names,
)
from benchmarks.report import Report
from benchmarks.rounds import Timings

SMALL = CaptionSettings(size="small", num_images=3, num_beams=2, new_tokens=4)


@pytest.fixture(scope="module")
def ways() -> dict:
    return build_ways(way_names(SMALL, compiled=False), SMALL)


def test_every_way_generates_as_many_tokens_for_each_picture(ways):
    assert [*ways] == [*WAYS]
    for name, generate in ways.items():
        # A generation from input embeddings returns the new tokens alone.
        assert generate().shape == (3, 4 if "prefix" in name else 5), name


def test_captions_depend_on_the_picture(ways):
    captions = ways[FEATURES]()
    assert not torch.equal(captions[0], captions[1])


def test_the_captioner_and_the_peft_method_give_the_same_captions(ways):
    changed = count_changed(ways, SMALL)
    same = {FEATURES, PICTURES, PEFT, f"{PEFT}, each step"}
    assert {name for name in changed if name not in (IN_BF16, IN_INT8)} == same
    assert all(changed[name] == 0 for name in same)


def test_ways_that_differ_are_not_compared(ways):
    other = {**ways, PEFT: lambda: ways[FEATURES]() + 1}
    with pytest.raises(RuntimeError, match=r"\['PEFT, stored features'\] give other captions"):
        count_changed(other, SMALL)
    in_bf16 = dataclasses.replace(SMALL, dtype="bfloat16")
    assert count_changed(other, in_bf16)[PEFT] == 3  # counted, as rounding may tip a caption


def test_everything_is_in_bf16_where_that_is_asked_for():
    models = Models(dataclasses.replace(SMALL, dtype="bfloat16"))
    for model in (models.gpt2, models.captioner, models.peft, models.peer("GIT").model):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert IN_BF16 not in way_names(models.settings, compiled=False)


def test_frozen_weights_alone_are_in_bf16():
    models = Models(SMALL)
    captioner = models.frozen_in(torch.bfloat16)
    precisions = {p.requires_grad: p.dtype for p in captioner.parameters()}
    assert precisions == {True: torch.float32, False: torch.bfloat16}
    assert {p.dtype for p in models.captioner.parameters()} == {torch.float32}


def test_the_size_is_the_papers_base():
    with torch.device("meta"):
        captioner = generation_ways.ITuningForCaptioning(CaptionSettings().config())
    assert sum(p.numel() for p in captioner.parameters() if p.requires_grad) == 14_178_816


def test_no_peer_beyond_its_size():
    names = way_names(CaptionSettings(size="large"), compiled=True)
    assert not {"GIT, pictures", "BLIP, pictures"} & {*names}
    assert f"{FEATURES}, greedy, compiled" in names


def test_its_tables(tmp_path, capsys):
    file = tmp_path / "generation.json"
    names = [FLOOR, FEATURES, PICTURES, ENCODER_DECODER]
    line = ["--size", "small", "--rounds", "2", "--new_tokens", "3", "--no_memory", "--output", str(file)]
    report = benchmark_generation.main([*line, "--ways", *names])
    assert Report.load(file) == report
    title, notes = report.tables
    assert title == "3 tokens for 2 pictures, 5 beams unless greedy"
    rows = {row["way"]: row for row in report.tables[title]}
    assert [*rows] == names == [row["way"] for row in report.tables[notes]]
    assert rows[FLOOR]["over floor"] == rows[ENCODER_DECODER]["over enc.-dec."] == 1
    assert rows[FEATURES]["captions changed"] == rows[PICTURES]["captions changed"] == 0
    assert rows[PICTURES]["images/s"] == pytest.approx(2 / rows[PICTURES]["median s"])
    assert rows[PICTURES]["ms a token"] == pytest.approx(1000 * rows[PICTURES]["median s"] / 3)
    assert re.search(rf"^{FEATURES} +\d", capsys.readouterr().out, re.MULTILINE)


def test_the_targets_beside_what_was_measured():
    seconds = {FLOOR: [2.0, 4.0], FEATURES: [2.0, 4.4], PICTURES: [3.0, 3.0], ENCODER_DECODER: [4.0, 4.0]}
    rows = benchmark_generation.target_rows(Timings(seconds))
    assert [(row["at most"], row["measured"], row["met"]) for row in rows] == [
        (1.05, pytest.approx(1.05), "yes"),
        (0.60, pytest.approx(0.75), "no"),
        (1.1, None, None),
        (0.5, None, None),
        (0.5, None, None),
    ]


def test_peak_memory_in_a_process_of_its_own():
    report = benchmark_generation.main(["--size", "small", "--rounds", "1", "--ways", FLOOR])
    (row,) = next(iter(report.tables.values()))
    assert row["peak MB"] >= row["of it the call"] >= 0


def test_where_the_time_goes():
    ways = build_ways([FLOOR, FEATURES], SMALL)
    parts = {name: profile_call(way, "cpu") for name, way in ways.items()}
    for name, seconds in parts.items():
        missing = {column for column in COLUMNS if seconds[column] == 0}
        absent = {"vision encoder"} if name == FEATURES else {"vision encoder", "cross-attention", PROJECTION}
        assert missing == absent
    report = benchmark_generation.main(["--size", "small", "--new_tokens", "2", "--profile"])
    shares = report.tables["the same, %"]
    assert [sum(row[c] for c in COLUMNS) for row in shares] == [pytest.approx(100)] * 5


def test_growth():
    assert AXES["beams"].change(SMALL, 7).num_beams == 7
    assert AXES["new_tokens"].change(SMALL, 9).new_tokens == 9
    assert AXES["image_tokens"].change(SMALL, 577).config().vision_config.image_size == 384
    line = ["--size", "small", "--rounds", "1", "--new_tokens", "2", "--ways", FLOOR, FEATURES]
    report = benchmark_generation.main([*line, "--growth", "beams", "--values", "1", "2"])
    rows = report.tables["seconds to caption, small"]
    assert [row[AXES["beams"].label] for row in rows] == [1, 2]
    assert report.tables["over bare GPT-2"][1][FLOOR] == 1
    json.dumps(dataclasses.asdict(report))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--images -1", "argument --images: '-1' is no positive whole number"),
        ("--new_tokens 501", "--new_tokens 501: not every decoder has places for over 500."),
        ("--profile --growth beams", "--profile and --growth are tables of their own: give one."),
        ("--compile --growth beams", "name them by --ways."),
        ("--ways GIT", "argument --ways: invalid choice: 'GIT'"),
        ("--size large --ways GIT,_pictures", r"['GIT, pictures'] cannot be measured at this --size"),
        ("--growth decoder --values base large --ways BLIP,_pictures", "cannot be measured at this --size"),
    ],
)
def test_flags_that_nothing_can_be_measured_with(flags, message, capsys):
    with pytest.raises(SystemExit):
        benchmark_generation.main([flag.replace(",_", ", ") for flag in flags.split()])
    assert message in capsys.readouterr().err
