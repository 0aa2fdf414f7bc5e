"""The code in the README, in docs/ and in docstrings runs."""

import doctest
import importlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loopback_hub import running_hub, use_hub
from PIL import Image
from small_benchmarks import write_photos
from small_models import TEXT, randomize_adapters
from small_tokenizers import save_tokenizer_of
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import ituning_hf
from ituning_hf import ITuningForCaptioning, ITuningProcessor, cli, save_captioner
from ituning_hf.captioner import decoders_ituning, encoders_ituning
from ituning_hf.cli.app import parse_arguments as parse_app
from ituning_hf.cli.evaluate import parse_arguments as parse_evaluate
from ituning_hf.cli.features import parse_arguments as parse_features
from ituning_hf.cli.serve import parse_arguments as parse_serve
from ituning_hf.cli.train import parse_arguments as parse_train

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(ituning_hf.__file__).parent
PAGES = ["README.md", "SECURITY.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
CLIP, GPT2 = "openai/clip-vit-base-patch16", "gpt2"
SIGLIP2, SMOLLM2 = "google/siglip2-base-patch16-224", "HuggingFaceTB/SmolLM2-135M"
# Their data cannot be shipped: tests/test_recipes.py runs the recipes.
PARSED_ONLY = "docs/benchmarks.md"
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if re.search(r"^ *>>> (?!.*# doctest: \+SKIP)", path.read_text(encoding="utf-8"), re.MULTILINE)
]


def read_blocks(page: str) -> list[tuple[str, str]]:
    """Return the language and the text of each code block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def read_commands(block: str) -> list[list[str]]:
    """Return the words of each command of a shell block."""
    lines = block.replace("\\\n", " ").splitlines()
    commands = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [words for words in commands if words]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("page", PAGES)
def test_linked_and_named_files_exist(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    named = re.findall(r"`((?:tests|examples|docs|ituning_hf)/[\w/.]*)`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_the_page_of_supported_models_lists_the_families():
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| [^|]+ \| `(\w+)` \|", page, re.MULTILINE)
    families = [*encoders_ituning._FAMILIES.values(), *decoders_ituning.DECODER_FAMILIES.values()]
    assert listed == [family.model_class.__name__ for family in families]


@pytest.fixture(scope="module")
def template(backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder "work" with photographs and a captioner, and beside it the captioner's language model."""
    root = tmp_path_factory.mktemp("documentation")
    shutil.copytree(backbones["text"], root / "gpt2")
    # Longer than the default --max_caption_tokens.
    config = GPT2Config.from_pretrained(root / "gpt2", **TEXT | {"n_positions": 72})
    GPT2LMHeadModel(config).save_pretrained(root / "gpt2")
    save_siglip2_and_smollm2(root)
    folder = root / "work"
    write_photos(folder / "photos", 20)
    for name in ("dog.jpg", "bike.jpg", "new/0.jpg", "more/0.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "photos" / "0.png", folder / name)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "run.yaml").write_text("seed: 1\n")
    with hub_of_pages(backbones["clip"], root, root / "home"):
        model = ITuningForCaptioning.from_vision_text_pretrained(CLIP, GPT2, adapter_hidden_size=12)
        processor = ITuningProcessor.from_vision_text_pretrained(CLIP, GPT2)
        save_captioner(randomize_adapters(model), processor, folder / "outputs" / "captioner" / "best")
    return root


def save_siglip2_and_smollm2(root: Path) -> None:
    """Save small models of these types, as they are on the Hub: a full SigLIP, and a Llama."""
    size = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    parts = {"vision_config": size | {"image_size": 30, "patch_size": 10}, "text_config": size}
    SiglipModel(SiglipConfig(**parts)).save_pretrained(root / SIGLIP2)
    SiglipImageProcessorPil(size={"height": 30, "width": 30}).save_pretrained(root / SIGLIP2)
    tokenizer = save_tokenizer_of("gpt2", root / SMOLLM2)
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**size, num_key_value_heads=1, vocab_size=len(tokenizer), **tokens)
    LlamaForCausalLM(config).save_pretrained(root / SMOLLM2)


@contextmanager
def hub_of_pages(clip: Path, models: Path, home: Path) -> Iterator[None]:
    """Use a Hub that has small models under the names in the pages."""
    others = {name: models / name for name in (GPT2, SIGLIP2, SMOLLM2)}
    with (
        pytest.MonkeyPatch.context() as patch,
        running_hub({CLIP: clip, **others}) as hub,
        use_hub(hub.endpoint, home, "writer"),
    ):
        patch.delenv("HF_HUB_OFFLINE")
        yield


@pytest.fixture
def workplace(
    backbones: dict[str, Path], template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, object]]:
    """The folder of the template, and the Hub; the value is the namespace of the Python blocks."""
    for part in ("work", "gpt2"):
        shutil.copytree(template / part, tmp_path / part, symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PATH", str(tmp_path))  # without Java, whose programs are slow to start
    with hub_of_pages(backbones["clip"], template, tmp_path / "home"):
        images = [Image.new("RGB", (40, 34), colour) for colour in ("red", "blue")]
        yield {"images": images, "captions": [["a red square", "a square"], ["a blue one"]]}


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute in the model")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("page", [page for page in PAGES if read_blocks(page)])
def test_code_blocks_run(page: str, workplace: dict[str, object]):
    if not any("--output_dir outputs/mine" in text for _, text in read_blocks(page)):
        shutil.copytree("outputs/captioner", "outputs/mine")
    for language, text in read_blocks(page):
        if text.startswith(("# ituning_hf/", "# tests/")):
            continue  # test_remote_code.py adds it to this file
        if language == "python":
            exec(text, workplace)  # our own text
        elif language == "json":
            json.loads(text)
        elif language == "bash":
            for words in read_commands(text):
                run_command(words, page)
        else:
            assert language in ("", "bibtex")


def run_command(words: list[str], page: str) -> None:
    """Run an `ituning` command in this process; check that others name files and options that exist."""
    line = shlex.join(words)
    if "--num_scenes" in words:  # as many as in the page take minutes
        words[words.index("--num_scenes") + 1] = "10"
    if words[:2] == ["ituning", "train"]:
        words += ["--num_train_epochs", "1"]
    if words[1:2] in (["train"], ["evaluate"]) or words[1:3] == ["features", "build"]:
        words += ["--dataloader_num_workers", "0"]
    if words[:2] == ["ituning", "app"]:  # runs until Ctrl-C
        parse_app(words[2:])
    elif words[:2] == ["ituning", "serve"]:  # runs until a signal
        parse_serve(words[2:])
    elif words[0] == "ituning" and page != PARSED_ONLY:
        assert cli.main(words[1:]) == 0, line
    elif words[:2] == ["ituning", "train"] or "examples/train.py" in words:
        start = words.index("examples/train.py") if "examples/train.py" in words else 1
        parse_train(words[start + 1 :])
    elif words[:2] == ["ituning", "evaluate"]:
        parse_evaluate(words[2:])
    elif words[:3] == ["ituning", "features", "build"]:
        parse_features(words[3:])
    elif words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file(), line
    else:
        known = ("pip", "python", "python3", ".", "ruff", "mypy", "torchrun", "srun", "curl")
        assert words[0] in known, f"{page} has an unknown command: {line}"
