"""`ituning push`: a saved captioner to the Hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .arguments import HelpFormatter

_EXAMPLES = """\
examples:
  ituning push my-captioner/best org/my-captioner --dry_run
  ituning push my-captioner/best org/my-captioner --private
  ituning push my-captioner/best org/my-captioner \\
      --vision_model openai/clip-vit-base-patch16 --text_model gpt2

The last is for a captioner that was trained over local copies of models that are on the Hub: it is checked
that they are the same. A model of your own goes there first, `hf upload org/my-gpt2 path/to/my-gpt2`, and its
id is then given in the same way. The captioner's folder stays as it is.
"""


def add_parser(commands: Any) -> None:
    """Add the command to those of `ituning`."""
    parser = commands.add_parser(
        "push",
        help="put a saved captioner on the Hub",
        description="Put a saved captioner on the Hub in one commit: the adapter, its settings, its "
        "processor, its card and the code that loads it. The frozen models stay where they are.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="a captioner's folder")
    add("repo", metavar="REPO", help="its id on the Hub, such as org/my-captioner; made if it is not there")
    add("--private", action="store_true", help="make it private")
    add("--revision", metavar="BRANCH", help="the branch, made if it is not there (main)")
    add(
        "--message",
        default="Upload captioner",
        metavar="TEXT",
        help="what the history says of it (%(default)s)",
    )
    add("--dry_run", action="store_true", help="check it and list what would go, without network")
    add("--vision_model", metavar="ID", help="the frozen vision encoder's id on the Hub")
    add("--text_model", metavar="ID", help="the frozen language model's id on the Hub")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Push the captioner, or list what would go, and return the exit code."""
    from ..hub.push import push_captioner

    if options.dry_run:
        _list(options)
        return 0
    result = push_captioner(
        options.folder,
        options.repo,
        private=options.private,
        revision=options.revision,
        commit_message=options.message,
        vision_model=options.vision_model,
        text_model=options.text_model,
    )
    if not result.changed:
        print("the same files were there already: no commit was made")
    if result.card_kept:
        print("the model card there was edited on the Hub, and stays")
    for name, why in result.not_for_all.items():
        print(
            f"{name} is {why}: whoever has no access to it cannot load this public captioner", file=sys.stderr
        )
    print(f"{result.url} at commit {result.commit}")
    revision = f', revision="{options.revision}"' if options.revision else ""
    print(f'AutoModel.from_pretrained("{result.repo_id}", trust_remote_code=True{revision})')
    return 0


def _list(options: argparse.Namespace) -> None:
    from ..hub.push import check_repo_id
    from ..hub.review import review_captioner

    check_repo_id(options.repo)
    review = review_captioner(
        options.folder, vision_model=options.vision_model, text_model=options.text_model
    )
    sizes = review.sizes(options.repo)
    for name, size in sizes.items():
        print(f"{size:>13,} bytes  {name}")
    print(f"{sum(sizes.values()):>13,} bytes  in {len(sizes)} files")
    if review.left_out:
        print(f"left out: {', '.join(review.left_out)}")
    rendered = review.card_is_rendered
    print(
        f"card: {f'rendered for {options.repo}' if rendered else 'yours: sent with its metadata completed'}"
    )
    for kind, place in review.places.items():
        at = place.revision or "its newest commit, whose weights are compared first"
        print(f"{kind} model: {place.name} at {at}")
    private = "private " if options.private else ""
    print(f"to the {private}repository {options.repo}, branch {options.revision or 'main'}; nothing was sent")
