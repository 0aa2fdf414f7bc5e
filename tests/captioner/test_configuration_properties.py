"""The configuration: whatever is valid comes back as it was, and whatever is not is named."""

import copy
import json
import logging
import math
import pickle
import sys
import tempfile
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from properties import examples
from transformers import AutoConfig, CLIPVisionConfig, GPT2Config

from ituning_hf import ITuningConfig, ITuningForCaptioning

RECORDED = ("name_or_path", "revision", "fingerprint")
PLACES = [
    *(f"{part}_model_{what}" for part in ("vision", "text") for what in RECORDED),
    "adapter_fingerprint",
]
SETTINGS = [
    *("adapter_hidden_size", "adapter_num_heads", "adapter_scale", "adapter_layers", "adapter_dropout"),
    *("vision_feature_layer", "format_version"),
]
OWN = {*PLACES, *SETTINGS}
NAMES = st.none() | st.text(max_size=8)
WHOLE = st.integers(-9, 9) | st.integers()


def vision(depth: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(hidden_size=6, num_attention_heads=3, num_hidden_layers=depth)


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """What may be said of a captioner, some of it or all."""
    heads, vision_depth, depth = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    adapter_heads = draw(st.integers(1, 4))
    adapted = draw(st.sets(st.integers(0, depth - 1), min_size=1))
    layers = [draw(st.sampled_from([i, i - depth])) for i in adapted]
    chosen = {
        "adapter_hidden_size": adapter_heads * draw(st.integers(1, 6)),
        "adapter_num_heads": adapter_heads,
        "adapter_layers": draw(st.permutations(layers)),
        "adapter_scale": draw(st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)),
        "adapter_dropout": draw(st.floats(0, 1, exclude_max=True)),
        "vision_feature_layer": draw(st.integers(-vision_depth - 1, vision_depth)),
        **{name: draw(NAMES) for name in PLACES},
    }
    left_out = draw(st.sets(st.sampled_from(sorted(chosen))))
    if "adapter_num_heads" in left_out or "adapter_hidden_size" in left_out:
        left_out |= {"adapter_num_heads", "adapter_hidden_size"}
    backbones = {
        "vision_config": vision(vision_depth),
        "text_config": GPT2Config(n_embd=2 * heads * draw(st.integers(1, 3)), n_head=heads, n_layer=depth),
    }
    return backbones | {name: value for name, value in chosen.items() if name not in left_out}


def own(config: ITuningConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in OWN}


def own_and_others(config: ITuningConfig) -> dict[str, Any]:
    """All that a configuration says, but for when it was written and whence it was read."""
    return config.to_dict() | {"transformers_version": None, "_name_or_path": None}


@given(options())
@examples(20, 400)
def test_any_valid_options_come_back_from_everywhere(given_options: dict[str, Any]):
    config = ITuningConfig(**given_options)
    depth = config.text_config.n_layer
    for name in given_options.keys() & OWN - {"adapter_layers"}:
        assert getattr(config, name) == given_options[name]
    assert config.adapter_layers == sorted(
        i % depth for i in given_options.get("adapter_layers", range(depth))
    )
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        loaded = [ITuningConfig.from_pretrained(folder), AutoConfig.from_pretrained(folder)]
    content = json.loads(config.to_json_string(use_diff=False))
    copies = [copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))]
    read = [ITuningConfig.from_dict(config.to_dict()), ITuningConfig.from_dict(content)]
    for other in [*loaded, *copies, *read]:
        assert type(other) is ITuningConfig
        assert own(other) == own(config)
        assert own_and_others(other) == own_and_others(config)


def test_the_own_fields_are_all_there_are():
    assert ITuningConfig.__annotations__.keys() - {"vision_config", "text_config"} == OWN


EDGES = [-5, -4, -3, -1, 0, 1, 2, 3, 7, 14, -0.0, 0.0, 1.0, 2.0, math.inf, math.nan, True, False]
ANYTHING = st.one_of(
    *(st.none(), st.booleans(), WHOLE, st.floats(), st.text(max_size=4), st.binary(max_size=2)),
    *(st.complex_numbers(), st.just(object()), st.just(int)),
    st.lists(WHOLE | st.floats() | st.booleans() | st.none() | st.text(max_size=2), max_size=4),
    st.dictionaries(WHOLE | st.text(max_size=2), WHOLE, max_size=2),
    st.lists(WHOLE, max_size=3).map(tuple),
    st.binary(max_size=2).map(bytearray),
)


def is_valid(name: str, value: Any) -> bool:
    """The rules of a captioner over an encoder of 2 layers and a decoder of 4, of width 28 and 7 heads."""
    whole, number = type(value) is int, type(value) in (int, float)
    match name:
        case "adapter_hidden_size":
            return value is None or (whole and value > 0 and value % 7 == 0)
        case "adapter_num_heads":
            return value is None or (whole and value > 0 and 14 % value == 0)
        case "adapter_layers" if type(value) in (list, tuple):
            within = all(type(i) is int and -4 <= i < 4 for i in value)
            return within and len({i % 4 for i in value}) == len(value) > 0
        case "adapter_layers":
            return value is None
        case "adapter_scale":
            return number and -sys.float_info.max <= value <= sys.float_info.max
        case "adapter_dropout":
            return number and 0 <= value < 1
        case "vision_feature_layer":
            return whole and -3 <= value <= 2
        case "format_version":
            return whole and value in (1, 2)
        case "vision_config" | "text_config":
            return value is None or (isinstance(value, dict) and "model_type" not in value)
        case _:
            return value is None or type(value) is str


def keep_or_refuse(name: str, value: Any) -> None:
    if name.endswith("_config") and isinstance(value, dict):
        assume(all(isinstance(key, str) for key in value))  # as in any file
    backbones = {"vision_config": vision(2), "text_config": GPT2Config(n_embd=28, n_head=7, n_layer=4)}
    if is_valid(name, value):
        ITuningConfig(**backbones | {name: value})
        return
    with pytest.raises((ValueError, TypeError), match=name):
        ITuningConfig(**backbones | {name: value})


@given(st.sampled_from(sorted(OWN | {"vision_config", "text_config"})), ANYTHING)
@example("adapter_scale", 10**400)
@example("adapter_scale", math.nextafter(math.inf, 0))
@example("adapter_layers", {0: 1})
@example("adapter_layers", bytearray(b"\0"))
@example("format_version", True)
@example("format_version", 0)
@example("text_model_revision", ["main"])
@example("vision_config", 3)
@example("text_config", "gpt2")
@example("vision_config", {"model_type": "siglip_vision_model"})
@examples(200, 5000)
def test_any_value_is_kept_or_refused_by_name(name: str, value: Any):
    keep_or_refuse(name, value)


@pytest.mark.parametrize("name", sorted(OWN))
def test_the_edges_of_each_range(name: str):
    for value in EDGES:
        keep_or_refuse(name, value)


KEYS = st.from_regex(r"(adapter_|vision_|text_|)[a-z][a-z_]{0,9}", fullmatch=True)


@given(KEYS.filter(lambda key: key not in ITuningConfig.__annotations__), st.integers() | st.text(max_size=3))
@examples(20, 1000)
def test_unknown_keys_are_warned_of_in_files_and_refused_by_builders(key: str, value: Any):
    looks_like_ours = key.startswith(("adapter_", "vision_", "text_"))
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    log = logging.getLogger("transformers")  # where Transformers' own loggers end
    own_log = logging.getLogger("ituning_hf.captioner.configuration_ituning")
    for one in (log, own_log):
        one.addHandler(handler)
    try:
        config = ITuningConfig.from_dict(ITuningConfig().to_dict() | {key: value})
    finally:
        for one in (log, own_log):
            one.removeHandler(handler)
    assert own(config) == own(ITuningConfig())
    warned = [record.getMessage() for record in records if "does not know" in record.getMessage()]
    assert [repr(key) in message for message in warned] == [True] * looks_like_ours
    with pytest.raises(TypeError, match=rf"unknown adapter option\(s\) \['{key}'\]"):
        ITuningForCaptioning.from_vision_text_pretrained("nowhere", "nowhere", **{key: value})
