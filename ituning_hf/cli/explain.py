"""`ituning explain`: show which parts of an image the adapters attend to for each word of a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..inference.arguments import CaptionerArguments
from ..utils.errors import UserError
from ..utils.rules import FILE, MODEL, NAME, NOT_NEGATIVE_EACH, TEXT
from ..utils.settings import REQUIRED, Settings, option, read_settings
from ..utils.terminal import printable, quiet_transformers

_DESCRIPTION = """\
Caption an image and show, for each word, which parts of the image the adapters
attend to: as a page, or as a picture."""
_EXAMPLES = """\
examples:
  ituning explain dog.jpg --model my-captioner
  ituning explain dog.jpg --model my-captioner --output dog.png
  ituning explain dog.jpg --model my-captioner --text "a dog on a sofa"

The page is one file without scripts from elsewhere. A picture requires
Matplotlib: pip install 'ituning_hf[viz]'.
"""


@dataclass(kw_only=True)  # allows required fields after fields with defaults
class ExplainArguments(CaptionerArguments, Settings):
    """The settings of `ituning explain`."""

    title: ClassVar[str] = Settings.title

    model: str | None = option(REQUIRED, "the captioner's folder or Hub id (required)", MODEL)
    image: str = option(REQUIRED, "one image file", FILE, metavar="IMAGE", positional=True)
    output: str | None = option(
        None,
        "write a page (.html) or a picture (.png, .pdf, .svg); an existing file is replaced",
        FILE,
        "the image's name with .html, in the current folder",
    )
    text: str | None = option(None, "explain this text instead of the captioner's own caption", TEXT, "none")
    prompt: str | None = option(None, "text that the caption begins with", TEXT, "no text")
    layers: list[int] = option(
        [],
        "indices of the language model layers to average over",
        NOT_NEGATIVE_EACH,
        "all with an adapter",
    )
    device: str | None = option(None, "cpu, cuda, cuda:1 or mps", NAME, "the best available")


def run(argv: Sequence[str]) -> int:
    """Explain a caption, print it, write the page or picture, and return the exit code."""
    args = read_settings(ExplainArguments, argv, "ituning explain", _DESCRIPTION, _EXAMPLES)
    output = Path(args.output or f"{Path(args.image).stem}.html")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output is {str(output)!r}, and there is no folder {output.parent}")
    quiet_transformers()
    from ..data.images import UnreadableImageError, load_image
    from ..inference.explain import explain
    from ..inference.explanation import check_format

    try:
        image = load_image(args.image)
    except UnreadableImageError as error:
        raise UserError(str(error)) from error
    check_format(output)
    model, processor = args.load_captioner(args.device)
    explanation = explain(
        model,
        image,
        processor,
        text=args.text,
        prompt=args.prompt,
        layers=args.layers or None,
        num_beams=args.num_beams,
        max_new_tokens=args.max_new_tokens,
    )
    explanation.save(output)
    print(printable(explanation.caption))
    print(f"Written to {printable(str(output))}")
    return 0
