"""Small tar shards."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

COLOURS = ["red", "green", "blue", "white", "black"]


def png(width: int = 8, height: int = 8, colour: str = "red") -> bytes:
    """Return the file of a picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def tar_bytes(members: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar file with these members, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def colour_samples(keys: Iterable[int]) -> dict[str, bytes]:
    """Return members of samples: pictures of different sizes, with captions of different lengths."""
    members = {}
    for key in keys:
        colour = COLOURS[key % len(COLOURS)]
        captions = [f"a {colour} dog", f"a {colour} bird on the grass" + " in a tree" * (key % 3)]
        members[f"{key:05}.png"] = png(8 + key % 7, 9, colour)
        members[f"{key:05}.txt"] = "\n".join(captions[: 1 + key % 2]).encode()
    return members


def write_shards(folder: Path, sizes: Iterable[int], pattern: str = "{:03}.tar") -> list[str]:
    """Write shards of these numbers of samples, with keys that count over all shards; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, start = [], 0
    for number, size in enumerate(sizes):
        path = folder / pattern.format(number)
        path.write_bytes(tar_bytes(colour_samples(range(start, start + size))))
        paths.append(str(path))
        start += size
    return paths
