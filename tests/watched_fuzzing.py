"""Loads what was changed, and saves what then loads; `test_fuzzing.py` runs it in a process of its own."""

import json
import random
import subprocess
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path

from fuzzing import PAYLOAD, json_mutations
from small_models import unseal
from transformers import AutoModel, AutoProcessor
from watching import Watch

from ituning_hf import ITuningForCaptioning, ITuningProcessor, load_captioner, save_captioner
from ituning_hf.hub.inspection import describe

HOSTILE_NAMES = ["../../out", "/tmp/out-of-it", "a/b", "..", "x\0y", PAYLOAD]
FILES = ["config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json"]
LOADERS = [
    *(ITuningForCaptioning.from_pretrained, AutoModel.from_pretrained, load_captioner, describe),
    *(ITuningProcessor.from_pretrained, AutoProcessor.from_pretrained),
]


def hostile(content: dict) -> list[dict]:
    """What a stranger would write into a file to have something run, or written elsewhere."""
    maps = [dict.fromkeys(("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer"), "evil.Custom")]
    maps += [dict.fromkeys(maps[0], "../evil.Custom"), dict.fromkeys(maps[0], "org/repo--evil.Custom")]
    changes = [{"auto_map": value} for value in maps]
    for name in HOSTILE_NAMES:
        changes += [{"chat_template": {"default": "x", name: "{{ x }}"}}, {"chat_template": name}]
        changes += [{"chat_template": [{"name": name, "template": "x"}]}, {"processor_class": name}]
        changes += [{key: name} for key in ("name_or_path", "tokenizer_class", "image_processor_type")]
        changes += [
            {key: name} for key in ("model_type", "architectures", "custom_generate", "transformers_weights")
        ]
        changes += [
            {"audio_tokenizer": {"audio_tokenizer_class": name, "audio_tokenizer_name_or_path": name}}
        ]
        changes += [{"image_processor": content.get("image_processor", {}) | {"image_processor_type": name}}]
        changes += [{"save_directory": name, "filename_prefix": name, "vocab_file": name}]
    return [content | change for change in changes]


def attempt(watch: Watch, folder: Path, target: Path) -> int:
    """Load in every way, and save what loads; return what could be loaded."""
    loaded = []
    for load in LOADERS:
        with watch.on():
            try:
                loaded.append(load(folder))
            except Exception:
                continue
    models = [part for part in loaded if isinstance(part, ITuningForCaptioning)]
    processors = [part for part in loaded if isinstance(part, ITuningProcessor)]
    if models and processors:
        with watch.on(target), suppress(Exception):
            save_captioner(models[-1], processors[-1], target)
    return len(loaded)


def main() -> None:
    """Print what was seen, and how often was tried."""
    folder, work, times = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    (folder / "evil.py").write_text(PAYLOAD)
    attempt(Watch([]), folder, work / "first")  # what is imported or made once is none of the files' doing
    watch = Watch([folder])
    draw = random.Random(times)
    tries = could_load = 0
    for sealed in (True, False):
        if not sealed:
            unseal(folder)
        for file in FILES:
            original = (folder / file).read_bytes()
            changed = [json.dumps(content).encode() for content in hostile(json.loads(original))]
            changed = draw.sample(changed, min(times, len(changed)))
            changed += [data for _, data in islice(json_mutations(original, draw), 40, 40 + times // 2)]
            for data in changed:
                (folder / file).write_bytes(data)
                could_load += attempt(watch, folder, work / f"saved-{tries}")
                tries += 1
            (folder / file).write_bytes(original)
    found = {"seen": sorted(watch.seen), "tries": tries, "loads": could_load}
    found["would be seen"] = misdeeds(watch, folder, work)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def misdeeds(watch: Watch, folder: Path, work: Path) -> list[str]:
    """Do what must not be done, and return the kinds of it that were seen."""
    watch.seen.clear()
    with watch.on(work / "target"):
        exec(compile((folder / "evil.py").read_text(), folder / "evil.py", "exec"))
        (work / "beside").mkdir()
        (work / "beside" / "x").write_text("")
        (work / "beside" / "x").rename(work / "beside" / "y")
        subprocess.run(["true"], check=True)
    Path("run-by-a-file").unlink()
    return sorted({fault.split()[0] for fault in watch.seen})


if __name__ == "__main__":
    main()
