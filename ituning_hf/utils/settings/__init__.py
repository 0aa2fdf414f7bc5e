"""Settings of a command: declared once, read from flags and from a file, checked, and shown in the help."""

from .command_line import CommandLine, read_config
from .options import Settings

__all__ = ["CommandLine", "Settings", "read_config"]
