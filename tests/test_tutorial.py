"""The README's tutorial, each command of it, on a folder of photographs as a newcomer has it.

The two backbones it names lie in a Hub cache as if they had been downloaded; they are small ones.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from readme_commands import cache_as_downloaded, read_commands, run_command
from small_models import SHARED_DATA

PHOTOS = SHARED_DATA / "flickr8k-mini"
NUM_PHOTOS = int(os.environ.get("TUTORIAL_PHOTOS", "60"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"the photographs of {PHOTOS.name} are not here"),
]


def make_photos(folder: Path) -> None:
    folder.mkdir()
    content = json.loads((PHOTOS / "dataset_flickr8k_mini.json").read_text())
    lines = []
    for image in content["images"][:NUM_PHOTOS]:
        shutil.copy(PHOTOS / "images" / image["filename"], folder)
        captions = [sentence["raw"] for sentence in image["sentences"]]
        lines.append(json.dumps({"file_name": image["filename"], "captions": captions}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with `photos/` and `new/`, and a Hub cache with the backbones that the tutorial names."""
    make_photos(tmp_path / "photos")
    (tmp_path / "new").mkdir()
    for photo in sorted((tmp_path / "photos").glob("*.jpg"))[:3]:
        shutil.copy(photo, tmp_path / "new")
    vision = SHARED_DATA / "backbones" / "vit-tiny16-as-clip"
    text = SHARED_DATA / "backbones" / "whisper-base-decoder-as-gpt2"
    cache_as_downloaded(tmp_path / "cache", "openai/clip-vit-base-patch16", vision)
    cache_as_downloaded(tmp_path / "cache", "gpt2", text)
    return tmp_path


def test_the_tutorial_as_it_is_written(workplace: Path):
    commands = read_commands("## Train on your own photographs")
    assert any("--dry_run" in command for command in commands)
    assert any("--resume_from_checkpoint" in command for command in commands)
    for command in commands:
        run_command(command, workplace, workplace / "cache")
    captions = [json.loads(line) for line in (workplace / "captions.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).name for line in captions] == [
        path.name for path in sorted((workplace / "new").iterdir())
    ]
