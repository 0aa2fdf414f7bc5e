"""The README's tutorial, each command of it, on a folder of photographs as a newcomer has it.

The two backbones it names lie in a Hub cache as if they had been downloaded; they are small ones.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import SHARED_DATA

from ituning_hf.data import load_captioned_images
from ituning_hf.training import make_small_backbones

README = Path(__file__).resolve().parents[1] / "README.md"
PHOTOS = SHARED_DATA / "flickr8k-mini"
NUM_PHOTOS = int(os.environ.get("TUTORIAL_PHOTOS", "60"))
BACKBONE_STEPS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"the photographs of {PHOTOS.name} are not here"),
]


def tutorial_commands() -> list[str]:
    text = README.read_text(encoding="utf-8")
    section = text.split("## Train on your own photographs")[1].split("\n### ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def make_photos(folder: Path) -> None:
    folder.mkdir()
    content = json.loads((PHOTOS / "dataset_flickr8k_mini.json").read_text())
    lines = []
    for image in content["images"][:NUM_PHOTOS]:
        shutil.copy(PHOTOS / "images" / image["filename"], folder)
        captions = [sentence["raw"] for sentence in image["sentences"]]
        lines.append(json.dumps({"file_name": image["filename"], "captions": captions}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def cache_as_downloaded(hub: Path, name: str, folder: Path) -> None:
    repository = hub / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with `photos/` and `new/`, and a Hub cache with the backbones that the tutorial names."""
    make_photos(tmp_path / "photos")
    (tmp_path / "new").mkdir()
    for photo in sorted((tmp_path / "photos").glob("*.jpg"))[:3]:
        shutil.copy(photo, tmp_path / "new")
    vision, text = make_small_backbones(
        tmp_path / "made",
        load_captioned_images(tmp_path / "photos", "train"),
        tokenizer=SHARED_DATA / "gpt2-tokenizer",
        vision_steps=BACKBONE_STEPS,
        text_steps=BACKBONE_STEPS,
    )
    hub = tmp_path / "cache" / "hub"
    cache_as_downloaded(hub, "openai/clip-vit-base-patch16", vision)
    cache_as_downloaded(hub, "gpt2", text)
    return tmp_path


def test_the_tutorial_as_it_is_written(workplace: Path):
    environment = os.environ | {
        "HF_HOME": str(workplace / "cache"),
        "PYTHONWARNINGS": "ignore",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    commands = tutorial_commands()
    assert any("--dry_run" in command for command in commands)
    assert any("--resume_from_checkpoint" in command for command in commands)
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=workplace, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, command + done.stdout + done.stderr
        sys.stdout.write(f"$ {command}\n{done.stdout}")
    captions = [json.loads(line) for line in (workplace / "captions.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).name for line in captions] == [
        path.name for path in sorted((workplace / "new").iterdir())
    ]
