"""A process without the package captions with a pushed captioner: by the code on its card, as an endpoint."""

from pathlib import Path

from fresh_process import run_fresh
from loopback_hub import CLIENTS_WARNING, client_environment, use_hub

from ituning_hf import caption
from ituning_hf.hub.push import push_captioner

HUB = {"vision_model": "org/clip", "text_model": "org/text"}

CARD_CODE = """
import base64
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from PIL import Image

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
folder = snapshot_download("org/captioner")
spec = spec_from_file_location("handler", f"{folder}/handler.py")  # as the toolkit of the endpoints does
module = module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
encoded = base64.b64encode(Path(picture).read_bytes()).decode()
found["endpoint"] = [
    handler({"inputs": Image.open(picture).convert("RGB")}),
    handler({"inputs": encoded}),
    handler({"inputs": f"data:image/png;base64,{encoded}", "parameters": {"num_beams": 5}}),
]
three = {"num_return_sequences": 3, "num_beams": 4, "max_new_tokens": 6, "prompt": "a dog"}
found["options"] = [x["generated_text"] for x in handler({"inputs": encoded, "parameters": three})]
constants.HF_HUB_OFFLINE = True  # the client raises an error at every request
found["offline"] = run(with_transformers)
"""


def test_the_captions_are_those_of_the_captioner(hub, captioners, expected, tmp_path: Path):
    with use_hub(hub.endpoint, tmp_path / "writer", "writer"):
        first = push_captioner(captioners["a"], "org/captioner", **HUB).oid
        push_captioner(captioners["a"], "org/captioner", revision="draft", **HUB)
        push_captioner(captioners["b"], "org/captioner", endpoint=True, **HUB)
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
    options = {"num_captions": 3, "num_beams": 4, "max_new_tokens": 6, "prompt": "a dog"}
    assert found == {
        "main": b,
        "pipeline": b,
        "branch": a,
        "commit": a,
        "image text": b,
        "endpoint": [[{"generated_text": b}]] * 3,
        "options": caption(captioners["b"], captioners["picture"], **options),
        "offline": b,
    }
