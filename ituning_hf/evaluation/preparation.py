"""Everything that an evaluation needs, loaded and checked before long work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..data.inputs import FeatureInputs, PixelInputs
from ..features.store import FeatureStore
from ..inference.captioning import search_options
from ..inference.loading import load_model, load_processor
from .arguments import EvaluateArguments
from .captioning import PreparedImages, SplitCaptioner
from .card import check_card
from .drafts import Drafts
from .finished import FinishedReport, read_finished
from .identity import identify_captions, identify_report
from .images import BenchmarkImages, load_images
from .predictions import read_predictions
from .report import check_output_dir
from .scoring import check_scoring


@dataclass(frozen=True)
class Captioning:
    """A captioner that is ready to caption the split.

    Args:
        captioner: Does it.
        drafts: What it did so far.
    """

    captioner: SplitCaptioner
    drafts: Drafts


@dataclass(frozen=True)
class Prepared:
    """An evaluation that can begin, or is finished.

    Args:
        args: The settings, with what they left open filled in.
        benchmark: The images.
        identity: By which its report is known again.
        finished: Its report, if it is there and not to be replaced.
        captioning: What makes the captions; None where they are at hand.
        predictions: Those captions, by the image's place.
    """

    args: EvaluateArguments
    benchmark: BenchmarkImages
    identity: str
    finished: FinishedReport | None
    captioning: Captioning | None
    predictions: dict[int, str]


def prepare(args: EvaluateArguments, device: torch.device) -> Prepared:
    """Load what makes the captions, or the captions, and check that the report can be written.

    Raises:
        ValueError, OSError: for settings, data or a captioner that cannot be used.
    """
    benchmark = load_images(args)
    check_scoring(args, benchmark)
    predictions, captioning, store = {}, None, None
    if args.predictions is not None:
        predictions = dict(enumerate(read_predictions(Path(args.predictions), benchmark)))
    else:
        store = None if args.features is None else FeatureStore(args.features)
        args, captioning = _load_captioner(args, benchmark, store, device)
    captions = predictions if captioning is None else captioning.drafts.identity
    folder, identity = Path(args.output_dir), identify_report(args, benchmark, captions, store)
    finished = None if args.overwrite else read_finished(folder, identity)
    begun = captioning is not None and captioning.drafts.exist()
    check_output_dir(folder, args.overwrite, goes_on=begun or finished is not None)
    return Prepared(args, benchmark, identity, finished, captioning, predictions)


def _load_captioner(
    args: EvaluateArguments, benchmark: BenchmarkImages, store: FeatureStore | None, device: torch.device
) -> tuple[EvaluateArguments, Captioning]:
    assert args.model is not None
    if store is not None:
        store.require(benchmark.images)
    model = load_model(args.model, device, **_loading_options(args))
    processor = load_processor(args.model, args.revision)
    preparation = processor.image_processor.to_dict()
    inputs: PixelInputs | FeatureInputs = PixelInputs(processor.image_processor)
    if store is not None:
        store.require_fits(model.config, preparation)
        inputs, preparation = FeatureInputs(store), store.spec.computation
    options = search_options(model, 1, args.num_beams, args.max_new_tokens, {})
    args = replace(args, num_beams=options["num_beams"])  # the report says what was done
    check_card(args, benchmark)
    captioner = SplitCaptioner(
        model,
        processor,
        PreparedImages(benchmark.images, inputs),
        options,
        batch_size=args.batch_size,
        num_workers=args.dataloader_num_workers,
        max_unreadable=int(args.max_unreadable_share * len(benchmark.images)),
    )
    identity = identify_captions(args, benchmark, model, preparation)
    return args, Captioning(captioner, Drafts(Path(args.output_dir), identity))


def _loading_options(args: EvaluateArguments) -> dict[str, Any]:
    options = {
        "revision": args.revision,
        "dtype": args.dtype,
        "quantization": args.quantization,
        "vision_model_name_or_path": args.vision_model,
        "text_model_name_or_path": args.text_model,
        "load_vision_model": None if args.features is None else False,
    }
    return {name: value for name, value in options.items() if value is not None}
