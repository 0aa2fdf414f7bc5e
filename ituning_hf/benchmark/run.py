"""An evaluation from its settings to its report."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..captioning import search_options
from ..data import FeatureInputs, PixelInputs
from ..environment import device_name
from ..features import FeatureStore
from ..processes import create_accelerator, leave_group, one_fate
from ..saving import load_model, load_processor
from .arguments import EvaluateArguments
from .captioning import PreparedImages, SplitCaptioner
from .card import card_folder, check_card, put_on_card
from .drafts import CaptionedBatch, Drafts, all_drafts, identify
from .errors import EvaluationError
from .images import BenchmarkImages, load_images
from .predictions import read_predictions
from .report import (
    IMAGES_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    Evaluation,
    Speed,
    check_output_dir,
    write_results,
    write_scores,
)
from .scoring import check_scoring, describe_scorers, parts_of, score
from .screen import describe_evaluation

NUM_SHOWN = 4  # captions of a dry run
Report = Callable[[str], None]

SERVER_NOTE = (
    "There are no captions of people to score by. A benchmark's own server takes results.json as it is, for "
    "NoCaps https://eval.ai/web/challenges/challenge-page/355."
)


@dataclass(frozen=True)
class _Captioning:
    """A captioner that is ready to caption the split.

    Args:
        captioner: Does it.
        drafts: What it did so far.
    """

    captioner: SplitCaptioner
    drafts: Drafts


def evaluate_captioner(args: EvaluateArguments) -> Evaluation | None:
    """Caption a split of a data set, score the captions, and write the report that the settings ask for.

    Under several processes (`torchrun`, `accelerate launch`) each must call it. Captions and scores are the
    same for any number of them; see `captioning.py`. Their group is closed when all captions are made, and
    the main process scores alone. An evaluation that was killed goes on where it was, when called with the
    same settings again.

    Args:
        args: The settings; those of `ituning evaluate`.

    Returns:
        Captions, scores and speed. None on all processes but the main one, and after a dry run.

    Raises:
        ValueError, OSError: for settings, data or a captioner that cannot be used, before captioning begins.
        EvaluationError: if too many images cannot be read, or a scorer fails. What was captioned is kept.

    Example:
        >>> import json, tempfile
        >>> from ituning_hf.data import read_scenes
        >>> folder = tempfile.mkdtemp()
        >>> theirs = {scene.name: scene.captions[0] for scene in read_scenes("test", 20)}
        >>> with open(f"{folder}/theirs.json", "w") as file:
        ...     json.dump(theirs, file)
        >>> args = EvaluateArguments(
        ...     predictions=f"{folder}/theirs.json", num_scenes=20, java=False, output_dir=f"{folder}/report"
        ... )
        >>> evaluation = evaluate_captioner(args)  # doctest: +ELLIPSIS
        scenes that ituning_hf draws, test: 20 images
        ...
        >>> round(evaluation.metrics["bleu_4"], 3)
        1.0
    """
    accelerator = create_accelerator("no")  # precision is --dtype's, whatever `accelerate config` says

    def report(text: str) -> None:
        with suppress(OSError):  # whoever read it has gone; the work goes on
            accelerator.print(text, flush=True)

    with one_fate(accelerator):
        benchmark = load_images(args)
        check_scoring(args, benchmark)
        args, captioning, predictions = _prepare(args, benchmark, accelerator)
    if args.dry_run:
        with one_fate(accelerator):
            if accelerator.is_main_process:
                _dry_run(args, benchmark, captioning, accelerator, report)
        return None
    batches = [] if captioning is None else captioning.captioner.run(accelerator, captioning.drafts)
    leave_group()  # the others need not wait for the scores
    if not accelerator.is_main_process:
        return None
    captions = predictions or {place: text for batch in batches for place, text in batch.captions}
    evaluation = _score(args, benchmark, captions, _speed(args, batches, accelerator), accelerator)
    for line in (*describe_evaluation(evaluation), *_finish(args, evaluation)):
        report(line)
    return evaluation


def _prepare(
    args: EvaluateArguments, benchmark: BenchmarkImages, accelerator: Accelerator
) -> tuple[EvaluateArguments, _Captioning | None, dict[int, str]]:
    """Load what makes the captions, or the captions, and check that the report can be written."""
    folder = Path(args.output_dir)
    if args.predictions is not None:
        predictions = dict(enumerate(read_predictions(Path(args.predictions), benchmark)))
        check_output_dir(folder, args.overwrite, goes_on=False)
        return args, None, predictions
    assert args.model is not None
    store = None if args.features is None else FeatureStore(args.features)
    if store is not None:
        store.require(benchmark.images)
    model = load_model(args.model, accelerator.device, **_loading_options(args))
    processor = load_processor(args.model, args.revision)
    if store is not None:
        store.require_fits(model.config, processor.image_processor.to_dict())
    inputs = PixelInputs(processor.image_processor) if store is None else FeatureInputs(store)
    preparation = processor.image_processor.to_dict() if store is None else store.spec.computation
    options = search_options(model, 1, args.num_beams, args.max_new_tokens, {})
    args = replace(args, num_beams=options["num_beams"])  # the report says what was done
    check_card(args, benchmark)
    drafts = Drafts(folder, identify(args, benchmark, model, preparation))
    check_output_dir(folder, args.overwrite, goes_on=drafts.exist())
    captioner = SplitCaptioner(
        model,
        processor,
        PreparedImages(benchmark.images, inputs),
        options,
        batch_size=args.batch_size,
        num_workers=args.dataloader_num_workers,
        max_unreadable=int(args.max_unreadable_share * len(benchmark.images)),
    )
    return args, _Captioning(captioner, drafts), {}


def _loading_options(args: EvaluateArguments) -> dict[str, Any]:
    options = {
        "revision": args.revision,
        "dtype": args.dtype,
        "vision_model_name_or_path": args.vision_model,
        "text_model_name_or_path": args.text_model,
        "load_vision_model": None if args.features is None else False,
    }
    return {name: value for name, value in options.items() if value is not None}


def _speed(args: EvaluateArguments, batches: list[CaptionedBatch], accelerator: Accelerator) -> Speed | None:
    if not batches:
        return None
    return Speed.of(batches, args.batch_size, accelerator.num_processes, device_name(accelerator.device))


def _score(
    args: EvaluateArguments,
    benchmark: BenchmarkImages,
    captions: dict[int, str],
    speed: Speed | None,
    accelerator: Accelerator,
) -> Evaluation:
    """Write the captions, then score them: a scorer that fails takes nothing along."""
    folder = Path(args.output_dir)
    write_results(folder, benchmark, captions)
    places = sorted(captions)
    texts = [captions[place] for place in places]
    if not benchmark.has_references:
        return Evaluation(benchmark, places, texts, speed, None, [])
    images = [benchmark.images[place] for place in places]
    try:
        scores = score(args, images, texts, accelerator.device)
    except (RuntimeError, ValueError) as error:  # of a program; of references without a word, or a picture
        reason = str(error).removesuffix(".")
        raise EvaluationError(f"{reason}. The captions are in {folder / RESULTS_FILE}.") from error
    return Evaluation(benchmark, places, texts, speed, scores, parts_of(scores, images))


def _finish(args: EvaluateArguments, evaluation: Evaluation) -> list[str]:
    """Write the scores, and remove what was kept for the case of a kill; say where everything is."""
    folder, written = Path(args.output_dir), [RESULTS_FILE]
    lines = [SERVER_NOTE]
    if evaluation.scores is not None:
        write_scores(folder, evaluation, args)
        written += [METRICS_FILE, IMAGES_FILE]
        place = card_folder(args)
        lines = [] if place is None else put_on_card(place, evaluation, args)
    for draft in all_drafts(folder):
        draft.unlink()
    return [*lines, f"Written    {folder}{os.sep}: {', '.join(written)}"]


def _dry_run(
    args: EvaluateArguments,
    benchmark: BenchmarkImages,
    captioning: _Captioning | None,
    accelerator: Accelerator,
    report: Report,
) -> None:
    """Caption one batch, and say what the evaluation would do."""
    report("Dry run: one batch is captioned; nothing is written.")
    report(f"Images     {benchmark.describe()}")
    if captioning is None:
        report(f"Captions   from {args.predictions}, one for each image")
    else:
        for line in _describe_captioning(args, captioning, accelerator):
            report(line)
    if benchmark.has_references:
        for number, line in enumerate(describe_scorers(args)):
            report(f"{'Scores' if number == 0 else '':<11}{line}")
    written = [RESULTS_FILE, METRICS_FILE, IMAGES_FILE] if benchmark.has_references else [RESULTS_FILE]
    report(f"Output     {args.output_dir}{os.sep}: {', '.join(written)}")
    if benchmark.has_references and (folder := card_folder(args)) is not None:
        report(f"Card       {folder / 'README.md'} would show the scores, unless a person edited it")


def _describe_captioning(
    args: EvaluateArguments, captioning: _Captioning, accelerator: Accelerator
) -> list[str]:
    captioner, num_processes = captioning.captioner, accelerator.num_processes
    batch = captioner.caption_first_batch()
    done = len(captioning.drafts.read())
    features = f", from the features in {args.features}" if args.features else ""
    before = f"; {done:,} were captioned before" if done else ""
    return [
        f"Captioner  {args.model}, {args.num_beams} beams, on {device_name(accelerator.device)}{features}",
        f"Batches    {len(captioner.batches):,} of {args.batch_size} images, over {num_processes} "
        f"process{'es' if num_processes > 1 else ''}{before}",
        f"Time       {batch.seconds:.2f} s for the first batch, without warm-up",
        *(
            f"Caption    {captioner.images.images[place].name}: {text}"
            for place, text in batch.captions[:NUM_SHOWN]
        ),
    ]
