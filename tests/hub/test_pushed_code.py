"""A process without the package loads a pushed captioner by the code on its card."""

from typing import Any

import pytest
from fresh_process import run_fresh
from loopback_hub import CLIENTS_WARNING, client_environment, running_hub, use_hub

from ituning_hf.hub.push import push_captioner

HUB = {"vision_model": "org/clip", "text_model": "org/text"}

CARD_CODE = """
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

from huggingface_hub import hf_hub_download

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
"""
OFFLINE = CARD_CODE.split("found = {")[0] + 'found = {"main": run(with_transformers)}'


@pytest.fixture(scope="module")
def found(backbones, captioners, tmp_path_factory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("stranger")
    with running_hub({"org/clip": backbones["clip"], "org/text": backbones["text"]}) as hub:
        with use_hub(hub.endpoint, tmp_path_factory.mktemp("writer"), "writer"):
            first = push_captioner(captioners["a"], "org/captioner", **HUB).oid
            push_captioner(captioners["a"], "org/captioner", revision="draft", **HUB)
            push_captioner(captioners["b"], "org/captioner", **HUB)
        environment = client_environment(hub.endpoint, home)

        def run(script: str, **settings: str) -> dict[str, str]:
            return run_fresh(
                script,
                home,
                captioners["picture"],
                first,
                environment=environment | settings,
                ignored_warning=CLIENTS_WARNING,
            )

        found = run(CARD_CODE)
        requests = len(hub.requests)
        found["offline"] = run(OFFLINE, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")["main"]
        assert len(hub.requests) == requests
    return found


@pytest.mark.parametrize(
    ("which", "captioner"),
    [
        ("main", "b"),
        ("pipeline", "b"),
        ("branch", "a"),
        ("commit", "a"),
        ("image text", "b"),
        ("offline", "b"),
    ],
)
def test_the_captions_are_those_of_the_captioner(found, expected, which: str, captioner: str):
    assert found[which] == expected[captioner].strip()
