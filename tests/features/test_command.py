"""`ituning features`, as a user types it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ituning_hf import cli
from ituning_hf.features.store import FeatureStore

from .conftest import contents, save_picture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(backbones: dict[str, Path], folder: Path, photos: Path, capsys: pytest.CaptureFixture) -> Run:
    """Build a store of the photographs; return the exit code and what was printed."""

    def build(*flags: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(
            [
                *("features", "build", "--dataset", str(photos), "--vision_model", str(backbones["vision"])),
                *("--output_dir", str(folder), "--dataloader-num-workers", "0", "--device", "cpu", *flags),
            ]
        )
        return code, *capsys.readouterr()

    return build


def test_all_splits_that_there_are_are_built(run: Run, folder: Path, backbones: dict[str, Path]):
    code, out, err = run()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:4] == [
        "train           11 images",
        "val             3 images",
        f"features        10 x 15 in bfloat16, of {backbones['vision']}",
        "to encode       14 images; 0 are in the store",
    ]
    assert lines[4].startswith("on disk         8.4 kB more; ")
    assert lines[5].startswith("encoded         14 images, ")
    assert lines[6].startswith(f"store           {folder}: 14 images, ")
    assert len(lines) == 7
    assert len(FeatureStore(folder).names) == 14


def test_splits_can_be_chosen(run: Run, folder: Path):
    assert run("--splits", "val")[0] == 0
    assert FeatureStore(folder).names == {"val/0.bmp", "val/1.bmp", "val/2.bmp"}
    assert "to encode       11 images; 3 are in the store" in run()[1]
    code, _, err = run("--splits", "test")
    assert code == 2
    assert "has no images of split 'test'; it has 'train' (11), 'val' (3)" in err


def test_again_there_is_nothing_to_do(run: Run, folder: Path):
    run()
    before = contents(folder)
    code, out, _ = run()
    assert (code, contents(folder)) == (0, before)
    assert "to encode       0 images; 14 are in the store" in out
    assert "encoded" not in out


def test_a_dry_run_writes_nothing(run: Run, folder: Path):
    code, out, _ = run("--dry_run")
    assert code == 0
    assert out.endswith("nothing was written\n")
    assert "on disk         8.4 kB more; " in out
    assert not folder.exists()


def test_a_dry_run_says_that_it_does_not_fit(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "ituning_hf.features.plan.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 2000)
    )
    code, out, err = run("--dry_run")
    assert code == 2
    assert "2.0 kB are free" in out
    assert err.startswith("ituning: error: the features of 14 images take 8.4 kB, and the disk of ")
    assert not folder.exists()


def test_unreadable_pictures_are_named_and_counted(run: Run, photos: Path, caplog):
    (photos / "val" / "1.bmp").write_bytes(b"no picture")
    code, out, _ = run()
    assert code == 0
    assert [record.getMessage()[:22] for record in caplog.records] == ["skipped: cannot read /"]
    assert "encoded         13 images, " in out
    assert "unreadable      1 images, named above" in out


def test_info(run: Run, folder: Path, photos: Path, backbones, capsys: pytest.CaptureFixture):
    (photos / "val" / "1.bmp").write_bytes(b"not a picture")
    run("--storage", "int8")
    capsys.readouterr()
    assert cli.main(["features", "info", str(folder)]) == 0
    store = FeatureStore(folder)
    assert capsys.readouterr().out.splitlines() == [
        f"vision model    {backbones['vision']}",
        f"                fingerprint {store.spec.vision_model_fingerprint}",
        "features        10 x 15 of layer -1",
        "storage         int8; computed with mixed precision no",
        f"images          13, {store.num_bytes / 1000:.1f} kB",
        "unreadable      1",
        f"                {store.unreadable['val/1.bmp']}",
    ]
    assert cli.main(["features", "info", str(photos)]) == 2
    assert "is no store of features" in capsys.readouterr().err


def test_a_full_disk_is_no_mistake_of_the_users(run: Run, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ituning_hf.features.build.write_shard", full)
    code, _, err = run()
    assert code == 1
    assert "could not be written to (No space left on device). What was written before is whole: " in err
    assert err.count("\n") == 1


def test_changed_pictures_are_told(run: Run, photos: Path):
    run()
    save_picture(photos / "train" / "3.bmp", seed=5)
    code, _, err = run()
    assert code == 2
    assert "other pictures than 1 of the 14 images have now ('train/3.bmp')" in err


def test_a_mistyped_option_is_told_by_its_command(run: Run):
    code, _, err = run("--shardsize", "3")
    assert code == 2
    assert "--shardsize is no option: did you mean --shard_size? ituning features build --help" in err
