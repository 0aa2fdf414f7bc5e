"""lmms-eval gets the captions of `ituning_hf.caption`, with its own captioning tasks on local pictures."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Image
from small_models import randomize_adapters, read_lines

import ituning_hf
from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.data.scenes import make_scene
from ituning_hf.evaluation import compute_caption_metrics

ROOT = Path(__file__).resolve().parents[2]
BACKBONES = ROOT / "ituning_hf" / "data" / "scene_backbones"
SEARCH = {"num_beams": 3, "max_new_tokens": 12}

lmms_eval = find_spec("lmms_eval")
pytestmark = [
    pytest.mark.skipif(lmms_eval is None, reason="lmms_eval is not installed; see docs/testing.md"),
    pytest.mark.skipif(shutil.which("java") is None, reason="the scorers of lmms-eval's tasks need Java"),
]

# Task, its file and the module of its functions in lmms_eval/tasks, the prefix of its metrics.
TASKS = [
    ("flickr30k", "flickr30k_test.yaml", "flickr"),
    ("nocaps", "nocaps_val.yaml", "nocaps"),
    ("coco_cap", "coco_karpathy_test.yaml", "coco"),
]
# The task of lmms-eval with local data, and without METEOR, which takes 15 seconds.
TASK = """
include: {file}
task: {name}_local
dataset_path: parquet
dataset_kwargs: {{data_files: {{{split}: {data}}}}}
metric_list:
  - metric: {prefix}_Bleu_4
    aggregation: !function lmms_eval.tasks.{name}.utils.{prefix}_bleu4
    higher_is_better: true
  - metric: {prefix}_CIDEr
    aggregation: !function lmms_eval.tasks.{name}.utils.{prefix}_cider
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner over the miniatures, which writes words; they depend on the image."""
    folder = tmp_path_factory.mktemp("captioner")
    backbones = BACKBONES / "vision", BACKBONES / "text"
    model = randomize_adapters(ITuningForCaptioning.from_vision_text_pretrained(*backbones), std=0.1)
    ituning_hf.save_captioner(model, ITuningProcessor.from_vision_text_pretrained(*backbones), folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"COCO_val2014_{i:012d}.png" for i in range(3)]
    for i, path in enumerate(paths):
        make_scene(0, i).load().save(path)
    return paths


@pytest.fixture
def server(pictures: list[Path]) -> Iterator[str]:
    """The address of the pictures: the COCO task reads each one from its URL."""
    handler = partial(SimpleHTTPRequestHandler, directory=pictures[0].parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--nproc_per_node", "2"]])
def test_captions_and_scores_are_those_of_the_package(
    captioner: Path, pictures: list[Path], server: str, launcher: list[str], tmp_path: Path
):
    captions = ituning_hf.caption(captioner, pictures, **SEARCH)
    assert isinstance(captions, list)
    assert len(set(captions)) == 3
    references = [[f"{text} on the grass", f"a picture of {text}"] for text in captions]
    columns: dict[str, Any] = {"image": [str(path) for path in pictures]}
    columns |= {"filename": [path.name for path in pictures]}
    columns |= {"url": [f"{server}/{name}" for name in columns["filename"]]}
    columns |= {name: range(3) for name in ("img_id", "image_id", "imgid")}
    columns |= dict.fromkeys(("caption", "annotations_captions", "sentences"), references)
    Dataset.from_dict(columns).cast_column("image", Image()).to_parquet(tmp_path / "data.parquet")
    assert lmms_eval is not None
    assert lmms_eval.origin is not None
    for name, file, prefix in TASKS:
        split = "validation" if name == "nocaps" else "test"
        path = Path(lmms_eval.origin).parent / "tasks" / name / file
        text = TASK.format(file=path, name=name, prefix=prefix, split=split, data=tmp_path / "data.parquet")
        (tmp_path / f"{name}.yaml").write_text(text)

    arguments = {
        "model_args": f"pretrained={captioner}",
        "tasks": ",".join(f"{name}_local" for name, _, _ in TASKS),
        "include_path": tmp_path,
        "gen_kwargs": ",".join(f"{name}={value}" for name, value in SEARCH.items()),
        "batch_size": 2,
        "device": "cpu",
        "output_path": tmp_path / "report",
    }
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    command = [sys.executable, *launcher, str(ROOT / "examples" / "lmms_eval_ituning.py"), "--log_samples"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
    run = subprocess.run(
        [*command, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )

    expected = compute_caption_metrics(captions, references)
    assert expected["cider"] > 1
    for name, _, prefix in TASKS:
        samples = list((tmp_path / "report").rglob(f"*_samples_{name}_local.jsonl"))
        assert len(samples) == 1, run.stdout + run.stderr  # lmms-eval exits with 0 also after an error
        found = {row["doc_id"]: row["filtered_resps"] for row in read_lines(samples[0])}
        assert found == dict(enumerate(captions))
        (results,) = samples[0].parent.glob("*_results.json")
        scores = json.loads(results.read_text())["results"][f"{name}_local"]
        assert scores[f"{prefix}_CIDEr,none"] == pytest.approx(expected["cider"])
        assert scores[f"{prefix}_Bleu_4,none"] == pytest.approx(expected["bleu_4"])
