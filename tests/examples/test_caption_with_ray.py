"""`examples/caption_with_ray.py` on a Ray cluster of two nodes on this machine.

pip install -c constraints.txt -e '.[dev,ray]' && python -m pytest -m ray
"""

import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image

import ituning_hf
from ituning_hf import CaptionBatch

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("default"),  # Ray uses its own deprecated settings
]
BATCH_SIZE = 3
SEARCH = {"num_beams": 2, "max_new_tokens": 6, "batch_size": BATCH_SIZE}
Pairs = list[tuple[str, str]]
Run = Callable[..., Pairs]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    """A cluster of two nodes, each with two CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        examples = str(Path(__file__).parents[2] / "examples")  # the workers import the script as a module
        patch.setenv("PYTHONPATH", examples, prepend=os.pathsep)
        ray = pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 2, "object_store_memory": 10**8}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len(ray.nodes()) == 2
        yield
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures in several batches, the last of which is not full; one cannot be read."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(3)
    for i in range(6 * BATCH_SIZE + 1):
        pixels = rng.random((31 + i % 3, 47, 3)) * 255
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
    (folder / "04.png").write_bytes(b"not a picture")
    return sorted(folder.iterdir())


@pytest.fixture
def run(two_nodes: None, saved_captioner: Path, tmp_path: Path) -> Run:
    """Return a function that captions inputs, and returns the ids and captions in the output."""
    import caption_with_ray

    def caption(*inputs: Path, id_column: str = "path", num_workers: int = 2) -> Pairs:
        settings = {"model": saved_captioner, "output": tmp_path / "out", "id_column": id_column}
        settings |= SEARCH | {"num_workers": num_workers}
        caption_with_ray.main([*map(str, inputs), *(f"--{name}={value}" for name, value in settings.items())])
        rows = pandas.read_parquet(tmp_path / "out" / "captions")
        assert [bool(error) for error in rows["caption_error"]] == [not text for text in rows["caption"]]
        return sorted(zip(rows[id_column], rows["caption"], strict=True))

    return caption


@pytest.fixture(scope="module")
def expected(saved_captioner: Path, photos: list[Path]) -> dict[str, str]:
    """The captions that one process gives the readable pictures, and an empty one, by path."""
    readable = [path for path in photos if path.name != "04.png"]
    captions = ituning_hf.caption(saved_captioner, readable, **SEARCH)
    assert len(set(captions)) > len(photos) // 2
    return dict(zip(map(str, readable), captions, strict=True)) | {str(photos[4]): ""}


def test_a_killed_worker_changes_nothing(
    run: Run, photos: list[Path], expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is killed after it captioned a batch, before it returned the captions."""
    import caption_with_ray

    marks = tmp_path / "marks"
    marks.mkdir()

    class Killed(CaptionBatch):  # Ray sends a local class to its workers as code
        def __call__(self, batch: Any) -> Any:
            captioned = super().__call__(batch)
            (marks / f"{batch['path'][0].replace('/', '_')}-{os.getpid()}").touch()
            if len(list(marks.iterdir())) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return captioned

    monkeypatch.setattr(caption_with_ray, "CaptionBatch", Killed)
    assert run(photos[0].parent) == sorted(expected.items())
    processes = {mark.name.split("-")[-1] for mark in marks.iterdir()}
    batches = {mark.name.split("-")[0] for mark in marks.iterdir()}
    assert len(processes) > 1
    assert len(batches) < len(list(marks.iterdir()))  # a batch was captioned again


def test_the_same_command_captions_new_pictures_alone(
    run: Run, photos: list[Path], expected: dict[str, str], tmp_path: Path
):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos[:7]:
        (folder / path.name).symlink_to(path)
    captions = {str(folder / Path(path).name): text for path, text in expected.items()}
    assert run(folder) == sorted(captions.items())[:7]
    first = {path: path.read_bytes() for path in (tmp_path / "out" / "captions").iterdir()}
    for path in photos[7:]:
        (folder / path.name).symlink_to(path)
    assert run(folder) == sorted(captions.items())
    assert all(path.read_bytes() == content for path, content in first.items())


def test_too_many_workers_are_refused(run: Run, photos: list[Path]):
    """Ray Data would wait for CPUs for ever."""
    with pytest.raises(SystemExit, match="Ray has 4 CPUs, and 3 captioners need 5"):
        run(photos[0].parent, num_workers=3)


def test_parquet_files(run: Run, photos: list[Path], expected: dict[str, str], tmp_path: Path):
    images = [{"url": str(path), "image": path.read_bytes(), "caption": "alt text"} for path in photos]
    for i in range(2):
        pandas.DataFrame(images[i::2]).to_parquet(tmp_path / f"{i}.parquet")
    assert run(tmp_path / "0.parquet", tmp_path / "1.parquet", id_column="url") == sorted(expected.items())


def test_tar_shards(run: Run, photos: list[Path], expected: dict[str, str], tmp_path: Path):
    for i in range(3):
        with tarfile.open(tmp_path / f"{i}.tar", "w") as shard:
            for path in photos[i::3]:
                shard.add(path, f"{path.stem}.{'PNG' if i else 'jpeg'}")
                shard.add(__file__, f"{path.stem}.txt")
    shards = [tmp_path / f"{i}.tar" for i in range(3)]
    captions = sorted((Path(path).stem, text) for path, text in expected.items())
    for _ in range(2):
        assert run(*shards, id_column="__key__") == captions
