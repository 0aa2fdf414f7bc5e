"""Train a captioner of synthetic scenes with the bundled backbones, score it, save it and load it again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import ITuningProcessor
from ..data.columns import CaptionedImage, CaptionedImages
from ..inference.captioning import iter_captions
from ..inference.loading import load_captioner
from ..pages import image_url, render_page
from ..training.arguments import TrainArguments
from ..training.data import TrainingData
from ..training.run import train
from ..training.run_folder import RUN_FILE
from ..training.setup import SCENE_BACKBONES
from ..utils.devices import peak_resident_memory
from ..utils.files import write_json, write_text
from ..utils.terminal import format_bytes
from .scenes import UNSEEN_PAIRS, CaptionedScene, Scores, compose_scenes, score

SCRIPT = "use_it.py"
RESULT_FILE, PAGE, PICTURES = "demo.json", "index.html", "scenes"
NUM_VALIDATION = 100
NUM_SHOWN = 6  # captions of each kind in the table
NUM_PICTURES = 24  # of each kind on the page
NUM_RELOADED = 12  # captioned again in a new process


@dataclass(frozen=True)
class DemoResult:
    """The demo's results, also written to `demo.json`.

    Args:
        seed: Seed of the scenes and the adapters.
        held_out: Scores on scenes that were not trained on.
        unseen_pairs: Scores on scenes with a colour-shape pair that was not trained on.
        language_model_alone: Scores of the frozen language model without adapters on the held-out scenes.
        same_in_fresh_process: Whether the saved captioner generated the same captions in a new process.
        adapter_bytes: Size of the adapters' file.
        seconds: Duration of the demo.
        peak_memory_bytes: Peak resident memory of this process.
    """

    seed: int
    held_out: Scores
    unseen_pairs: Scores
    language_model_alone: Scores
    same_in_fresh_process: bool
    adapter_bytes: int
    seconds: float
    peak_memory_bytes: int


def run_demo(
    output_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    num_train: int = 3000,
    num_test: int = 200,
    train_steps: int = 600,
    report: Callable[[str], None] = print,
) -> DemoResult:
    """Train adapters between two small frozen models, caption new scenes, save and load the captioner.

    Args:
        output_dir: The folder for the captioner, the images and a page that shows them. It must be new,
            empty, or contain an interrupted demo, which is resumed.
        seed: Seed of the scenes and the adapters.
        num_train: Number of training scenes.
        num_test: Number of test scenes of known colour-shape pairs, and of unseen pairs.
        train_steps: Optimizer steps, of 32 scenes each.
        report: Called with each line of the output.

    Raises:
        UserError: for a seed or a number of steps out of range.
        FileExistsError: if `output_dir` contains anything but an interrupted demo.
    """
    started, folder = time.perf_counter(), Path(output_dir)
    settings = _settings(folder, seed, train_steps)
    _check_folder(folder)
    scenes = compose_scenes(seed, num_train, NUM_VALIDATION, num_test)

    report(_BACKBONES)
    alone = _caption(*_untrained(), scenes.held_out)
    report(
        f"Alone, the language model gives every image the same caption:\n  {shorten(alone[0].caption, 100)}"
    )

    pairs = ", ".join(" ".join(pair) for pair in sorted(UNSEEN_PAIRS))
    report(_TRAINING.format(num_train=num_train, pairs=pairs))
    train(settings, TrainingData(scenes.train, scenes.validation))

    report(f"\n3. Captioning {2 * num_test} scenes that were not trained on\n")
    captioner = load_captioner(folder / "best", device="cpu")
    held_out, unseen = (_caption(*captioner, part) for part in (scenes.held_out, scenes.unseen))
    parts = {"Scenes of known pairs": held_out, "Scenes with an unseen pair": unseen}
    for title, captioned in parts.items():
        report(title)
        for shown in captioned[:NUM_SHOWN]:
            report(f"  scene    {shown.truth}\n  caption  {shown.caption:<60} {shown.verdict}\n")

    report("\n4. Loading the saved captioner in a new process, with transformers alone\n")
    (folder / PICTURES).mkdir(exist_ok=True)
    for scene in scenes.held_out[:NUM_RELOADED]:
        scene.load().save(folder / PICTURES / f"{scene.name}.png")
    shutil.copy(Path(__file__).with_name(SCRIPT), folder)
    same = _captions_in_new_process(folder, held_out[:NUM_RELOADED])
    report(f"{NUM_RELOADED} captions by AutoModel.from_pretrained: {'the same' if same else 'NOT the same'}")

    result = DemoResult(
        seed=seed,
        held_out=score(held_out),
        unseen_pairs=score(unseen),
        language_model_alone=score(alone),
        same_in_fresh_process=same,
        adapter_bytes=(folder / "best" / "model.safetensors").stat().st_size,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=peak_resident_memory(),
    )
    write_json(folder / RESULT_FILE, asdict(result))
    first = [*scenes.held_out[:NUM_PICTURES], *scenes.unseen[:NUM_PICTURES]]
    pictures = {scene.name: _image_url(scene) for scene in first}
    first_parts = {title: captioned[:NUM_PICTURES] for title, captioned in parts.items()}
    html = render_page("demo.html.jinja", result=result, parts=first_parts, pictures=pictures)
    write_text(folder / PAGE, html)
    report(_summary(result, folder))
    return result


def _check_folder(folder: Path) -> None:
    """Refuse a folder that contains a finished demo or anything else but an interrupted run."""
    files = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if RESULT_FILE in files or (files and RUN_FILE not in files):
        content = "contains a finished demo" if RESULT_FILE in files else "is not empty"
        raise FileExistsError(f"--output_dir {folder} {content}: remove it, or choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)


def _settings(folder: Path, seed: int, train_steps: int) -> TrainArguments:
    return TrainArguments(
        vision_model=str(SCENE_BACKBONES / "vision"),
        text_model=str(SCENE_BACKBONES / "text"),
        captions_per_image=1,
        max_caption_tokens=32,
        max_train_steps=train_steps,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        mixed_precision="no",
        dataloader_num_workers=0,
        eval_steps=str(max(1, train_steps // 4)),
        checkpointing_steps=str(train_steps),
        num_sample_captions=3,
        seed=seed,
        output_dir=str(folder),
        resume_from_checkpoint="latest" if (folder / RUN_FILE).exists() else None,
    )


def _untrained() -> tuple[ITuningForCaptioning, ITuningProcessor]:
    """Return a captioner with untrained adapters, which do nothing: the language model alone."""
    backbones = SCENE_BACKBONES / "vision", SCENE_BACKBONES / "text"
    model = ITuningForCaptioning.from_vision_text_pretrained(*backbones)
    return model, ITuningProcessor.from_vision_text_pretrained(*backbones)


def _caption(
    model: ITuningForCaptioning, processor: ITuningProcessor, scenes: CaptionedImages
) -> list[CaptionedScene]:
    images = [scene.load() for scene in scenes]
    results = iter_captions(model, processor, images, num_beams=1, batch_size=50)
    return [
        CaptionedScene(scene.name, scene.captions[0], result.captions[0])
        for scene, result in zip(scenes, results, strict=True)
    ]


def _image_url(scene: CaptionedImage) -> str:
    return image_url(scene.load().convert("RGBA"))  # so PNG, which is smaller than JPEG for flat colours


def _captions_in_new_process(folder: Path, scenes: Sequence[CaptionedScene]) -> bool:
    """Caption images again with `use_it.py`, and return whether the captions are the same."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "best", *(f"{PICTURES}/{scene.name}.png" for scene in scenes)],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout.splitlines() == [scene.caption for scene in scenes]


def _summary(result: DemoResult, folder: Path) -> str:
    rows = {
        "held-out scenes": result.held_out,
        "with an unseen pair": result.unseen_pairs,
        "the language model alone": result.language_model_alone,
    }
    shares = [f"{name:<26}{s.objects:>20.1%}{s.everything:>20.1%}" for name, s in rows.items()]
    lines = [
        "\n5. Results\n",
        f"{'':<26}{'colours and shapes':>20}{'everything right':>20}",
        *shares,
        "",
        f"Time        {result.seconds:.0f} s",
        f"Memory      {format_bytes(result.peak_memory_bytes)} at most in this process",
        f"Adapters    {folder / 'best'}  ({format_bytes(result.adapter_bytes)})",
        f"Look at     {folder / PAGE}",
        f"Use it      python {SCRIPT} best scenes/*.png   (in {folder})",
    ]
    return "\n".join(lines)


_BACKBONES = """
1. Two frozen models that come with the package

A CLIP vision encoder, trained on scenes and phrases, and a GPT-2, trained on captions alone.
Both stay frozen."""

_TRAINING = """
2. Training adapters between them on {num_train:,} scenes

These pairs are in none of the training scenes. The frozen models know them, the adapters do not:
{pairs}
"""
