"""A process without the package loads a pushed captioner by the code on its card."""

from pathlib import Path

from fresh_process import run_fresh
from loopback_hub import CLIENTS_WARNING, client_environment, use_hub

from ituning_hf.hub.push import push_captioner

HUB = {"vision_model": "org/clip", "text_model": "org/text"}

CARD_CODE = """
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

from huggingface_hub import constants, hf_hub_download

picture, first = sys.argv[1:]
shutil.copy(picture, "dog.jpg")
card = Path(hf_hub_download("org/captioner", "README.md")).read_text(encoding="utf-8")
with_transformers, in_a_pipeline, with_the_package = re.findall(r"```python\\n(.*?)```", card, re.DOTALL)


def run(code):
    with redirect_stdout(io.StringIO()) as output:
        exec(code, {})
    return output.getvalue().strip()


found = {
    "main": run(with_transformers),
    "pipeline": run(in_a_pipeline),
    "branch": run(with_transformers.replace('"main"', '"draft"')),
    "commit": run(with_transformers.replace('"main"', f'"{first}"')),
    "image text": run(with_transformers.replace("AutoModel", "AutoModelForImageTextToText")),
}
constants.HF_HUB_OFFLINE = True  # the client raises an error at every request
found["offline"] = run(with_transformers)
"""


def test_the_captions_are_those_of_the_captioner(hub, captioners, expected, tmp_path: Path):
    with use_hub(hub.endpoint, tmp_path / "writer", "writer"):
        first = push_captioner(captioners["a"], "org/captioner", **HUB).oid
        push_captioner(captioners["a"], "org/captioner", revision="draft", **HUB)
        push_captioner(captioners["b"], "org/captioner", **HUB)
    home = tmp_path / "stranger"
    home.mkdir()
    found = run_fresh(
        CARD_CODE,
        home,
        captioners["picture"],
        first,
        environment=client_environment(hub.endpoint, home),
        ignored_warning=CLIENTS_WARNING,
    )
    a, b = (expected[name].strip() for name in "ab")
    assert found == {"main": b, "pipeline": b, "branch": a, "commit": a, "image text": b, "offline": b}
