"""The shipped recipes: the source of every value is marked, and each recipe runs on small data."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from small_benchmarks import COCO, FLICKR, NOCAPS, make_all

from ituning_hf import ITuningForCaptioning, ITuningProcessor, cli, save_captioner
from ituning_hf.cli.evaluate import parse_arguments as parse_evaluation
from ituning_hf.cli.features import parse_arguments as parse_build
from ituning_hf.cli.train import parse_arguments as parse_training
from ituning_hf.features.store import FeatureStore
from ituning_hf.hub.records import read_training_record
from ituning_hf.training.setup import SCENE_BACKBONES, with_backbones

RECIPES = Path(__file__).resolve().parents[1] / "examples" / "recipes"
TRAINED = ("coco", "flickr30k", "flickr8k", "my_photos")
EVERY = [*TRAINED, "cc3m", "coco_cider", "nocaps"]
PARSERS = {"train": parse_training, "evaluate": parse_evaluation}
MARKED_LINE = re.compile(r"(?P<key>\w+): (?P<value>.+?) +# (paper|remembered|chosen): \S.*")
DATA = {  # images of Karpathy's splits: train (COCO's with restval), val, test
    "coco": (113_287, 5_000, 5_000),
    "flickr30k": (29_000, 1_014, 1_000),
    "flickr8k": (6_000, 1_000, 1_000),
}
COUNTS = {  # of the small data: images to train on and to validate on
    "coco": (COCO["train"] + COCO["restval"], COCO["val"]),
    "flickr30k": (FLICKR["train"], FLICKR["val"]),
    "flickr8k": (FLICKR["train"], FLICKR["val"]),
}
BACKBONES = ["--vision_model", str(SCENE_BACKBONES / "vision"), "--text_model", str(SCENE_BACKBONES / "text")]
SMALL = [
    *BACKBONES,
    *("--dataloader_num_workers", "0", "--max_train_steps", "1", "--mixed_precision", "no"),
    *("--eval_caption_images", "0", "--num_sample_captions", "0", "--metric_for_best_model", "loss"),
]


def recipe(name: str) -> str:
    return str(RECIPES / f"{name}.yaml")


def commands(name: str) -> list[list[str]]:
    """The command lines in a recipe's comments, without the program's name."""
    text = Path(recipe(name)).read_text().replace("\\\n#", "")
    return [shlex.split(line)[1:] for line in re.findall(r"^# +(ituning .*\S)$", text, flags=re.MULTILINE)]


def expected(name: str) -> list[str]:
    if name not in COUNTS:
        return []
    train, evaluation = map(str, COUNTS[name])
    return ["--expected_train_images", train, "--expected_eval_images", evaluation]


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with small data of each layout where the recipes expect it."""
    monkeypatch.chdir(tmp_path)
    return make_all(tmp_path)


@pytest.mark.parametrize("name", EVERY)
def test_every_value_has_a_source_and_is_read(name: str) -> None:
    lines = Path(recipe(name)).read_text().splitlines()
    settings = [MARKED_LINE.fullmatch(line) for line in lines if line and not line.startswith("#")]
    values = {match["key"]: match["value"] for match in settings if match}
    assert values.keys() == yaml.safe_load("\n".join(lines)).keys()
    assert max(map(len, lines)) <= 110
    parse = parse_evaluation if name == "nocaps" else parse_training
    read = parse(["--config", recipe(name)]).to_dict()
    for key, value in values.items():
        expected = {"none": ([], None), "[crop]": (["crop"],), "true": (True,)}.get(value, (value,))
        assert read[key] in expected or float(read[key]) == float(value), key


def test_every_recipe_is_tested() -> None:
    assert sorted(path.stem for path in RECIPES.iterdir()) == sorted(EVERY)


@pytest.mark.parametrize("name", [*TRAINED, "nocaps"])
def test_commands_in_the_comments_are_valid_and_consistent(name: str, monkeypatch) -> None:
    monkeypatch.chdir(RECIPES.parents[1])
    parsed = [(verb, PARSERS[verb](flags)) for verb, *flags in commands(name) if verb != "features"]
    (build,) = (parse_build(flags) for verb, _, *flags in commands(name) if verb == "features")
    (stored,) = (args for _, args in parsed if args.features)
    assert (stored.features, stored.dataset) == (build.output_dir, build.dataset)
    runs = [args for verb, args in parsed if verb == "train"]
    if name == "nocaps":
        assert [args.expected_images for _, args in parsed] == [4500, 4500, 4500, 10_600, 4500]
        return
    sizes = {args.size: args for args in runs[:4]}
    text_models = [with_backbones(args).text_model for args in sizes.values()]
    assert text_models == ["gpt2", "gpt2-medium", "gpt2-large"]
    assert [args.learning_rate for args in sizes.values()] == [5e-4, 3e-4, 2e-4]
    images = {a.per_device_train_batch_size * a.gradient_accumulation_steps for a in sizes.values()}
    assert images == {16 if name == "my_photos" else 64}
    assert len({args.output_dir for args in sizes.values()}) == 3
    (evaluation,) = (args for verb, args in parsed if verb == "evaluate")
    assert (evaluation.model, evaluation.dataset) == (f"{runs[0].output_dir}/best", runs[0].dataset)
    if name in DATA:
        run = runs[0]
        counts = run.expected_train_images, run.expected_eval_images, evaluation.expected_images
        assert counts == DATA[name]


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_trains_and_the_same_command_resumes(name: str, small_data: Path, capsys) -> None:
    command = ["train", "--config", recipe(name), *SMALL, *expected(name)]
    assert cli.main(command) == 0
    assert (small_data / "outputs" / name / "last" / "model.safetensors").is_file()
    train, evaluation = COUNTS.get(name, (28, 2))  # val_share holds out ten in a hundred
    assert f"{train} to train on, {evaluation} for validation" in capsys.readouterr().out
    if name == "my_photos":
        assert cli.main(command) == 0
        assert "complete" in capsys.readouterr().out


def test_web_shards_then_coco_then_cider(small_data: Path, capsys) -> None:
    dry_run, train, further, evaluate = commands("cc3m")
    assert dry_run == [*train, "--dry_run"]
    further[further.index("--config") + 1] = recipe("coco")
    assert PARSERS["evaluate"](evaluate[1:]).model == f"{parse_training(further[1:]).output_dir}/best"
    small = [*SMALL, "--per_device_train_batch_size", "4", "--config"]
    assert cli.main(["train", *small, recipe("cc3m")]) == 0
    assert "3 tar shards to train on, 3 for validation" in capsys.readouterr().out
    assert cli.main([*further, *SMALL, *expected("coco")]) == 0
    record = read_training_record("outputs/cc3m_coco/last")
    assert record is not None
    assert record.settings["init_from"] == "cc3m/best"
    dry_run, train, evaluate = commands("coco_cider")
    assert dry_run == [*train, "--dry_run"]
    optimize = ["train", "--config", recipe("coco_cider")]
    evaluated = PARSERS["evaluate"](evaluate[1:]).model
    assert evaluated == f"{parse_training(optimize[1:]).output_dir}/best"
    optimize += ["--init_from", "outputs/cc3m_coco"]
    assert cli.main([*optimize, *SMALL, *expected("coco"), "--per_device_train_batch_size", "4"]) == 0


def test_stored_features_replace_the_images(small_data: Path) -> None:
    (build,) = (command for command in commands("coco") if command[0] == "features")
    assert cli.main([*build, "--vision_model", str(SCENE_BACKBONES / "vision")]) == 0
    assert len(FeatureStore("features/coco")) == sum(COCO.values())
    for picture in small_data.rglob("*.jpg"):
        picture.unlink()
    command = ["train", "--config", recipe("coco"), *SMALL, *expected("coco"), "--features", "features/coco"]
    assert cli.main(command) == 0


def test_nocaps_is_evaluated(small_data: Path) -> None:
    backbones = SCENE_BACKBONES / "vision", SCENE_BACKBONES / "text"
    model = ITuningForCaptioning.from_vision_text_pretrained(*backbones)
    save_captioner(model, ITuningProcessor.from_vision_text_pretrained(*backbones), "outputs/coco/best")
    small = ["--dataloader_num_workers", "0", "--max_new_tokens", "8", "--java", "false"]
    for flags in (command[1:] for command in (commands("nocaps")[1], commands("nocaps")[3])):
        count = NOCAPS["test" if "test" in flags else "val"]
        flags[flags.index("--config") + 1] = recipe("nocaps")
        assert cli.main(["evaluate", *flags, *small, "--expected_images", str(count)]) == 0
    assert (small_data / "outputs" / "nocaps_val" / "metrics.json").is_file()
    assert (small_data / "outputs" / "nocaps_test" / "results.json").is_file()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--config", recipe("coco"), *BACKBONES], "113,287.* 11 images"),
        (["evaluate", "--config", recipe("nocaps")], "4,500.* 4 images"),
    ],
)
def test_incomplete_data_is_refused(command: list[str], message: str, small_data: Path, capsys) -> None:
    assert cli.main(command) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (small_data / "outputs").exists()
