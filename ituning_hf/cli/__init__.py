"""The `ituning` command: train a captioner, caption images with it, put it on the Hub.

Each command is a module of its own: `add_parser` describes its arguments, `run` does it and returns the exit
code. A new one is such a module, and its name in `_COMMANDS`. Nothing heavy is imported at the top of any:
each brings what it needs when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress

from .._version import __version__
from ..utils.errors import WorkError
from ..utils.terminal import printable
from . import caption, convert, demo, evaluate, features, info, push, replay, train
from .arguments import HelpFormatter

# In the order in which --help lists them.
_COMMANDS = (demo, features, train, evaluate, caption, info, push, convert, replay)
# Their options, --help among them, are not described here: they may stand in a file too.
_WITH_OWN_PARSER = {
    ("train",): train.run,
    ("evaluate",): evaluate.run,
    ("features", "build"): features.run_build,
}

_IN_PYTHON = re.compile(r"from_pretrained\(\.\.\., (vision|text)_model_name_or_path=\.\.\.\)")
_HYPHENED = re.compile("--[a-z]+(-[a-z]+)+(=.*)?", re.DOTALL)

_EXAMPLES = """\
examples:
  ituning demo
  ituning train --dataset photos/ --vision_model openai/clip-vit-base-patch16 \\
      --text_model gpt2 --output_dir my-captioner
  ituning evaluate --model my-captioner/best --dataset photos/ --split val
  ituning caption photos/ --model my-captioner/best --output captions.jsonl
  ituning info my-captioner/best
  ituning push my-captioner/best org/my-captioner --dry_run

Options may be spelt with hyphens too: --dry-run is --dry_run.
Mistakes are told in one line, several at once in a list; with the whole
traceback where ITUNING_TRACEBACK=1 is in the environment.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `ituning` command.

    Args:
        argv: Its arguments; those of the process by default.

    Returns:
        The exit code: 0, or 1 where an image could not be read or a long work failed on its way, 2 for a
        mistake of the user's, 130 after Ctrl-C, 141 when whoever read the output has gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal may not know every letter of a caption or a name
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # it flushes first, and what is there may not be written
                stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        if sys.stdout is not None:  # closed by whoever started this
            sys.stdout.flush()  # here, where a reader that has gone can still be met
    except KeyboardInterrupt as stopped:
        print("ituning:", str(stopped) or "interrupted", file=sys.stderr)
        return getattr(stopped, "exit_code", 130)
    except BrokenPipeError:  # ituning ... | head
        # Python flushes once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("ITUNING_TRACEBACK") or not _is_foreseen(error):
            raise
        print("ituning: error:", _told(error), file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    return code


def _told(error: Exception) -> str:
    """Return an error's message in the command's own terms: a list as it is, anything else in one line."""
    lines = [*map(printable, _IN_PYTHON.sub(r"--\1_model PLACE", str(error)).splitlines())]
    return "\n".join(lines) if lines[1:] and lines[1].startswith("- ") else " ".join(lines)


def _run(arguments: list[str]) -> int:
    for words, run in _WITH_OWN_PARSER.items():
        if tuple(arguments[: len(words)]) == words:
            return run(arguments[len(words) :])
    end = arguments.index("--") if "--" in arguments else len(arguments)  # what follows are file names
    spelt = [*map(_with_underscores, arguments[:end]), *arguments[end:]]
    options, unknown = _parser().parse_known_args(spelt)
    if unknown:
        raise ValueError(_not_understood(unknown[0], options.parser))
    _silence_transformers()
    return options.run(options)


def _with_underscores(argument: str) -> str:
    """Take the spelling that others use, --num-beams, for --num_beams."""
    if not _HYPHENED.fullmatch(argument):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name.removeprefix("--").replace("-", "_") + equals + value


def _not_understood(argument: str, command: argparse.ArgumentParser) -> str:
    name = argument.partition("=")[0]
    if not name.startswith("-"):
        return f"{name!r} belongs to no option; {command.prog} --help shows them."
    nearest = difflib.get_close_matches(name, re.findall("--[a-z_]+", command.format_usage()), n=1)
    meant = f": did you mean {nearest[0]}?" if nearest else "."
    return f"{name} is no option{meant} {command.prog} --help shows them."


def _is_foreseen(error: Exception) -> bool:
    """Tell whether an error is told well by its own message; a traceback is for faults of ours."""
    # The last is not a missing module's, whose error is a class of its own.
    return isinstance(error, (OSError, ValueError, WorkError)) or type(error) is ImportError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ituning",
        description="Train a small image captioner between a frozen CLIP and a frozen GPT-2, and use it.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ituning {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    for added in commands.choices.values():
        added.set_defaults(parser=added)  # a command's own commands name theirs
    return parser


def _silence_transformers() -> None:
    """Keep load bars and advice off the terminal; what goes wrong is an error anyway."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
