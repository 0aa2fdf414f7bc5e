"""WebDataset tar shards, on this machine or at any address that fsspec reads."""

from __future__ import annotations

import glob
import itertools
import logging
import os
import posixpath
import re
import shutil
import tarfile
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..utils.errors import UserError, WorkError
from .columns import CaptionedImage, FilePart
from .folders import CAPTION_SUFFIXES, find_tars, folder_format, parse_caption_file
from .images import IMAGE_SUFFIXES
from .records import MissingSplitError, first_names
from .splits import split_of, split_of_folder

logger = logging.getLogger(__name__)

_DOWNLOAD_BLOCK = 2**24  # bytes
_MEMBER_SUFFIXES = (*CAPTION_SUFFIXES, ".json")  # of members with captions, in order of preference
_KINDS = ("image", *_MEMBER_SUFFIXES)


def expand_braces(pattern: str) -> list[str]:
    """Expand braces as Bash does: `{00..12}` and `{train,val}`, also nested.

    Raises:
        UserError: A brace has no partner, or braces contain neither a range nor a comma.
    """
    start = pattern.find("{")
    if start < 0:
        return [pattern]
    depth, options, begin = 0, [], start + 1
    for end in range(start, len(pattern)):
        depth += (pattern[end] == "{") - (pattern[end] == "}")
        if depth == 0 or (depth == 1 and pattern[end] == ","):
            options.append(pattern[begin:end])
            begin = end + 1
        if depth == 0:
            break
    else:
        raise UserError(f"{pattern!r} has an opening brace without a closing one")
    chosen = [*itertools.chain(*map(expand_braces, options))] if len(options) > 1 else _range(options[0])
    rests = expand_braces(pattern[begin:])
    return [pattern[:start] + option + rest for option in chosen for rest in rests]


def _range(text: str) -> list[str]:
    """Expand `00..12`; the first number's leading zeros give the width."""
    match = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if match is None:
        raise UserError(f"{{{text}}} is neither a range, such as {{000..099}}, nor a list, such as {{a,b}}")
    first, last = match.groups()
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


def find_shards(dataset: str) -> dict[str, str]:
    """Return the shards that a dataset names: their addresses by name.

    A name is the part of the address after the folder that all shards share, without ".tar". A dataset is a
    path or an fsspec address that ends in ".tar", with braces or wildcards; or a folder of `.tar` files, see
    `folder_format`. For any other dataset the result is empty.

    Raises:
        UserError: Braces or an address cannot be used.
        FileNotFoundError: Local files do not exist, or nothing matches a wildcard.
    """
    if os.path.isdir(dataset):
        if folder_format(Path(dataset)) != "tar shards":
            return {}
        addresses = [*map(str, find_tars(Path(dataset)))]
    elif not dataset.lower().endswith(".tar"):
        return {}
    elif os.path.exists(dataset):  # with braces or wildcards in its name
        addresses = [dataset]
    else:
        patterns = expand_braces(dataset)
        addresses = [address for pattern in patterns for address in _matches(pattern)]
        missing = [name for name in addresses if "://" not in name and not os.path.isfile(name)]
        if missing or not addresses:
            found = f"{len(missing):,} of {len(addresses):,} shards are missing ({first_names(missing)})"
            raise FileNotFoundError(found if missing else f"no shards match {dataset!r}")
    posix = {name if "://" in name else Path(name).as_posix(): name for name in addresses}
    folder = os.path.commonprefix([path[: path.rfind("/") + 1] for path in posix])  # noqa: RUF071 (addresses)
    start = folder.rfind("/") + 1
    return {path[start:].removesuffix(".tar"): address for path, address in posix.items()}


def _matches(pattern: str) -> list[str]:
    if "://" not in pattern:
        return sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    if not re.search(r"[*\[]", pattern):  # a question mark is part of a URL
        return [pattern]
    files, path = _open_filesystem(pattern)
    try:
        return [files.unstrip_protocol(found) for found in sorted(files.glob(path))]
    except Exception as error:  # of any storage service
        raise UserError(f"{pattern!r} cannot be listed: {_one_line(error)}") from error


def _open_filesystem(address: str) -> tuple[Any, str]:
    import fsspec  # for remote shards only

    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:  # a package that is not installed, an unknown protocol
        raise UserError(f"{address!r} cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def select_shards(shards: Mapping[str, str], split: str, where: str) -> tuple[dict[str, str], str | None]:
    """Select the shards that may contain images of a split.

    A shard's name, or else that of a folder of the dataset that it is in, states its split; without one it is
    "train". If there is no other split than "train", the images themselves are drawn for "train" and "val".

    Returns:
        The shards, and the split of all their images; None if it is drawn for each image.

    Raises:
        MissingSplitError: No shard is of the split.
    """
    splits = {name: _split_of(name, address) for name, address in shards.items()}
    if set(splits.values()) == {"train"} or split == "all":
        return dict(shards), None
    selected = {name: address for name, address in shards.items() if splits[name] == split}
    if not selected:
        raise MissingSplitError(where, split, Counter(splits.values()))
    return selected, split


def _split_of(name: str, address: str) -> str:
    folder = address.replace("\\", "/").split("/")[-2:-1]
    return split_of(name) or split_of_folder("".join(folder)) or "train"


class Shard:
    """The samples of a tar shard, to be read in any order; `shard[i]` is a `CaptionedImage`.

    A sample is an image (a member whose suffix is one of `IMAGE_SUFFIXES`) with the members of the same key:
    the path up to the first dot of the file name. Its captions are those of the first member that has any,
    of `.txt`, `.caption` and `.json`; see `parse_caption_file`. Members of other kinds, of longer suffixes
    such as ".seg.png", and keys without an image are passed over. Of images with the same key, the first is
    used, and a warning counts the others. A link has the content of an earlier member, or is counted as well.

    Opening a shard reads its headers. Images of a local shard are read when they are needed. A remote shard
    is downloaded to an unnamed temporary file, which is gone when the object is (also after SIGKILL), and its
    images contain their bytes.

    Attributes:
        damage: The reason why the shard is not complete, or None. The samples before the damage are there.

    Raises:
        OSError, WorkError: The shard cannot be opened or downloaded.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.damage: str | None = None
        self._path = None if "://" in address else Path(address)
        self._file: IO[bytes] = _download(address) if self._path is None else self._path.open("rb")
        weakref.finalize(self, self._file.close)
        empty = [-1] * 2 * len(_KINDS)  # the offset and length of each kind
        samples: dict[str, list[int]] = {}
        left_out: list[str] = []
        for member in self._members():
            if (found := _key_and_place(member.name)) is None:
                continue
            (key, place), part = found, [member.offset_data, member.size]
            if not member.isreg():
                base = "" if member.islnk() else posixpath.dirname(member.name)
                target, start = _key_and_place(posixpath.join(base, member.linkname)) or ("", 0)
                part = samples.get(target, empty)[start : start + 2]
            row = samples.setdefault(key, [*empty])
            if row[place] < 0 <= part[0]:
                row[place : place + 2] = part
            elif place == 0 or part[0] < 0:
                left_out.append(member.name)
        if left_out:
            text = "%s: %s images have the name of another or link to no earlier file, and are left out (%s)"
            logger.warning(text, address, f"{len(left_out):,}", first_names(left_out))
        self._keys = [key for key, row in samples.items() if row[0] >= 0]
        self._parts = np.array([samples[key] for key in self._keys], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._keys)

    def name_of(self, index: int) -> str:
        """Return the name of a sample's image, which contains the shard's; reads nothing."""
        return f"{self.name}/{self._keys[index]}"

    def __getitem__(self, index: int) -> CaptionedImage:
        """Return a sample; `captions` may be empty.

        Raises:
            UserError: A member cannot be read as captions.
        """
        (offset, length), *texts = self._parts[index].reshape(-1, 2).tolist()
        captions: tuple[str, ...] = ()
        for kind, part in zip(_MEMBER_SUFFIXES, texts, strict=True):
            if part[0] >= 0 and not captions:
                where = f"{self.address}, member {self._keys[index]}{kind}"
                captions = parse_caption_file(self._read(*part), kind, where)
        source = self._read(offset, length) if self._path is None else FilePart(self._path, offset, length)
        return CaptionedImage(self.name_of(index), captions, source)

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

    def _members(self) -> Iterator[tarfile.TarInfo]:
        """Yield the files and links in the shard up to its end or the first damage."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        try:
            with tarfile.open(
                fileobj=self._file, mode="r:", encoding="utf-8", errors="surrogateescape"
            ) as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined] # it would keep 1 kB of each
                    if member.isreg() and member.offset_data + member.size > size:
                        raise tarfile.ReadError("it ends in the middle of a file")
                    if member.islnk() or member.issym() or (member.isreg() and not member.issparse()):
                        yield member
                if self._read(tar.offset, tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError("it has a damaged header")  # which tarfile takes for the end
        except (tarfile.TarError, ValueError, EOFError) as error:  # ValueError: of numbers in a header
            self.damage = f"{self.address} is damaged: {_one_line(error)}"


def _key_and_place(name: str) -> tuple[str, int] | None:
    """Return a member's key, and the place of its offset in a row of kinds; None for other members."""
    folder, _, file_name = name.rpartition("/")
    stem, dot, suffix = file_name.partition(".")
    kind = "image" if dot + suffix.lower() in IMAGE_SUFFIXES else dot + suffix.lower()
    if not stem or kind not in _KINDS:  # an empty stem: "._dog.jpg" of macOS
        return None
    return f"{folder}/{stem}".lstrip("/"), 2 * _KINDS.index(kind)


def _download(address: str, pauses: Sequence[int] = (1, 4, 16)) -> IO[bytes]:
    """Copy a remote file to an unnamed temporary file; try again after so many seconds."""
    files, path = _open_filesystem(address)
    target = tempfile.TemporaryFile(prefix="ituning-")  # noqa: SIM115 (it stays open)
    try:
        with files.open(path, "rb", block_size=_DOWNLOAD_BLOCK, cache_type="none") as source:
            shutil.copyfileobj(source, target, _DOWNLOAD_BLOCK)
        return target
    except Exception as error:  # of any storage service
        target.close()
        if not pauses or isinstance(error, FileNotFoundError):
            raise WorkError(f"{address} cannot be downloaded: {_one_line(error)}") from error
        logger.warning("%s: %s; trying again in %s s", address, _one_line(error), pauses[0])
    time.sleep(pauses[0])
    return _download(address, pauses[1:])


def read_shards(shards: Mapping[str, str], split: str | None = None) -> Iterator[CaptionedImage]:
    """Read the images of shards in order, one shard at a time; also those without captions.

    Args:
        shards: Addresses by name, as `find_shards` returns them.
        split: The split of all images, or None.

    Raises:
        UserError: A shard is damaged, or a member cannot be read as captions.
        OSError, WorkError: A shard cannot be read.
    """
    for name, address in shards.items():
        shard = Shard(name, address)
        if shard.damage:
            raise UserError(f"{shard.damage}. Copy or download it again, or leave it out")
        for index in range(len(shard)):
            yield replace(shard[index], split=split)
