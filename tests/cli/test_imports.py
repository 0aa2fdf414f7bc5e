"""What is imported when, in fresh processes: help and usage errors import nothing heavy."""

import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ituning_hf


def run(script: str, *arguments: str) -> Any:
    """Run a script in a fresh process, and return the JSON in its last line."""
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


USAGE = """
import json, sys
from ituning_hf.cli import main

codes = []
for line in sys.argv[1:]:
    try:
        codes.append(main(line.split()))
    except SystemExit as end:
        codes.append(end.code)
heavy = {"torch", "transformers", "numpy", "peft", "accelerate", "huggingface_hub", "datasets", "PIL"}
print(json.dumps([codes, sorted(heavy & set(sys.modules))]))
"""


def test_help_and_usage_errors_import_nothing_heavy():
    commands = ("demo", "features build", "features info", "train", "evaluate")
    commands += ("caption", "serve", "info", "push", "convert")
    helps = ["--help", "--version", "features --help", *(f"{command} --help" for command in commands)]
    errors = ["", "trian", *(f"{command} --sede 3" for command in commands), "train --num_scenes many"]
    errors += ["train --eval_split none --eval_caption_images 3", "train --config nowhere.yaml"]
    codes, heavy = run(USAGE, *helps, *errors)
    assert codes == [0] * len(helps) + [2] * len(errors)
    assert heavy == []


ORDERS = """
import importlib, json, os, sys

sys.modules["bitsandbytes"] = None  # optional, and slow to import
CHECK = '''
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as VLM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
import peft
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
import ituning_hf, ituning_hf.tuner

config = type(AutoConfig.for_model("ituning"))
assert config is CONFIG_MAPPING["ituning"] is ituning_hf.ITuningConfig
assert MODEL_MAPPING[config] is VLM_MAPPING[config] is ituning_hf.ITuningForCaptioning
assert PROCESSOR_MAPPING[config] is ituning_hf.ITuningProcessor
assert PEFT_TYPE_TO_TUNER_MAPPING["ITUNING"] is ituning_hf.tuner.ITuningTuner
'''
failed = []
for names, orders in json.loads(sys.argv.pop()):
    for name in names:  # shared by the following orders; they register nothing
        importlib.import_module(name)
    for order in orders:
        child = os.fork()
        if child == 0:
            try:
                exec(order + "\\n" + CHECK, {})
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            failed.append(order)
print(json.dumps(failed), file=sys.stderr if failed else sys.stdout)
sys.exit(bool(failed))
"""


def test_transformers_and_peft_know_the_method_in_any_order_of_import():
    """And the captioner imports neither PEFT nor `datasets`."""
    # Modules that import the Auto classes while they are incomplete themselves.
    of_libraries = [
        "import ituning_hf; from transformers import GPT2LMHeadModel, CLIPVisionModel",
        "import ituning_hf; from transformers.models.clip.modeling_clip import CLIPVisionModel",
        "import ituning_hf; from transformers.modeling_layers import GradientCheckpointingLayer",
        "import ituning_hf; from peft import PeftModel",
    ]
    others = [
        "import peft; import ituning_hf",
        "import ituning_hf; from transformers import AutoModel",
        "from transformers import AutoModel, AutoProcessor; import ituning_hf",
        "from ituning_hf import ITuningForCaptioning, ITuningProcessor, load_captioner, save_captioner\n"
        "import sys; assert not {'peft', 'datasets'} & set(sys.modules)",
        "from ituning_hf.captioner.encoders_ituning import encoder_family",
        "from ituning_hf.tuner import ITuningTunerConfig",
        "from ituning_hf import *",
        "import ituning_hf; ituning_hf.tuner.to_peft, ituning_hf.training.train",
        "import ituning_hf; ituning_hf.data.load_captioned_images, ituning_hf.data.loading",
        "from ituning_hf.features import FeatureStore, build_features; from ituning_hf.demo import run_demo",
    ]
    shared = ["torch._dynamo", "accelerate", "huggingface_hub.hf_api", "pandas"]
    groups = [(shared, of_libraries), (["transformers.modeling_utils"], others)]
    assert run(ORDERS, json.dumps(groups)) == []


PACKAGES = sorted(
    f"ituning_hf.{path.parent.name}" for path in Path(ituning_hf.__file__).parent.glob("*/__init__.py")
)


@pytest.mark.parametrize("name", ["ituning_hf", *PACKAGES])
def test_every_public_name_of_a_package_exists(name: str):
    package = importlib.import_module(name)
    for public in getattr(package, "__all__", ()):
        assert public in dir(package)
        assert getattr(package, public) is not None
    with pytest.raises(AttributeError, match=rf"module '{name}' has no attribute 'no_such_name'"):
        package.no_such_name  # noqa: B018


def test_public_names_can_be_pickled():
    for name in ("ITuningConfig", "ITuningForCaptioning", "caption"):
        value = getattr(ituning_hf, name)
        assert pickle.loads(pickle.dumps(value)) is value
