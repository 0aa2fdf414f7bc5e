"""`ituning push`: upload a saved captioner to the Hub."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..training.arguments import DEFAULT_TEXT_MODEL, DEFAULT_VISION_MODEL
from ..utils.errors import UserError
from ..utils.rules import FOLDER, NAME
from ..utils.settings import REQUIRED, Settings, option, read_settings
from ..utils.terminal import printable, quiet_transformers

_DESCRIPTION = """\
Upload a saved captioner to the Hub in one commit: the adapter, its settings,
its processor, its card and the code that loads it. The frozen models are not
uploaded."""
_EXAMPLES = f"""\
examples:
  ituning push my-captioner/best org/my-captioner --dry_run
  ituning push my-captioner/best org/my-captioner --private --endpoint
  ituning push my-captioner/best org/my-captioner --space
  ituning push my-captioner/best org/my-captioner \\
      --vision_model {DEFAULT_VISION_MODEL} --text_model {DEFAULT_TEXT_MODEL}

The last command is for a captioner that was trained with local copies of models
on the Hub: the weights are compared first. Upload a model of your own before
the captioner (hf upload org/my-model path/to/my-model) and give its id in the
same way. The captioner's folder is not changed.
"""


@dataclass
class PushArguments(Settings):
    """The settings of `ituning push`."""

    folder: str = option(REQUIRED, "a captioner's folder", FOLDER, positional=True)
    repo: str = option(
        REQUIRED,
        "the repository on the Hub, such as org/my-captioner; created if it does not exist",
        NAME,
        metavar="REPO",
        positional=True,
    )
    private: bool = option(False, "create a private repository")
    revision: str | None = option(
        None, "the branch, created if it does not exist", NAME, "main", metavar="BRANCH"
    )
    message: str = option("Upload captioner", "the commit's message", NAME, metavar="TEXT")
    endpoint: bool = option(False, "add handler.py, with which Inference Endpoints serve the captioner")
    space: bool = option(False, "also create the Space REPO, which runs `ituning app` for the captioner")
    dry_run: bool = option(False, "check the captioner and list the files to upload, without network access")
    vision_model: str | None = option(
        None, "the frozen vision encoder's id on the Hub", NAME, "as stored", metavar="ID"
    )
    text_model: str | None = option(
        None, "the frozen language model's id on the Hub", NAME, "as stored", metavar="ID"
    )

    def __post_init__(self) -> None:
        """Check the settings, also against each other."""
        super().__post_init__()
        if self.space and self.revision is not None:
            raise UserError("--space runs the captioner of the branch main: remove --revision")

    def backbones(self) -> dict[str, str | None]:
        """Return the given ids of the frozen models."""
        return {"vision_model": self.vision_model, "text_model": self.text_model}


def run(argv: Sequence[str]) -> int:
    """Push the captioner or list its files, and return the exit code."""
    args = read_settings(PushArguments, argv, "ituning push", _DESCRIPTION, _EXAMPLES)
    quiet_transformers()
    from ..hub.push import missing_metadata

    if args.dry_run:
        _list(args)
    else:
        _push(args)
    if missing := missing_metadata(args.folder):
        them = "them" if len(missing) > 1 else "it"
        print(f"The model card has no {' and no '.join(missing)}: add {them} to README.md.", file=sys.stderr)
    return 0


def _list(args: PushArguments) -> None:
    from ..hub.push import list_files
    from ..hub.space import list_space_files

    sizes = list_files(args.folder, args.repo, **args.backbones(), endpoint=args.endpoint)
    _print_sizes(sizes)
    if others := sorted(path.name for path in Path(args.folder).iterdir() if path.name not in sizes):
        print(f"Not uploaded: {', '.join(map(printable, others))}")
    if given := [name for name in args.backbones().values() if name]:
        print(f"Weights not compared in a dry run: {', '.join(map(printable, given))}")
    if args.space:
        print(f"The Space {args.repo}:")
        _print_sizes(list_space_files(args.repo))


def _print_sizes(sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        print(f"{size:>13,} bytes  {name}")
    print(f"{sum(sizes.values()):>13,} bytes  in {len(sizes)} files")


def _push(args: PushArguments) -> None:
    from ..hub.push import push_captioner
    from ..hub.space import push_space, require_gradio

    if args.space:
        require_gradio()  # before the captioner is uploaded
    commit = push_captioner(
        args.folder,
        args.repo,
        private=args.private,
        revision=args.revision,
        commit_message=args.message,
        **args.backbones(),
        endpoint=args.endpoint,
    )
    repo_id = commit.repo_url.repo_id
    revision = f', revision="{args.revision}"' if args.revision else ""
    print(f"{commit.repo_url} at commit {commit.oid}")
    print(f'AutoModel.from_pretrained("{repo_id}", trust_remote_code=True{revision})')
    if args.space:
        commit = push_space(repo_id, private=args.private)
        print(f"{commit.repo_url} at commit {commit.oid}")
