"""The benchmark of stored features, on small models of the same classes."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ituning_hf.features import FeatureStore

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "benchmarks" / "features.py"


@pytest.fixture(scope="module")
def features() -> ModuleType:
    spec = importlib.util.spec_from_file_location("features_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_store_is_cold_and_then_warm(features: ModuleType, tmp_path: Path):
    store = features.make_store(tmp_path / "store", features.small_config(), "int8", 600)
    assert isinstance(store, FeatureStore)
    assert store.num_bytes > 600 * store.spec.bytes_per_image
    del store
    features.drop_from_cache(tmp_path / "store")
    assert features.cached_share(tmp_path / "store") == 0
    assert features.reading(tmp_path / "store", 7)() == 600
    assert features.cached_share(tmp_path / "store") > 0.99


def test_it_runs_small(features: ModuleType, monkeypatch, capsys):
    flags = ["--small", "--images", "30", "--pictures", "4", "--rounds", "1", "--batch_size", "2"]
    monkeypatch.setattr(sys, "argv", ["features.py", *flags])
    features.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:28].strip() for line in lines] == [
        "",
        *(
            f"read {storage}, {state}"
            for storage in ("bfloat16", "int8", "float32")
            for state in ("cold", "warm")
        ),
        "decode pictures",
        "decode and encode pictures",
        "training step",
        "",
        "on disk",
        "an image, bytes",
        "COCO (123,287)",
        "Flickr30k (31,014)",
        "Flickr8k (8,000)",
    ]
    assert lines[9].split()[-1] == "1.00x"


def test_what_the_papers_data_sets_take(features: ModuleType):
    sizes = list(features.size_lines(features.base_config()))
    assert sizes[1].split()[3:] == ["302,592", "152,084", "605,184"]
    assert sizes[2].split()[2:] == ["37.3", "GB", "18.7", "GB", "74.6", "GB"]


def test_its_help(features: ModuleType, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["features.py", "--help"])
    with pytest.raises(SystemExit):
        features.main()
    assert "what training takes of them" in capsys.readouterr().out
