"""An evaluation from its settings to its report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from accelerate import Accelerator

from ..data.records import first_names
from ..utils.distributed import create_accelerator, leave_group, one_fate
from ..utils.environment import device_name
from .arguments import EvaluateArguments
from .card import card_folder, is_on_card, put_on_card
from .drafts import CaptionedBatch, all_drafts
from .errors import EvaluationError
from .images import explain_no_references
from .preparation import Captioning, Prepared, prepare
from .report import IMAGES_FILE, METRICS_FILE, RESULTS_FILE, Evaluation, Speed, write_results, write_scores
from .scoring import Part, describe_scorers, parts_of, score
from .screen import describe_evaluation, describe_finished

NUM_SHOWN = 4  # captions of a dry run

SERVER_NOTE = (
    "There are no captions of people to score by. A benchmark's own server takes results.json as it is, for "
    "NoCaps https://eval.ai/web/challenges/challenge-page/355."
)


def evaluate_captioner(args: EvaluateArguments) -> Evaluation | None:
    """Caption a split of a data set, score the captions, and write the report that the settings ask for.

    Under several processes (`torchrun`, `accelerate launch`) each must call it. Captions and scores are the
    same for any number of them; see `captioning.py`. Their group is closed when all captions are made, and
    the main process scores alone. An evaluation that was killed goes on where it was, when called with the
    same settings again; a finished one is told again, and left as it is.

    Args:
        args: The settings; those of `ituning evaluate`.

    Returns:
        Captions, scores and speed. None on all processes but the main one, after a dry run, and where the
        report was there: its files have them.

    Raises:
        ValueError, OSError: for settings, data or a captioner that cannot be used, before captioning begins.
        EvaluationError: if too many images cannot be read (any, with `expected_images`), or a scorer fails.
            What was captioned is kept.

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
        prepared = prepare(args, accelerator.device)
    if prepared.finished is not None or args.dry_run:
        with one_fate(accelerator):
            if accelerator.is_main_process:
                finished = prepared.finished is not None
                for line in _tell_finished(prepared) if finished else _dry_run(prepared, accelerator):
                    report(line)
        return None
    batches = _caption(prepared, accelerator)
    leave_group()  # the others need not wait for the scores
    if not accelerator.is_main_process:
        return None
    evaluation = _score(prepared, batches, accelerator)
    for line in (*describe_evaluation(evaluation), *_finish(prepared, evaluation)):
        report(line)
    return evaluation


def _caption(prepared: Prepared, accelerator: Accelerator) -> list[CaptionedBatch]:
    """Caption what is left, on every process; nothing where the captions are at hand.

    Raises:
        EvaluationError: Too many images cannot be read, or any, where a number of images is expected.
    """
    if prepared.captioning is None:
        return []
    batches = prepared.captioning.captioner.run(accelerator, prepared.captioning.drafts)
    unreadable = sorted(index for batch in batches for index, _ in batch.unreadable)
    if unreadable and prepared.args.expected_images is not None:
        names = [prepared.benchmark.images[index].name for index in unreadable]
        named = first_names(names)
        rebuild = "" if prepared.args.features is None else " and build their features"
        with one_fate(accelerator):  # all know it, and one tells
            raise EvaluationError(
                f"{len(names)} of the {len(prepared.benchmark.images):,} images could not be read "
                f"({named}), and --expected_images asks for all of them: mend them{rebuild}, and "
                "the same command goes on with what is left. Without --expected_images they are left out "
                "of the scores."
            )
    return batches


def _score(prepared: Prepared, batches: Sequence[CaptionedBatch], accelerator: Accelerator) -> Evaluation:
    """Write the captions, then score them: a scorer that fails takes nothing along."""
    args, benchmark, folder = prepared.args, prepared.benchmark, Path(prepared.args.output_dir)
    captions = prepared.predictions or {place: text for batch in batches for place, text in batch.captions}
    write_results(folder, benchmark, captions)
    places = sorted(captions)
    texts = [captions[place] for place in places]
    speed = _speed(args, batches, accelerator)
    if not benchmark.has_references:
        return Evaluation(benchmark, places, texts, speed, None, [])
    images = [benchmark.images[place] for place in places]
    try:
        scores = score(args, images, texts, accelerator.device)
    except (RuntimeError, ValueError) as error:  # of a program; of references without a word, or a picture
        reason = str(error).removesuffix(".")
        raise EvaluationError(f"{reason}. The captions are in {folder / RESULTS_FILE}.") from error
    return Evaluation(benchmark, places, texts, speed, scores, parts_of(scores, images))


def _speed(
    args: EvaluateArguments, batches: Sequence[CaptionedBatch], accelerator: Accelerator
) -> Speed | None:
    if not batches:
        return None
    return Speed.of(batches, args.batch_size, accelerator.num_processes, device_name(accelerator.device))


def _finish(prepared: Prepared, evaluation: Evaluation) -> list[str]:
    """Write the scores, and remove what was kept for the case of a kill; say where everything is."""
    args, folder = prepared.args, Path(prepared.args.output_dir)
    written = write_scores(folder, evaluation, args, prepared.identity)
    if evaluation.scores is None:
        lines = [SERVER_NOTE, *filter(None, [explain_no_references(args)])]
    else:
        lines = _show(prepared, evaluation.parts, evaluation.scores.tokenizer)
    for draft in all_drafts(folder):
        draft.unlink(missing_ok=True)
    return [*lines, f"Written    {folder}{os.sep}: {', '.join(written)}"]


def _show(prepared: Prepared, parts: Sequence[Part], tokenizer: str) -> list[str]:
    """Put the scores on the captioner's card, if there is one."""
    place = card_folder(prepared.args)
    return [] if place is None else put_on_card(place, prepared.args, prepared.benchmark, parts, tokenizer)


def _tell_finished(prepared: Prepared) -> list[str]:
    """Say again what came of a finished evaluation, and do what a kill at its end may have left undone."""
    args, finished = prepared.args, prepared.finished
    assert finished is not None
    lines = [
        f"This evaluation is complete, and its report in {args.output_dir}; --overwrite would repeat it.",
        *describe_finished(prepared.benchmark, finished),
    ]
    if args.dry_run:
        return lines
    drafts = None if prepared.captioning is None else prepared.captioning.drafts
    place = card_folder(args)
    if finished.scoring is not None and place is not None:
        killed = drafts is not None and drafts.exist()  # before the card, or just after
        if killed or not is_on_card(place, prepared.benchmark):
            lines += _show(prepared, finished.parts, finished.scoring["tokenizer"])
    if drafts is not None:
        drafts.remove()
    return lines


def _dry_run(prepared: Prepared, accelerator: Accelerator) -> list[str]:
    """Caption one batch, and say what the evaluation would do."""
    args, benchmark = prepared.args, prepared.benchmark
    lines = [
        "Dry run: one batch is captioned; nothing is written.",
        f"Images     {benchmark.describe()}",
    ]
    if prepared.captioning is None:
        lines.append(f"Captions   from {args.predictions}, one for each image")
    else:
        lines += _describe_captioning(args, prepared.captioning, accelerator)
    written = [RESULTS_FILE, METRICS_FILE]
    if benchmark.has_references:
        scorers = enumerate(describe_scorers(args))
        lines += [f"{'Scores' if number == 0 else '':<11}{line}" for number, line in scorers]
        written.append(IMAGES_FILE)
    lines.append(f"Output     {args.output_dir}{os.sep}: {', '.join(written)}")
    if benchmark.has_references and (folder := card_folder(args)) is not None:
        lines.append(f"Card       {folder / 'README.md'} would show the scores, unless a person edited it")
    return lines


def _describe_captioning(
    args: EvaluateArguments, captioning: Captioning, accelerator: Accelerator
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
