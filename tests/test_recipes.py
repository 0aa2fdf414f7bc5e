"""The shipped recipes: every line is marked, the sizes do not drift, and each runs on data of its layout."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from small_models import SHARED_DATA
from stand_in_data import COCO, FLICKR, NOCAPS, make_all
from transformers import CLIPVisionConfig, GPT2Config

from ituning_hf import ITuningConfig, ITuningForCaptioning, ITuningProcessor, cli, save_captioner
from ituning_hf.cli.evaluate import parse_arguments as parse_evaluation
from ituning_hf.cli.evaluate import run as evaluate
from ituning_hf.cli.features import parse_arguments as parse_build
from ituning_hf.cli.train import parse_arguments as parse_training
from ituning_hf.cli.train import run as train
from ituning_hf.data import benchmarks
from ituning_hf.evaluation.arguments import EvaluateArguments
from ituning_hf.features.store import FeatureStore
from ituning_hf.hub.inspection import describe_config
from ituning_hf.training.setup import SCENE_BACKBONES

CONFIGS = Path(__file__).resolve().parents[1] / "examples" / "configs"
SIZES = ("base", "medium", "large")
TRAINED = ("coco", "flickr30k", "flickr8k", "my_photos")
EVALUATED = ("coco_test", "flickr30k_test", "flickr8k_test", "nocaps_val", "nocaps_test")
MARKED_LINE = re.compile(r"(?P<key>\w+): (?P<value>.+?) +# (paper|remembered|chosen): \S.*")

# The lines that a size explains, and their values at each.
BY_SIZE = {
    "text_model": ("gpt2", "gpt2-medium", "gpt2-large"),
    "learning_rate": ("5e-4", "3e-4", "2e-4"),
    "per_device_train_batch_size": ("64", "32", "16"),
    "gradient_accumulation_steps": ("1", "2", "4"),
}
BY_SIZE_OF_PHOTOS = BY_SIZE | {
    "per_device_train_batch_size": ("16", "16", "8"),
    "gradient_accumulation_steps": ("1", "1", "2"),
}
TRAINABLE = ("14,178,816", "44,101,632", "94,487,040")


def recipe(name: str, size: str) -> Path:
    """The file of a data set at a size; of one's own photographs, Base has no size in its name."""
    return CONFIGS / (f"{name}.yaml" if (name, size) == ("my_photos", "base") else f"{name}_{size}.yaml")


TRAINING = [recipe(name, size) for name in TRAINED for size in SIZES]
EVALUATION = [recipe(name, size) for name in EVALUATED for size in SIZES]
each_recipe = pytest.mark.parametrize("path", TRAINING + EVALUATION, ids=lambda path: path.stem)


def read(path: Path) -> tuple[list[str], dict[str, str]]:
    """A recipe's comments, and its settings as they are written."""
    lines = path.read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    settings = [MARKED_LINE.fullmatch(line) for line in lines if line and not line.startswith("#")]
    assert None not in settings, [line for line in lines if line and not MARKED_LINE.fullmatch(line)]
    return comments, {match["key"]: match["value"] for match in settings}


def commands(path: Path) -> list[list[str]]:
    """The command lines in a recipe's comments, without the program's name."""
    text = "\n".join(read(path)[0]).replace("\\\n#", "")
    return [shlex.split(line)[1:] for line in re.findall(r"^# +(ituning .*)$", text, flags=re.MULTILINE)]


@pytest.fixture(scope="module")
def stores() -> dict[str, str]:
    """The data set of each folder of features that the recipes' commands build."""
    found = {}
    for command in (command for path in TRAINING + EVALUATION for command in commands(path)):
        if command[0] == "features":
            args = parse_build(command[2:])
            assert args.vision_model == "openai/clip-vit-base-patch16"
            assert found.setdefault(args.output_dir, args.dataset) == args.dataset
    return found


def test_these_are_all() -> None:
    assert sorted(CONFIGS.glob("*")) == sorted(TRAINING + EVALUATION)


@each_recipe
def test_every_line_is_marked_and_read(path: Path) -> None:
    comments, settings = read(path)
    legend = re.findall(r"^#   (\w+) ", "\n".join(comments), flags=re.MULTILINE)
    assert legend == ["paper", "remembered", "chosen"]
    assert max(map(len, path.read_text().splitlines())) <= 110
    assert settings.keys() == yaml.safe_load(path.read_text()).keys()
    parse = parse_training if path in TRAINING else parse_evaluation
    args = parse(["--config", str(path)]).to_dict()
    for key, value in settings.items():
        expected = {"none": ([], None), "[crop]": (["crop"],)}.get(value, (value,))
        assert args[key] in expected or float(args[key]) == float(value), key


@each_recipe
def test_its_commands_are_understood(path: Path, stores: dict[str, str], monkeypatch) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])
    found = [command for command in commands(path) if command[0] != "features"]
    verb = "train" if path in TRAINING else "evaluate"
    assert found[0] == [verb, "--config", f"examples/configs/{path.name}", "--dry_run"]
    assert found[1] == found[0][:-1]  # one command: all else stands in the file
    parsed = [(parse_training if verb == "train" else parse_evaluation)(flags) for verb, *flags in found]
    stored = [args for args in parsed if args.features is not None]
    assert len(stored) == (2 if path in TRAINING else 1)
    for args in stored:
        assert stores[args.features] == args.dataset
    for args in parsed[2:]:  # what was trained is what is evaluated
        if path in TRAINING and isinstance(args, EvaluateArguments):
            assert (args.model, args.dataset) == (f"{parsed[0].output_dir}/best", parsed[0].dataset)


@pytest.mark.parametrize("name", TRAINED + EVALUATED)
def test_sizes_differ_only_in_what_size_explains(name: str) -> None:
    paths = [recipe(name, size) for size in SIZES]
    texts = [path.read_text() for path in paths]
    by_size = {} if name in EVALUATED else BY_SIZE_OF_PHOTOS if name == "my_photos" else BY_SIZE
    assert {key: tuple(read(path)[1][key] for path in paths) for key in by_size} == by_size
    neutral = []
    for text, path in zip(texts, paths, strict=True):
        size = path.stem.removeprefix(name).removeprefix("_") or "base"
        rest = [line for line in text.splitlines() if line.partition(":")[0] not in by_size]
        rest[0] = re.sub(r"I-Tuning (Base|Medium|Large)|GPT-2( medium| large)?|[\d,]{9,}", "*", rest[0])
        rest = [re.sub(rf"_{size}(?![a-z])", "", line) for line in rest]
        neutral.append([re.sub(" +#", " #", line) for line in rest])
    assert neutral[0] == neutral[1] == neutral[2]


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_sees_as_many_images_at_each_size(name: str) -> None:
    settings = [read(recipe(name, size))[1] for size in SIZES]
    steps = {int(s["per_device_train_batch_size"]) * int(s["gradient_accumulation_steps"]) for s in settings}
    assert steps == {16 if name == "my_photos" else 64}


def test_the_counts_are_the_benchmarks() -> None:
    data = {"coco": benchmarks.COCO, "flickr30k": benchmarks.FLICKR30K, "flickr8k": benchmarks.FLICKR8K}
    for name, benchmark in data.items():
        for size in SIZES:
            args = parse_training(["--config", str(recipe(name, size))])
            assert args.expected_train_images == benchmark.num_train_images
            assert args.expected_eval_images == benchmark.splits[args.eval_split]
    for name in EVALUATED:
        for size in SIZES:
            args = parse_evaluation(["--config", str(recipe(name, size))])
            benchmark = data.get(name.partition("_")[0], benchmarks.NOCAPS)
            assert args.expected_images == benchmark.splits[args.split]
    for split, domains in benchmarks.NOCAPS_DOMAINS.items():
        line = next(
            x for x in recipe(f"nocaps_{split}", "base").read_text().splitlines() if "expected_images" in x
        )
        for number in domains.values():
            assert f"{number:,} " in line


@pytest.mark.parametrize(
    ("size", "width", "layers", "heads", "trainable"),
    [
        ("base", 768, 12, 12, TRAINABLE[0]),
        ("medium", 1024, 24, 16, TRAINABLE[1]),
        ("large", 1280, 36, 20, TRAINABLE[2]),
    ],
)
def test_the_trained_parameters_are_what_the_recipe_says(
    size: str, width: int, layers: int, heads: int, trainable: str
) -> None:
    args = parse_training(["--config", str(recipe("coco", size))])
    vision = CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16
    )
    config = ITuningConfig(
        vision_config=vision.to_dict(),
        text_config=GPT2Config(n_embd=width, n_layer=layers, n_head=heads).to_dict(),
        adapter_hidden_size=args.adapter_hidden_size,
        adapter_layers=args.adapter_layers,
    )
    assert f"{describe_config(config)['parameters']['trainable']:,}" == trainable
    for name in TRAINED[:3]:
        assert f"{trainable} trained parameters." in recipe(name, size).read_text().splitlines()[0]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds small data of each layout, where the recipes look for it."""
    return make_all(tmp_path_factory.mktemp("stand_ins"))


@pytest.fixture(scope="module")
def captioner_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained captioner over the small backbones that come with the package."""
    folder = tmp_path_factory.mktemp("captioner")
    backbones = (str(SCENE_BACKBONES / "vision"), str(SCENE_BACKBONES / "text"))
    model = ITuningForCaptioning.from_vision_text_pretrained(*backbones)
    save_captioner(model, ITuningProcessor.from_vision_text_pretrained(*backbones), folder)
    return str(folder)


SMALL = [
    *("--dataloader_num_workers", "0"),
    *("--vision_model", str(SCENE_BACKBONES / "vision")),
    *("--text_model", str(SCENE_BACKBONES / "text")),
]
COUNTS = {
    "coco": (COCO["train"] + COCO["restval"], COCO["val"]),
    "flickr30k": (FLICKR["train"], FLICKR["val"]),
    "flickr8k": (FLICKR["train"], FLICKR["val"]),
}
TEST_COUNTS = {
    "coco_test": COCO["test"],
    "flickr30k_test": FLICKR["test"],
    "flickr8k_test": FLICKR["test"],
    "nocaps_val": NOCAPS["val"],
    "nocaps_test": NOCAPS["test"],
}


def name_of(path: Path) -> str:
    return re.sub(r"_(base|medium|large)$", "", path.stem)


def expecting(train_images: int, eval_images: int) -> list[str]:
    return ["--expected_train_images", str(train_images), "--expected_eval_images", str(eval_images)]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_training_runs_dry(path: Path, stand_ins: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(stand_ins)
    counts = COUNTS.get(name_of(path))
    changes = [*SMALL, *(expecting(*counts) if counts else [])]
    assert train(["--config", str(path), "--dry_run", *changes]) == 0
    said = capsys.readouterr().out
    train_images, eval_images = counts or (28, 2)  # ten in a hundred of 30, by lot
    assert f"\nImages     {train_images} to train on, {eval_images} for validation\n" in said
    args = parse_training(["--config", str(path)])
    assert f"\nOutput     {args.output_dir}\n" in said
    assert f"all ({args.num_train_epochs:g} epochs)\n" in said
    assert not (stand_ins / "outputs").exists()


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_training_goes_on_by_the_same_command(path: Path) -> None:
    assert parse_training(["--config", str(path)]).resume_from_checkpoint == "latest"


def test_the_same_command_starts_a_run_and_says_that_it_is_complete(
    stand_ins: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    shutil.copytree(stand_ins / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    changes = ["--max_train_steps", "1", "--mixed_precision", "no", "--eval_caption_images", "0"]
    command = ["--config", str(recipe("my_photos", "base")), *SMALL, *changes]
    assert train(command) == 0
    assert "\nThere is no checkpoint to resume from yet: " in f"\n{capsys.readouterr().out}"
    assert train(command) == 0
    assert "\nThis run is complete: there is nothing left to do.\n" in capsys.readouterr().out


@pytest.mark.parametrize("path", EVALUATION, ids=lambda path: path.stem)
def test_evaluation_runs_dry(path: Path, stand_ins: Path, captioner_folder: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(stand_ins)
    changes = ["--model", captioner_folder, "--expected_images", str(TEST_COUNTS[name_of(path)])]
    assert evaluate(["--config", str(path), "--dry_run", *changes]) == 0
    args = parse_evaluation(["--config", str(path)])
    assert f"{TEST_COUNTS[name_of(path)]} of {args.dataset_name}, {args.split}" in capsys.readouterr().out
    assert not (stand_ins / "outputs").exists()


@pytest.mark.parametrize("name", [*TRAINED, "nocaps_val", "nocaps_test"])
def test_stored_features_stand_in_for_the_pictures(
    name: str, stand_ins: Path, tmp_path: Path, captioner_folder: str, monkeypatch, capsys
) -> None:
    path, store = recipe(name, "base"), str(tmp_path / "store")
    for files in ("data", "photos"):
        shutil.copytree(stand_ins / files, tmp_path / files)
    monkeypatch.chdir(tmp_path)
    (build,) = (command for command in commands(path) if command[0] == "features")
    assert cli.main([*build, "--vision_model", str(SCENE_BACKBONES / "vision"), "--output_dir", store]) == 0
    counts = {"coco": sum(COCO.values()), "my_photos": 30, "nocaps_val": 4, "nocaps_test": 3}
    assert len(FeatureStore(store).names) == counts.get(name, sum(FLICKR.values()))
    for picture in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")]:
        picture.unlink()
    run = ["--config", str(path), "--dry_run", "--features", store]
    if name in TRAINED:
        changes = [*SMALL, *(expecting(*COUNTS[name]) if name in COUNTS else ["--augmentation", "none"])]
        assert train([*run, *changes]) == 0
    else:
        changes = ["--model", captioner_folder, "--expected_images", str(TEST_COUNTS[name])]
        assert evaluate([*run, *changes]) == 0


def test_a_copy_that_is_too_small_is_refused_at_once(stand_ins: Path, monkeypatch) -> None:
    monkeypatch.chdir(stand_ins)
    message = (
        r"^--expected_train_images is 113,287, .* 11 images \(in all: train 7, restval 4, val 3, test 2\)"
    )
    with pytest.raises(ValueError, match=message):
        train(["--config", str(recipe("coco", "large"))])  # before the models are looked for
    message = r"^--expected_eval_images is 1,014, .* has 3 images"
    with pytest.raises(ValueError, match=message):
        train(["--config", str(recipe("flickr30k", "base")), "--expected_train_images", "6"])
    assert not (stand_ins / "outputs").exists()


def test_an_evaluation_of_too_few_is_refused_at_once(stand_ins: Path, monkeypatch) -> None:
    monkeypatch.chdir(stand_ins)
    message = r"^--expected_images is 4,500, .* has 4 images \(in all: val 4\)"
    with pytest.raises(ValueError, match=message):
        evaluate(["--config", str(recipe("nocaps_val", "base"))])
    assert not (stand_ins / "outputs").exists()


def test_a_copy_without_restval_is_told(stand_ins: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(stand_ins / "data" / "coco", tmp_path / "data" / "coco")
    path = tmp_path / "data" / "coco" / "dataset_coco.json"
    content = json.loads(path.read_text())
    content["images"] = [entry for entry in content["images"] if entry["split"] != "restval"]
    path.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"has 7 images \(in all: train 7, val 3, test 2\)"):
        train(["--config", str(recipe("coco", "base"))])


def test_a_folder_of_pictures_that_was_forgotten_is_named(
    stand_ins: Path, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(stand_ins / "data" / "coco", tmp_path / "data" / "coco")
    shutil.rmtree(tmp_path / "data" / "coco" / "val2014")
    monkeypatch.chdir(tmp_path)
    message = r"^4 of 11 images are missing .* 4 of 4 in data/coco/val2014"
    with pytest.raises(FileNotFoundError, match=message):
        train(["--config", str(recipe("coco", "base"))])


def test_nocaps_is_not_trained_on(stand_ins: Path, monkeypatch) -> None:
    monkeypatch.chdir(stand_ins)
    for file, split in (("nocaps_val_4500_captions.json", "val"), ("nocaps_test_image_info.json", "test")):
        message = rf"{file} has no images of split 'train'; it has '{split}'"
        with pytest.raises(ValueError, match=message):
            train(["--config", str(recipe("coco", "base")), "--dataset", f"data/nocaps/{file}"])


def test_real_photographs_by_the_recipe_of_flickr8k(tmp_path: Path, monkeypatch, capsys) -> None:
    path = SHARED_DATA / "flickr8k-mini" / "dataset_flickr8k_mini.json"
    if not path.is_file():
        pytest.skip(f"no photographs at {path.parent}")
    monkeypatch.chdir(tmp_path)
    config = ["--config", str(recipe("flickr8k", "base")), "--dataset", str(path), "--dry_run", *SMALL]
    assert train([*config, *expecting(762, 113)]) == 0
    assert "\nImages     762 to train on, 113 for validation\n" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"^--expected_train_images is 6,000, and .*val 1,000 expected, 113 found; test"
    ):
        train(config)
