"""Evaluate a captioner: caption a split, score the captions, write the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image

from ..data.columns import CaptionedImages
from ..inference.loading import captioner_digest
from ..utils.devices import device_name
from ..utils.distributed import create_accelerator, leave_group, require_equal, sync_errors
from ..utils.errors import UserError, WorkError
from ..utils.files import require_writable
from .arguments import EvaluateArguments
from .captioning import Captioner, Captions, caption_images
from .clip_score import clip_scores
from .metrics import require_scorers, score_captions
from .page import check_page_path, write_page
from .predictions import image_ids, read_predictions
from .report import ENTIRE, RESULTS_FILE, Evaluation, write_results, write_scores
from .scores import CaptionScores


def evaluate_captioner(args: EvaluateArguments) -> Evaluation | None:
    """Caption a split of a dataset, score the captions, and write the report into `args.output_dir`.

    Under several processes (`torchrun`, `accelerate launch`) each must call it. Captions and scores are the
    same for any number of processes. The process group is closed when all captions are made, and the main
    process scores them alone.

    Args:
        args: The settings of `ituning evaluate`. With `dry_run`, one batch is captioned, and nothing is
            scored or written.

    Returns:
        Captions, scores and speed on the main process; None on the others.

    Raises:
        UserError, OSError: The settings, the data or the captioner cannot be used; before captioning begins.
        WorkError: Too many images cannot be read (with `expected_images`: any); or a scorer failed, and the
            captions are written.

    Example:
        >>> import json, tempfile
        >>> from ituning_hf.data.scenes import read_scenes
        >>> folder = tempfile.mkdtemp()
        >>> captions = {scene.name: scene.captions[0] for scene in read_scenes("test", 20)}
        >>> with open(f"{folder}/captions.json", "w") as file:
        ...     json.dump(captions, file)
        >>> args = EvaluateArguments(
        ...     predictions=f"{folder}/captions.json", num_scenes=20, java=False, output_dir=f"{folder}/out"
        ... )
        >>> round(evaluate_captioner(args).scores.metrics["bleu_4"], 3)
        1.0
    """
    accelerator = create_accelerator("no")  # --dtype sets the precision, not `accelerate config`
    captioner, found = None, Captions()
    with sync_errors(accelerator):
        images = args.load_split(
            args.split, args.seed, require_captions=False, require_images=args.reads_images
        )
        args.check_count("expected_images", images)
        if accelerator.is_main_process:  # it alone scores and writes
            _check_scoring(args, images)
            _check_output_dir(args)
        if args.predictions is None:
            captioner = Captioner.load(args, images, accelerator.device)
        else:
            found.by_index.update(enumerate(read_predictions(Path(args.predictions), images)))
    require_equal(accelerator, args.to_dict(), _identity(images, captioner))
    if captioner is not None:
        found = caption_images(captioner, images, args, accelerator)
    leave_group()  # the other processes need not wait for the scores
    if not accelerator.is_main_process:
        return None
    return _report(args, images, found, accelerator)


def _identity(images: CaptionedImages, captioner: Captioner | None) -> dict[str, Any]:
    """Return what must be equal on all processes, in addition to the settings."""
    values: dict[str, Any] = {"num_images": len(images), "data_fingerprint": images.fingerprint()}
    if captioner is not None:
        values |= {
            "captioner": captioner_digest(captioner.model),
            "inputs": captioner.inputs.name,
            "search": captioner.options,
        }
    return values


def _check_scoring(args: EvaluateArguments, images: CaptionedImages) -> None:
    if not images[0].captions:
        if given := [f"--{name}" for name in ("predictions", "java", "clip_model") if getattr(args, name)]:
            raise UserError(
                f"{' and '.join(given)}: split {args.split!r} of {args.dataset} has no human captions. With "
                "--model alone the captions are written in the COCO result format."
            )
        return
    require_scorers(args.java)
    if args.clip_model is not None:  # load it, and score an empty image
        clip_scores(args.clip_model, [Image.new("RGB", (8, 8))], ["a"], [["a"]], device="cpu")


def _check_output_dir(args: EvaluateArguments) -> None:
    folder = Path(args.output_dir)
    require_writable(folder)
    if args.report is not None:
        check_page_path(Path(args.report), folder)
    if folder.is_dir() and any(folder.iterdir()) and not args.overwrite and not args.dry_run:
        raise UserError(f"--output_dir {folder} is not empty: give another folder, or --overwrite.")


def _report(
    args: EvaluateArguments, images: CaptionedImages, found: Captions, accelerator: Accelerator
) -> Evaluation:
    """Write the captions, score them, write the scores."""
    ids, folder, data = image_ids(images), Path(args.output_dir), Path(args.dataset)
    evaluation = Evaluation(
        dataset=args.dataset_name or (data.resolve().name if data.exists() else args.dataset),
        split=args.split,
        images=[images[i] for i in found.by_index],
        image_ids=[ids[i] for i in found.by_index],
        captions=list(found.by_index.values()),
        unreadable=[images[i] for i in found.unreadable],
        speed=_speed(found, accelerator) if found.seconds else None,
        parts={},
    )
    if args.dry_run:
        return evaluation
    write_results(folder, evaluation)
    if images[0].captions:
        try:
            parts = _score(args, evaluation, accelerator)
        except WorkError as error:
            results = folder / RESULTS_FILE
            raise WorkError(
                f"{error} The captions are in {results}: --predictions can score them."
            ) from error
        evaluation = replace(evaluation, parts=parts)
    write_scores(folder, evaluation, args)
    if args.report is not None:
        write_page(Path(args.report), evaluation, args)
    return evaluation


def _speed(found: Captions, accelerator: Accelerator) -> dict[str, Any]:
    return {
        "captions_per_second": len(found.by_index) / found.seconds * accelerator.num_processes,
        "device": device_name(accelerator.device),
        "num_processes": accelerator.num_processes,
    }


def _score(
    args: EvaluateArguments, evaluation: Evaluation, accelerator: Accelerator
) -> dict[str, CaptionScores]:
    """Return the scores of each domain, if there are any, and of all images last."""
    images, captions = evaluation.images, evaluation.captions
    references = [list(image.captions) for image in images]
    scores = score_captions(captions, references, args.java)
    if args.clip_model is not None:
        means = clip_scores(args.clip_model, images, captions, references, device=accelerator.device)
        scores = replace(scores, per_image=scores.per_image | means)
    parts = {}
    for domain in sorted({image.domain for image in images if image.domain is not None}):
        parts[domain] = scores.part([i for i, image in enumerate(images) if image.domain == domain])
    return parts | {ENTIRE: scores}
