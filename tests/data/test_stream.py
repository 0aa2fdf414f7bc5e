"""The order of a stream of shards, for any number of processes, from any position."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import fsspec
import numpy as np
import pytest
from small_shards import colour_samples, png, tar_bytes, write_shards
from torch.utils.data import DataLoader

from ituning_hf.data import stream
from ituning_hf.data.dataset import CaptionDataset
from ituning_hf.data.records import MissingSplitError
from ituning_hf.data.sampler import SampleKey
from ituning_hf.data.selection import random_number
from ituning_hf.data.shards import Shard, find_shards, read_shards
from ituning_hf.data.stream import ShardStream, StreamSampler
from ituning_hf.utils.errors import UserError, WorkError

SIZES = (5, 1, 0, 12, 3, 7)
SEED = 4


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, str]:
    """Six shards of different sizes, of which one is empty and one has an image without captions."""
    paths = write_shards(tmp_path / "shards", SIZES)
    content = colour_samples(range(15, 18)) | {"x.png": png()}
    Path(paths[4]).write_bytes(tar_bytes(content))
    return find_shards(str(tmp_path / "shards"))


def make(shards: dict[str, str], val_share: float = 0.0, num_images: int | None = None) -> ShardStream:
    return ShardStream(shards, SEED, val_share, num_images)


def sampler(
    source: ShardStream, size: int, accumulation: int = 1, processes: int = 1, index: int = 0, **options
):
    return StreamSampler(source, size, accumulation, processes, index, **options)


def take(reader: StreamSampler, steps: int) -> list[list[SampleKey]]:
    """Return the keys of the first steps; account for each step as the trainer does."""
    taken = []
    with closing(iter(reader)) as batches:
        for _ in range(steps):
            taken.append([key for _ in range(reader.step_shape[0]) for key in next(batches)])
            reader.next_position()
    return taken


def names(steps: Sequence[Sequence[SampleKey]]) -> list[list[str]]:
    return [[key.image.name for key in step] for step in steps]


def naive_lane(shards: dict[str, str], lane: int, lanes: int, val_share: float) -> Iterator[str]:
    """The images of a lane, from the definition."""
    for epoch in itertools.count():
        order = np.random.default_rng([SEED, epoch]).permutation(len(shards))
        for number in order[lane::lanes]:
            name = list(shards)[number]
            images = list(read_shards({name: shards[name]}))
            for i in np.random.default_rng([SEED, epoch, number]).permutation(len(images)):
                if images[i].captions and random_number(SEED, images[i].name) >= val_share:
                    yield images[i].name


@pytest.mark.parametrize(("size", "lanes"), [(1, 1), (4, 4), (6, 6), (5, 5), (8, 4), (7, 1)])
@pytest.mark.parametrize("val_share", [0.0, 0.3])
def test_the_order_is_that_of_its_definition(shards: dict, size: int, lanes: int, val_share: float):
    found = names(take(sampler(make(shards, val_share), size), 40))
    readers = [naive_lane(shards, lane, lanes, val_share) for lane in range(lanes)]
    expected = [[next(reader) for reader in readers for _ in range(size // lanes)] for _ in range(40)]
    assert found == expected


def test_every_epoch_has_every_image_once(shards: dict):
    keys = [key for step in take(sampler(make(shards), 4), 120) for key in step]
    everything = {image.name for image in read_shards(shards) if image.captions}
    for epoch in range(3):
        assert Counter(key.image.name for key in keys if key.epoch == epoch) == dict.fromkeys(everything, 1)
    assert len({(key.epoch, key.index) for key in keys}) == len(keys)
    orders = [[key.image.name for key in keys if key.epoch == epoch] for epoch in range(2)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("processes", [2, 3, 4, 6, 12])
def test_processes_share_the_steps_of_one(shards: dict, processes: int, accumulation: int):
    source, size = make(shards), 24
    one = take(sampler(source, size), 12)
    parts = []
    for index in range(processes):
        parts.append(take(sampler(source, size // processes, 1, processes, index), 12))
    assert [[key for part in step for key in part] for step in zip(*parts, strict=True)] == one
    split = take(sampler(source, size // 3, 3), 12)
    assert split == one


def test_each_shard_is_read_by_one_process_if_their_number_divides_the_lanes(
    shards: dict, monkeypatch: pytest.MonkeyPatch
):
    opened: list[str] = []

    def watch(name: str, address: str) -> Shard:
        opened.append(name)
        return Shard(name, address)

    monkeypatch.setattr(stream, "Shard", watch)
    found = []
    for index in range(2):
        opened.clear()
        take(sampler(make(shards), 6, 1, 2, index), 1)
        found.append(set(opened))
    first = [list(shards)[number] for number in np.random.default_rng([SEED, 0]).permutation(6)]
    assert set(first[:3]) <= found[0]
    assert set(first[3:]) <= found[1]
    assert not set(first[3:]) <= found[0]


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_one_shard_is_enough_for_any_number_of_processes(tmp_path: Path, processes: int):
    write_shards(tmp_path, [5])
    source = make(find_shards(str(tmp_path)))
    parts = [take(sampler(source, 8 // processes, 1, processes, i), 3) for i in range(processes)]
    together = [[key for part in step for key in part] for step in zip(*parts, strict=True)]
    assert together == take(sampler(source, 8), 3)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 2), (1, 4), (4, 1), (3, 2)])
def test_a_stream_continues_from_any_position(shards: dict, first: int, second: int):
    source = make(shards, val_share=0.2)
    whole = take(sampler(source, 12), 30)
    for steps in range(0, 30, 7):
        readers = [sampler(source, 12 // first, 1, first, index) for index in range(first)]
        for reader in readers:
            take(reader, steps)
        merged = [max(lanes) for lanes in zip(*(reader.positions for reader in readers), strict=True)]
        start = json.loads(json.dumps(merged))
        assert all(isinstance(number, int) for lane in start for number in lane)
        rest = [
            take(sampler(source, 12 // second, 1, second, index, positions=start), 30 - steps)
            for index in range(second)
        ]
        assert [[k for part in step for k in part] for step in zip(*rest, strict=True)] == whole[steps:]


class Keys(CaptionDataset):
    """Returns the keys themselves."""

    def __init__(self) -> None:
        pass

    def __getitem__(self, key: SampleKey) -> SampleKey:  # type: ignore[override]
        assert key.image is not None
        assert key.image.load().width == 8 + int(key.image.name[-5:]) % 7
        return key


@pytest.mark.parametrize("workers", [0, 2])
def test_the_position_is_that_of_the_batches_taken_and_not_of_those_read_ahead(shards: dict, workers: int):
    source = make(shards)
    whole = names(take(sampler(source, 6), 12))
    reader = sampler(source, 3, 2)
    batches = iter(DataLoader(Keys(), batch_sampler=reader, collate_fn=list, num_workers=workers))
    for step in range(5):
        assert names([next(batches) + next(batches)]) == [whole[step]]
        positions = list(reader.next_position())
    del batches  # ends the workers
    assert names(take(sampler(source, 3, 2, positions=positions), 7)) == whole[5:]


def test_remote_shards_give_the_order_of_local_ones(shards: dict):
    memory = fsspec.filesystem("memory")
    for name, address in shards.items():
        memory.pipe(f"/stream/{name}.tar", Path(address).read_bytes())
    remote = {name: f"memory://stream/{name}.tar" for name in shards}
    ours, theirs = (take(sampler(make(source), 4), 20) for source in (shards, remote))
    assert names(ours) == names(theirs)
    assert [key.image.source for step in theirs for key in step] == [
        key.image.read() for step in ours for key in step
    ]


def test_a_damaged_shard_is_used_up_to_the_damage(shards: dict, caplog: pytest.LogCaptureFixture):
    content = Path(shards["003"]).read_bytes()
    expected = sum(image.name.startswith("003") for image in read_shards(shards)) // 2
    half = content[: content.index(f"{6 + expected:05}.png".encode()) + 100]
    Path(shards["003"]).write_bytes(half)
    keys = [key for step in take(sampler(make(shards), 1), 60) for key in step]
    assert sum(key.epoch == 0 and key.image.name.startswith("003") for key in keys) == expected
    assert "003.tar is damaged: it has a damaged header; only its first 6 images are used" in caplog.text


def test_members_that_are_not_captions_are_left_out_of_a_run(shards: dict, caplog: pytest.LogCaptureFixture):
    bad = {"b.png": png(), "b.txt": b"caf\xe9", "c.png": png(), "c.json": b"{"}
    Path(shards["001"]).write_bytes(tar_bytes(colour_samples(range(5, 6)) | bad))
    keys = [key for step in take(sampler(make(shards), 1), 60) for key in step]
    found = {key.image.name for key in keys if key.epoch == 0}
    assert {name for name in found if name.startswith("001")} == {"001/00005"}
    assert "2 images of " in caplog.text
    assert "001.tar are left out, such as: " in caplog.text


def test_shards_without_images_end_the_stream(tmp_path: Path):
    write_shards(tmp_path, [0, 0])
    with pytest.raises(WorkError, match=r"20 shards in a row, such as .*\.tar, have no image with a caption"):
        take(sampler(make(find_shards(str(tmp_path))), 2), 1)
    write_shards(tmp_path, [3, 3])
    with pytest.raises(WorkError, match="20 shards in a row"):
        take(sampler(make(find_shards(str(tmp_path)), val_share=1.0), 2), 1)


def test_a_shard_that_disappears_is_named(shards: dict):
    Path(shards["003"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"003\.tar"):
        take(sampler(make(shards), 6), 20)


def test_the_length_of_an_epoch_is_stated_or_unknown(shards: dict):
    assert sampler(make(shards), 4).steps_per_epoch is None
    assert sampler(make(shards, num_images=27), 4, 2, 2).steps_per_epoch == 2


def test_lanes_divide_the_step_and_are_few():
    source = make({f"{i}": f"s3://x/{i}.tar" for i in range(1000)})
    for shape, lanes in {
        (64, 1, 1): 16,
        (60, 1, 1): 15,
        (8, 3, 2): 16,
        (17, 1, 1): 1,
        (2, 1, 64): 64,
    }.items():
        size, accumulation, processes = shape
        assert len(sampler(source, size, accumulation, processes).positions) == lanes, shape


def test_the_fingerprint_is_of_the_shards_names_and_sizes(shards: dict, tmp_path: Path):
    before = make(shards).fingerprint()
    assert make(dict(shards), val_share=0.5).fingerprint() == before
    moved = {name: str(Path(address).rename(tmp_path / f"{name}.tar")) for name, address in shards.items()}
    assert make(moved).fingerprint() == before
    with Path(moved["000"]).open("ab") as file:
        file.write(b"\0")
    assert make(moved).fingerprint() != before
    assert make(dict(list(moved.items())[1:])).fingerprint() != before
    remote = make({"0": "s3://x/0.tar"}).fingerprint()
    assert remote == make({"0": "s3://y/0.tar"}).fingerprint() != make({"1": "s3://x/0.tar"}).fingerprint()


# --- Validation


def test_validation_images_are_those_that_the_stream_leaves_out(shards: dict):
    source = make(shards, val_share=0.3)
    held_out = source.validation_images(shards, "val", "x", 100)
    trained = {key.image.name for step in take(sampler(source, 4), 60) for key in step}
    names = [image.name for image in held_out]
    assert set(names) | trained == {image.name for image in read_shards(shards) if image.captions}
    assert not set(names) & trained
    assert [image.name for image in source.validation_images(shards, "val", "x", 3)] == names[:3]


def test_validation_reads_no_more_shards_than_it_needs(shards: dict):
    Path(shards["005"]).unlink()
    assert len(make(shards, val_share=0.999).validation_images(shards, "val", "x", 4)) == 4


def test_shards_named_after_the_split_are_validated_on(tmp_path: Path):
    write_shards(tmp_path, [3], "x-train-{}.tar")
    write_shards(tmp_path, [4], "x-val-{}.tar")
    found = find_shards(str(tmp_path))
    source = make({"x-train-0": found["x-train-0"]})
    assert len(source.validation_images(found, "val", "x", 100)) == 4
    with pytest.raises(MissingSplitError, match="no images of split 'test'"):
        source.validation_images(found, "test", "x", 100)


def test_a_split_without_images_is_refused(shards: dict):
    for split, share in (("test", 0.3), ("val", 1e-9)):
        with pytest.raises(UserError, match="x has no images of split"):
            make(shards, share).validation_images(shards, split, "x", 100)


def test_validation_refuses_a_damaged_shard(shards: dict):
    Path(shards["000"]).write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"000\.tar is damaged"):
        make(shards, 0.5).validation_images(shards, "val", "x", 100)
