"""Settings of a command: declared once, read from flags and from a file, checked, and shown in the help."""

from .command_line import CommandLine, read_config
from .dataset import DatasetArguments
from .options import Settings

__all__ = ["CommandLine", "DatasetArguments", "Settings", "read_config"]
