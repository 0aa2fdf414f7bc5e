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
    """Push the captioner, or list its files, and return the exit code."""
    from ..hub.push import list_files, missing_metadata, push_captioner

    backbones = {"vision_model": options.vision_model, "text_model": options.text_model}
    if options.dry_run:
        sizes = list_files(options.folder, options.repo, **backbones)
        for name, size in sizes.items():
            print(f"{size:>13,} bytes  {name}")
        print(f"{sum(sizes.values()):>13,} bytes  in {len(sizes)} files")
    else:
        commit = push_captioner(
            options.folder,
            options.repo,
            private=options.private,
            revision=options.revision,
            commit_message=options.message,
            **backbones,
        )
        revision = f', revision="{options.revision}"' if options.revision else ""
        print(f"{commit.repo_url} at commit {commit.oid}")
        print(f'AutoModel.from_pretrained("{commit.repo_url.repo_id}", trust_remote_code=True{revision})')
    if missing := missing_metadata(options.folder):
        print(f"The model card has no {' and no '.join(missing)}: add it to README.md.", file=sys.stderr)
    return 0
