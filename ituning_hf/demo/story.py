"""`ituning demo`: the whole method on drawn scenes, before one's eyes, with nothing to download."""

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
from ..data.records import CaptionedImage
from ..inference.captioning import iter_captions
from ..inference.loading import load_captioner
from ..training.arguments import TrainArguments
from ..training.checkpoints import CHECKPOINTS, LOG_FILE, RUN_FILE, write_json
from ..training.cli import train
from ..training.memory import format_bytes, peak_resident_memory
from ..training.setup import SCENE_BACKBONES, TrainingData
from ..utils.output_folders import LOCK_FILE
from .page import write_page
from .scenes import UNSEEN_PAIRS, compose_scenes
from .scoring import Scores, named_objects, score_captions

Report = Callable[[str], None]
SCRIPT = Path(__file__).parent / "use_it.py"
RESULT_FILE, PAGE, PICTURES = "demo.json", "index.html", "scenes"
_OWN_FILES = {LOCK_FILE, RUN_FILE, LOG_FILE, CHECKPOINTS, "best", "last", PICTURES, SCRIPT.name, PAGE}
NUM_VALIDATION = 100
NUM_SHOWN = 6  # captions of each kind in the table
NUM_PICTURES = 24  # of each kind on the page
NUM_RELOADED = 12  # captioned again in a fresh process


@dataclass(frozen=True)
class CaptionedScene:
    """One line of the table.

    Args:
        name: The scene's, and its picture's file.
        truth: The scene's own sentence.
        caption: What the captioner said.
    """

    name: str
    truth: str
    caption: str

    @property
    def verdict(self) -> str:
        """How right the caption is, in words."""
        if self.caption == self.truth:
            return "right"
        same = named_objects(self.caption) == named_objects(self.truth)
        return "objects right" if same else "wrong"


@dataclass(frozen=True)
class DemoResult:
    """What came of a demo; `demo.json` holds the same.

    Args:
        seed: Of the scenes and the adapter.
        held_out: Scores on scenes that were not trained on.
        unseen_pairs: Scores on scenes with a colour-shape pair that the adapter never met.
        language_model_alone: Scores of the frozen language model without adapters, on the held-out scenes.
        same_in_fresh_process: Whether the saved captioner said the same in a process of its own.
        adapter_bytes: Size of the file of adapters.
        seconds: From start to end.
        peak_memory_bytes: The most that this process held.
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
    report: Report = print,
) -> DemoResult:
    """Train adapters between two small frozen models, caption new scenes, save, and load again.

    Args:
        output_dir: Gets the captioner and everything to look at; must be new, empty, or hold a demo that was
            interrupted.
        seed: Of the scenes and the adapter.
        num_train: Scenes to train on.
        num_test: Scenes to caption, of known colour-shape pairs and of unseen ones, so many of each.
        train_steps: Optimizer steps, of 32 scenes each.
        report: Is told the story, line by line.

    Raises:
        ValueError: for a seed or a number of steps out of range.
        FileExistsError: if `output_dir` holds anything but a demo that was interrupted, which goes on.
        PermissionError: if nothing can be written there.
    """
    started, folder = time.perf_counter(), Path(output_dir)
    settings = _settings(folder, seed, train_steps)
    _make_room(folder)
    scenes = compose_scenes(seed, num_train, NUM_VALIDATION, num_test)

    report(_heading(1, "Two frozen models, shipped with the package"))
    report(_BACKBONES_TEXT)
    alone = _caption(*_untrained(), scenes.held_out)
    report(f"Asked alone, the language model says of every picture:\n  {shorten(alone[0].caption, 100)}")

    report(_heading(2, f"Training adapters between them on {num_train:,} scenes, and nothing else"))
    report(_PAIRS_TEXT.format(pairs=", ".join(" ".join(pair) for pair in sorted(UNSEEN_PAIRS))))
    train(settings, TrainingData(scenes.train, scenes.validation))

    report(_heading(3, f"Captioning {2 * num_test} scenes that it was not trained on"))
    captioner = load_captioner(folder / "best", device="cpu")
    held_out, unseen = (_caption(*captioner, part) for part in (scenes.held_out, scenes.unseen))
    for line in _table({"Scenes of known pairs": held_out, "Scenes with an unseen pair": unseen}):
        report(line)

    report(_heading(4, "Loading the saved captioner in a fresh process, with transformers alone"))
    _draw(folder / PICTURES, scenes.held_out[:NUM_PICTURES] + scenes.unseen[:NUM_PICTURES])
    same = _same_elsewhere(folder, held_out[:NUM_RELOADED])
    report(f"{NUM_RELOADED} captions by AutoModel.from_pretrained: {'the same' if same else 'NOT the same'}")

    result = DemoResult(
        seed=seed,
        held_out=_score(held_out),
        unseen_pairs=_score(unseen),
        language_model_alone=_score(alone),
        same_in_fresh_process=same,
        adapter_bytes=(folder / "best" / "model.safetensors").stat().st_size,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=peak_resident_memory(),
    )
    write_json(folder / RESULT_FILE, asdict(result))
    write_page(folder / PAGE, result, held_out[:NUM_PICTURES], unseen[:NUM_PICTURES])
    for line in _summary(result, folder):
        report(line)
    return result


def _make_room(folder: Path) -> None:
    """Make the folder; refuse one that holds anything but an interrupted demo, or cannot be written to."""
    try:
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if RESULT_FILE in there or there - _OWN_FILES:
            what = "holds a finished demo" if RESULT_FILE in there else "is not empty"
            raise FileExistsError(f"--output_dir {folder} {what}: remove it, or give another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK_FILE).touch()
    except FileExistsError:
        raise
    except OSError as error:
        raise PermissionError(
            f"--output_dir {folder} cannot be written to ({error.strerror}): give a folder that can."
        ) from error


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
    """Return a captioner whose adapters do nothing yet: the language model alone."""
    parts = SCENE_BACKBONES / "vision", SCENE_BACKBONES / "text"
    return (
        ITuningForCaptioning.from_vision_text_pretrained(*parts),
        ITuningProcessor.from_vision_text_pretrained(*parts),
    )


def _caption(
    model: ITuningForCaptioning, processor: ITuningProcessor, scenes: Sequence[CaptionedImage]
) -> list[CaptionedScene]:
    images = [scene.load() for scene in scenes]
    results = iter_captions(model, processor, images, num_beams=1, batch_size=50)
    return [
        CaptionedScene(scene.name, scene.captions[0], result.captions[0])
        for scene, result in zip(scenes, results, strict=True)
    ]


def _score(scenes: Sequence[CaptionedScene]) -> Scores:
    return score_captions([scene.caption for scene in scenes], [scene.truth for scene in scenes])


def _draw(folder: Path, scenes: Sequence[CaptionedImage]) -> None:
    folder.mkdir(exist_ok=True)
    for scene in scenes:
        scene.load().save(folder / f"{scene.name}.png")


def _same_elsewhere(folder: Path, scenes: Sequence[CaptionedScene]) -> bool:
    """Caption the first pictures again by `use_it.py`, and compare."""
    shutil.copy(SCRIPT, folder / SCRIPT.name)
    pictures = [f"{PICTURES}/{scene.name}.png" for scene in scenes]
    done = subprocess.run(
        [sys.executable, SCRIPT.name, "best", *pictures],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout.splitlines() == [scene.caption for scene in scenes]


def _heading(number: int, text: str) -> str:
    return f"\n{number}. {text}\n"


def _table(parts: dict[str, Sequence[CaptionedScene]]) -> list[str]:
    """Show what is there above what was said, a pair of lines a scene."""
    lines = []
    for title, scenes in parts.items():
        lines.append(title)
        for scene in scenes[:NUM_SHOWN]:
            lines += [f"  there  {scene.truth}", f"  said   {scene.caption:<60} {scene.verdict}", ""]
    return lines


def _summary(result: DemoResult, folder: Path) -> list[str]:
    rows = {
        "held-out scenes": result.held_out,
        "with an unseen pair": result.unseen_pairs,
        "the language model alone": result.language_model_alone,
    }
    shares = [f"{name:<26}{s.objects:>20.1%}{s.everything:>20.1%}" for name, s in rows.items()]
    return [
        _heading(5, "What was done"),
        f"{'':<26}{'colours and shapes':>20}{'everything right':>20}",
        *shares,
        "",
        f"Time        {result.seconds:.0f} s",
        f"Memory      {format_bytes(result.peak_memory_bytes)} at most in this process",
        f"Adapters    {folder / 'best'}  ({format_bytes(result.adapter_bytes)})",
        f"Look at     {folder / PAGE}",
        f"Use it      python use_it.py best scenes/*.png   (in {folder})",
    ]


_BACKBONES_TEXT = """\
A CLIP vision encoder that was trained on scenes and phrases, and a GPT-2 that has read captions and never
seen a picture. Neither changes from here on."""

_PAIRS_TEXT = """\
These pairs are in none of them. The frozen models have met them, the adapters never do:
{pairs}
"""
