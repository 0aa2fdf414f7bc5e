"""`ituning features`, in this process and, for signals, in another one."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Command, options, run_on_two
from small_models import contents

from ituning_hf.cli import main
from ituning_hf.features.store import FeatureStore

from .conftest import shards

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(backbones: dict[str, Path], folder: Path, photos: Path, capsys: pytest.CaptureFixture) -> Run:
    """Returns a function that builds a store of the photographs and returns exit code and output."""

    def build(*flags: str) -> tuple[int, str, str]:
        capsys.readouterr()
        data = options(dataset=photos, vision_model=backbones["vision"], output_dir=folder)
        code = main(["features", "build", *data, "--dataloader-num-workers", "0", "--device", "cpu", *flags])
        return code, *capsys.readouterr()

    return build


def test_all_splits_are_built(run: Run, folder: Path, backbones: dict[str, Path]):
    code, out, err = run()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == [
        "all             14 images",
        f"features        10 x 15 in bfloat16, of {backbones['vision']}",
        "to encode       14 of 14 images, 4.2 kB",
    ]
    assert lines[3] == "encoded         14 images"
    assert lines[4].startswith(f"store           {folder}: 14 images, ")
    assert len(lines) == 5
    before = contents(folder)
    code, out, _ = run()
    assert (code, contents(folder)) == (0, before)
    assert "to encode       0 of 14 images, 0 bytes" in out


def test_splits_can_be_chosen(run: Run, folder: Path):
    assert run("--splits", "val")[0] == 0
    assert len(FeatureStore(folder)) == 3
    assert "to encode       11 of 14 images, 3.3 kB" in run()[1]
    code, _, err = run("--splits", "test")
    assert code == 2
    assert "has no images of split 'test'; it has 'train' (11), 'val' (3)" in err


def test_a_dry_run_writes_nothing(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch):
    code, out, _ = run("--dry_run")
    assert code == 0
    assert out.endswith("nothing was written\n")
    small = shutil._ntuple_diskusage(10**6, 0, 2000)
    monkeypatch.setattr("ituning_hf.features.build.shutil.disk_usage", lambda path: small)
    code, out, err = run("--dry_run")
    assert code == 2
    assert err.startswith("ituning: error: the features of 14 images take 4.2 kB, but the disk of ")
    assert not folder.exists()


def test_info_and_unreadable_images(run: Run, folder: Path, photos: Path, backbones, caplog, capsys):
    (photos / "val" / "1.bmp").write_bytes(b"not an image")
    code, out, _ = run("--storage", "int8")
    assert code == 0
    assert [record.getMessage()[:22] for record in caplog.records] == ["skipped: cannot read /"]
    assert "encoded         13 images\n" in out
    assert "unreadable      1 images" in out
    assert main(["features", "info", str(folder)]) == 0
    store = FeatureStore(folder)
    assert capsys.readouterr().out.splitlines() == [
        f"vision model    {backbones['vision']}",
        f"                fingerprint {store.spec.vision_model['vision_model_fingerprint']}",
        "features        10 x 15 of layer -1",
        "storage         int8; computed with mixed precision no",
        f"images          13, {13 * 190 / 1000:.1f} kB",
        "unreadable      1",
        f"                {store.unreadable['val/1.bmp']}",
    ]
    assert main(["features", "info", str(photos)]) == 2
    assert "is not a feature store" in capsys.readouterr().err


# --- Interruptions


def interrupt_build(flags: list[str], folder: Path, num_shards: int, signum: int) -> tuple[int, str]:
    """Send a signal to a build once it has written some shards; return its exit code and output."""
    build = Command(flags, folder.with_suffix(".txt"))
    while len(shards(folder)) < num_shards:
        assert build.process.is_alive(), build.printed
        time.sleep(0.002)
    os.killpg(build.process.pid, signum)
    return build.end(), build.printed


def scene_flags(backbones: dict[str, Path], folder: Path, num_scenes: int, workers: int) -> list[str]:
    data = options(dataset="scenes", num_scenes=num_scenes, dataloader_num_workers=workers)
    sizes = options(shard_size=8, batch_size=3)
    encoder = options(vision_model=backbones["vision"], device="cpu", output_dir=folder)
    return ["features", "build", *data, *sizes, *encoder]


def test_a_killed_build_resumes_to_the_same_files(backbones: dict[str, Path], tmp_path: Path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(scene_flags(backbones, whole, 150, 0)) == 0
    flags = scene_flags(backbones, cut, 150, 2)
    assert interrupt_build(flags, cut, 1, signal.SIGKILL)[0] == -signal.SIGKILL
    assert len(FeatureStore(cut)) % 8 == 0
    assert main(flags) == 0
    assert contents(cut) == contents(whole)


@pytest.mark.parametrize(("signum", "code", "workers"), [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 2)])
def test_a_signal_ends_a_build(
    backbones: dict[str, Path], folder: Path, signum: int, code: int, workers: int
):
    exit_code, output = interrupt_build(scene_flags(backbones, folder, 3000, workers), folder, 2, signum)
    assert exit_code == code
    assert "ituning: stopped: " in output
    assert "Traceback" not in output
    assert not list(folder.glob(".features*"))
    assert 2 <= len(shards(folder)) < 400


def test_two_processes_build_the_files_of_one(backbones: dict[str, Path], tmp_path: Path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert main(scene_flags(backbones, whole, 40, 0)) == 0
    first, second = run_on_two(scene_flags(backbones, shared, 40, 0), tmp_path)
    assert "to encode       48 of 48 images" in first.printed
    assert "encoded         24 images (process 2 of 2)" in second.printed
    assert contents(shared) == contents(whole)
