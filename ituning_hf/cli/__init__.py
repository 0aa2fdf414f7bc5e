"""The `ituning` command: train a captioner, caption images with it, upload it to the Hub.

Each command is a module with the command's name and a function `run(argv)` that returns the exit code. These
modules import only what parsing needs at the top, so that help and usage errors are fast.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module

from .._version import __version__
from ..utils.errors import OtherProcessError, UserError, exit_code_of
from ..utils.settings import nearest
from ..utils.terminal import printable

# In the order in which --help lists them.
_COMMANDS = {
    "demo": "train and try a captioner of synthetic scenes in minutes, without downloads",
    "features": "compute and store the vision encoder's features of a dataset",
    "train": "train a captioner",
    "evaluate": "caption a dataset and score the captions",
    "caption": "caption images",
    "explain": "show which parts of an image each word of a caption attends to",
    "app": "caption images in the browser",
    "serve": "caption images over HTTP",
    "info": "describe a saved captioner",
    "push": "upload a saved captioner to the Hub",
    "convert": "convert a captioner to a PEFT adapter, or a PEFT adapter to a captioner",
}
_DESCRIPTION = """\
Train a small image captioner between a frozen vision encoder and a frozen
language model, and use it. ituning COMMAND --help shows a command's options."""
_EXAMPLES = """\
examples:
  ituning demo
  ituning train --dataset photos/ --output_dir my-captioner
  ituning evaluate --model my-captioner/best --dataset photos/ --split val
  ituning caption photos/ --model my-captioner/best --output captions.jsonl
  ituning app my-captioner/best
  ituning serve my-captioner/best
  ituning info my-captioner/best
  ituning push my-captioner/best org/my-captioner --dry_run

Options may be spelt with hyphens (--dry-run) and may be given in a YAML file
(--config FILE). Set ITUNING_TRACEBACK=1 in the environment to see the traceback
of an error.
"""
# The captioner's errors name the argument of `from_pretrained`; a command has an option for it.
_IN_PYTHON = re.compile(r"(vision|text)_model_name_or_path=\.\.\.,? to from_pretrained")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `ituning` command.

    Args:
        argv: Its arguments; those of the process by default.

    Returns:
        The exit code: 0; 1 if an image could not be read or long work failed; 2 for a user error; 130
        after Ctrl-C; 141 if the reader of the output has exited.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # the terminal's encoding may lack characters of a caption or file name
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # it flushes first, which can fail
                stream.reconfigure(errors="backslashreplace")
    try:
        command = choose_command("ituning", _COMMANDS, arguments, _DESCRIPTION, _EXAMPLES)
        code = import_module(f".{command}", __name__).run(arguments[1:])
        if sys.stdout is not None:  # the parent process may have closed it
            sys.stdout.flush()  # here, where a broken pipe can still be handled
    except KeyboardInterrupt as stopped:
        print("ituning:", str(stopped) or "interrupted", file=sys.stderr)
        return getattr(stopped, "exit_code", 130)
    except BrokenPipeError:  # ituning ... | head
        # Python flushes once more at exit, and would report an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OtherProcessError as error:  # that process reports it
        if error.on_other_host:
            print("ituning: error:", _as_text(error), file=sys.stderr)
        return error.exit_code
    except Exception as error:
        exit_code = exit_code_of(error)
        if os.environ.get("ITUNING_TRACEBACK") or exit_code is None:
            raise
        print("ituning: error:", _as_text(error), file=sys.stderr)
        return exit_code
    return code


def choose_command(
    prog: str, commands: Mapping[str, str], argv: Sequence[str], description: str, examples: str = ""
) -> str:
    """Return the command that the first argument names.

    Args:
        prog: The program, such as "ituning".
        commands: A line of help for each command.
        argv: The program's arguments.
        description: Its purpose, for the help.
        examples: The end of the help.

    Raises:
        UserError: for an unknown command.
        SystemExit: after `--help` and `--version`.
    """
    if argv and argv[0] in commands:
        return argv[0]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} COMMAND [--OPTION VALUE ...]",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ituning {__version__}")
    added = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in commands.items():
        added.add_parser(name, help=text)
    if argv and argv[0] in ("-h", "--help", "--version"):
        parser.parse_args(argv[:1])
    problem = f"{argv[0]!r} is not a command{nearest(argv[0], commands)}" if argv else "a command is missing"
    raise UserError(f"{problem}. {prog} --help lists the commands")


def _as_text(error: Exception) -> str:
    """Return the message in the command's own terms: a list as it is, anything else in one line."""
    lines = [*map(printable, _IN_PYTHON.sub(r"--\1_model MODEL", str(error)).splitlines())]
    return "\n".join(lines) if lines[1:] and lines[1].startswith("- ") else " ".join(lines)
