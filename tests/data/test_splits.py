from pathlib import Path

import pytest

from ituning_hf.data.rows import Row
from ituning_hf.data.splits import MissingSplitError, parse_split, select_split


def rows(count: int, split: str | None = None) -> list[Row]:
    return [Row(f"{i:03d}.jpg", (f"picture {i}",), Path(f"/photos/{i:03d}.jpg"), split) for i in range(count)]


def names(rows: list[Row], split: str, seed: int = 0, val_share: float = 0.1) -> list[str]:
    return [record.name for record in select_split(rows, split, "photos", seed, val_share)]


def test_the_lots_of_val() -> None:
    train, val = names(rows(300), "train"), names(rows(300), "val")
    assert sorted(train + val) == [row.name for row in rows(300)]
    assert val[:4] == ["010.jpg", "015.jpg", "022.jpg", "026.jpg"]  # in every version, on every machine
    assert names(rows(300), "val", seed=1) != val
    assert set(names(rows(100)[::-1], "val")) == {name for name in val if name < "100.jpg"}


@pytest.mark.parametrize(("val_share", "sizes"), [(1e-9, [4, 1]), (1 - 1e-9, [1, 4])])
def test_neither_side_is_left_empty(val_share: float, sizes: list[int]) -> None:
    assert [len(names(rows(5), split, val_share=val_share)) for split in ("train", "val")] == sizes


def test_given_splits_are_kept() -> None:
    mixed = [*rows(2, "val"), *rows(3, "train")[2:]]
    assert names(mixed, "val", seed=9, val_share=0.9) == ["000.jpg", "001.jpg"]
    with pytest.raises(
        MissingSplitError,
        match=r"^photos has no images of split 'test'; it has 'val' \(2\), 'train' \(1\): give one of those",
    ):
        names(mixed, "test")
    with pytest.raises(ValueError, match=r"^photos: 'split' must be on every line or on none$"):
        names([*rows(2, "val"), *rows(3)[2:]], "val")


def test_records_are_the_rows_without_their_split() -> None:
    (record,) = select_split(rows(1, "test"), "test", "photos", 0, 0.1)
    assert (record.name, record.captions, record.source) == (
        "000.jpg",
        ("picture 0",),
        Path("/photos/000.jpg"),
    )


@pytest.mark.parametrize(
    ("value", "split"), [(None, None), ("", None), ("train", "train"), ("val", "val"), ("validation", "val")]
)
def test_names_of_splits(value: str | None, split: str | None) -> None:
    assert parse_split(value, "line 3") == split


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^line 3: 'split' must be train, val or test, got 'dev'$"):
        parse_split("dev", "line 3")


def test_a_name_that_is_no_utf8_draws_its_lot_too() -> None:
    rows = [Row(name, ("a",), Path(name)) for name in ("caf\udce9.jpg", "half \ud83d.jpg", "a.jpg")]
    parts = [select_split(rows, split, "data", seed=0, val_share=0.5) for split in ("train", "val")]
    assert sorted(record.name for part in parts for record in part) == sorted(row.name for row in rows)
