"""The configuration: defaults, round trips and invalid values."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import edit_json
from transformers import AutoConfig, CLIPVisionConfig, GPT2Config, GPT2LMHeadModel

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.captioner.adapter_ituning import ITuningAdapter
from ituning_hf.captioner.configuration_ituning import CaptionerError, absolute_if_local

VISION = {"hidden_size": 15, "num_attention_heads": 3, "num_hidden_layers": 2}
TEXT = {"n_embd": 28, "n_head": 7, "n_layer": 4}


def make_config(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **options: Any):
    return ITuningConfig(
        vision_config=CLIPVisionConfig(**VISION | (vision or {})),
        text_config=GPT2Config(**TEXT | (text or {})),
        **options,
    )


def save_with(folder: Path, **changes: Any) -> Path:
    """Save a configuration, and then edit its file."""
    make_config().save_pretrained(folder)
    edit_json(folder / "config.json", **changes)
    return folder


def test_none_means_half_the_width_the_decoders_heads_and_all_layers():
    config = make_config()
    assert (config.adapter_hidden_size, config.adapter_num_heads) == (14, 7)
    assert config.adapter_layers == [0, 1, 2, 3]
    assert (config.adapter_scale, config.adapter_dropout, config.vision_feature_layer) == (1.0, 0.0, -1)
    assert config.get_text_config(decoder=True) is config.text_config


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ({"n_embd": 45, "n_head": 5}, (20, 5)),  # 22 is not a multiple of 5
        ({"adapter_hidden_size": 15}, (15, 5)),  # 7 and 6 do not divide 15
        ({"adapter_hidden_size": 13}, (13, 1)),
        ({"adapter_hidden_size": 21}, (21, 7)),
        ({"adapter_num_heads": 4}, (12, 4)),  # the largest multiple of 4 up to 14
        ({"adapter_num_heads": 3, "adapter_hidden_size": 15}, (15, 3)),
    ],
)
def test_heads_divide_the_width(given: dict[str, int], resolved: tuple[int, int]):
    text = {name: given.pop(name) for name in ("n_embd", "n_head") if name in given}
    config = make_config(text=text, **given)
    assert (config.adapter_hidden_size, config.adapter_num_heads) == resolved


def test_default_backbones_are_clip_and_gpt2_without_a_source():
    config = ITuningConfig()
    fields = ("name_or_path", "revision", "fingerprint")
    assert [getattr(config, f"{kind}_model_{f}") for kind in ("vision", "text") for f in fields] == [None] * 6
    assert (config.vision_config.model_type, config.text_config.model_type) == ("clip_vision_model", "gpt2")
    assert config.format_version == 2


@pytest.mark.parametrize(
    ("given", "resolved"),
    [([3], [3]), ([-1], [3]), ([-4], [0]), ([3, -3], [1, 3]), (range(2, 4), [2, 3]), ((2, 0), [0, 2])],
)
def test_layers_are_counted_from_the_bottom_and_sorted(given: Any, resolved: list[int]):
    assert make_config(adapter_layers=given).adapter_layers == resolved


def test_a_loaded_models_configuration_does_not_change():
    options = {"n_embd": 20, "n_layer": 2, "n_head": 5, "vocab_size": 97, "eos_token_id": 96}
    model = GPT2LMHeadModel(GPT2Config(**options, attn_implementation="sdpa")).eval()
    ids = torch.tensor([[96, 1, 2, 3]])
    before = model(ids).logits
    ITuningConfig(text_config=model.config)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)


def test_survives_a_round_trip_through_json(tmp_path: Path):
    config = make_config(
        adapter_layers=[-1, 1],
        adapter_hidden_size=6,
        adapter_num_heads=2,
        adapter_scale=4,  # an integer serves as a float
        adapter_dropout=0.125,
        vision_feature_layer=-3,
        vision_feature_norm=False,
        vision_model_name_or_path="org/clip",
        vision_model_revision="abc",
        vision_model_fingerprint="0" * 32,
        text_model_name_or_path="org/gpt2",
        text_model_revision="def",
        text_model_fingerprint="1" * 32,
    )
    config.save_pretrained(tmp_path)
    for loaded in (ITuningConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is ITuningConfig
        assert isinstance(loaded.vision_config, CLIPVisionConfig)
        assert isinstance(loaded.text_config, GPT2Config)
        assert loaded.to_diff_dict() == config.to_diff_dict()


def test_overriding_a_path_drops_the_stored_revision(tmp_path: Path):
    recorded = {"vision_model_name_or_path": "org/clip", "vision_model_revision": "abc"}
    recorded |= {"text_model_name_or_path": "org/gpt2", "text_model_revision": "def"}
    make_config(**recorded).save_pretrained(tmp_path)
    moved = ITuningConfig.from_pretrained(tmp_path, vision_model_name_or_path="me/clip")
    assert (moved.vision_model_name_or_path, moved.vision_model_revision) == ("me/clip", None)
    assert (moved.text_model_name_or_path, moved.text_model_revision) == ("org/gpt2", "def")
    pinned = ITuningConfig.from_pretrained(
        tmp_path, text_model_name_or_path="me/gpt2", text_model_revision="123"
    )
    assert (pinned.text_model_name_or_path, pinned.text_model_revision) == ("me/gpt2", "123")
    assert pinned.vision_model_revision == "abc"


def test_local_folders_become_absolute_and_hub_ids_do_not_change(tmp_path: Path, monkeypatch):
    (tmp_path / "clip").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_if_local("clip") == absolute_if_local(Path("clip")) == str(tmp_path / "clip")
    assert absolute_if_local("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"


BAD_VALUES = [
    ({"adapter_layers": [0, 4, -5]}, r"adapter_layers contains \[4, -5\], expected integers from -4 to 3"),
    ({"adapter_layers": [1.0, True]}, r"adapter_layers contains \[1\.0, True\]"),
    ({"adapter_layers": "all"}, r"adapter_layers is 'all', expected a list"),
    ({"adapter_layers": []}, r"adapter_layers is empty: list at least one"),
    ({"adapter_layers": [1, 2, -3]}, r"adapter_layers is \[1, 2, -3\], which contains a layer twice"),
    (
        {"adapter_hidden_size": 15, "adapter_num_heads": 7},
        r"adapter_num_heads is 7, which does not divide .* 15",
    ),
    ({"adapter_num_heads": 15}, r"adapter_num_heads is 15, more than half the decoder's hidden size 28"),
    ({"adapter_hidden_size": 0}, r"adapter_hidden_size is 0, expected a positive integer"),
    ({"adapter_num_heads": -7}, r"adapter_num_heads is -7, expected a positive integer"),
    ({"adapter_dropout": 1.0}, r"adapter_dropout is 1\.0, expected 0 <= p < 1"),
    ({"adapter_dropout": -0.1}, r"adapter_dropout is -0\.1, expected 0 <= p < 1"),
    ({"adapter_dropout": "0.1"}, r"adapter_dropout is '0\.1', expected 0 <= p < 1"),
    ({"adapter_scale": float("nan")}, r"adapter_scale is nan, expected a finite number"),
    ({"adapter_scale": None}, r"adapter_scale is None, expected a finite number"),
    ({"vision_feature_layer": 3}, r"vision_feature_layer is 3, expected -3 to 2 for an encoder of 2"),
    ({"vision_feature_layer": -4}, r"vision_feature_layer is -4, expected -3 to 2"),
    ({"vision_feature_norm": "false"}, r"vision_feature_norm is 'false', expected a bool"),
    ({"adapter_scale": 10**400}, r"adapter_scale is 10+, expected a finite number"),
    ({"text_model_revision": ["main"]}, r"text_model_revision is \['main'\], expected a string or None"),
    ({"format_version": 3}, r"format_version is 3, expected 2: upgrade"),
    ({"format_version": 0}, r"format_version is 0, expected 2"),
    ({"format_version": True}, r"format_version is True"),
]


@pytest.mark.parametrize(("options", "message"), BAD_VALUES)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(CaptionerError, match=message):
        make_config(**options)


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_a_backbones_configuration_of_another_type_is_refused(part: str):
    with pytest.raises(CaptionerError, match=f"{part} is 'x', expected the frozen model's configuration"):
        ITuningConfig(**{part: "x"})


EDITS = [
    ({"model_type": "gpt2"}, "config.json has model_type 'gpt2', expected 'ituning'"),
    ({"format_version": 7}, "format_version is 7.*upgrade ituning_hf"),
    ({"adapter_scale": "big"}, "adapter_scale is 'big', expected a finite number"),
    ({"text_config": {"model_type": "gpt2", "n_layer": "x"}}, "config.json has a value .*n_layer"),
    ({"text_config": {"model_type": "gpt2", "n_head": 0}}, "text_config.num_attention_heads is 0"),
    (
        {"vision_config": {"model_type": "clip_vision_model", "patch_size": 0}},
        "vision_config.patch_size is 0",
    ),
]


@pytest.mark.parametrize(("changes", "message"), EDITS)
def test_invalid_values_in_a_saved_file_are_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    folder = save_with(tmp_path, **changes)
    with pytest.raises(CaptionerError, match=f"(?s){message}"):
        ITuningConfig.from_pretrained(folder)


def test_a_saved_file_may_be_edited_and_overridden(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = save_with(tmp_path, vision_feature_layer=2, adapter_layers=[-1])
    config = ITuningConfig.from_pretrained(folder, adapter_dropout=0.25)
    assert (config.vision_feature_layer, config.adapter_layers, config.adapter_dropout) == (2, [3], 0.25)
    assert not caplog.records


def test_unknown_keys_with_its_prefixes_cause_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = save_with(tmp_path, adapter_hiden_size=4, a_key_of_transformers=1)
    config = ITuningConfig.from_pretrained(folder)
    assert config.adapter_hidden_size == 14
    (record,) = caplog.records
    assert "ignores the unknown fields ['adapter_hiden_size']" in record.getMessage()


# Over CLIP ViT-B/16's 768-wide features. README.md states these totals.
PAPER_SIZES = [
    ({"n_embd": 768, "n_layer": 12, "n_head": 12}, 14_178_816),
    ({"n_embd": 1024, "n_layer": 24, "n_head": 16}, 44_101_632),
    ({"n_embd": 1280, "n_layer": 36, "n_head": 20}, 94_487_040),
]


@pytest.mark.parametrize(("text", "stated"), PAPER_SIZES)
def test_trainable_parameters_at_the_papers_sizes(text: dict[str, int], stated: int):
    with torch.device("meta"):
        model = ITuningForCaptioning(
            ITuningConfig(vision_config=CLIPVisionConfig(patch_size=16), text_config=GPT2Config(**text))
        )
    d, d_v, r = text["n_embd"], 768, text["n_embd"] // 2
    of_one_layer = (d * r + r) + 2 * (d_v * r + r) + (r * d + d)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == text["n_layer"] * of_one_layer == stated


def test_the_adapters_of_real_decoders_are_as_documented():
    page = Path(__file__).resolve().parents[2] / "docs" / "families.md"
    rows = re.findall(r"^(\| `[^|]*\|(?: [\d,]+ \|){6})$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 12
    for row in rows:
        d, depth, decoder_heads, r, heads, parameters = (
            int(cell.replace(",", "")) for cell in row.split("|")[2:-1]
        )
        config = make_config(text={"n_embd": d, "n_layer": depth, "n_head": decoder_heads})
        assert (config.adapter_hidden_size, config.adapter_num_heads) == (r, heads), row
        with torch.device("meta"):
            adapter = ITuningAdapter(d, 768, r, heads)
        of_one_layer = sum(p.numel() for p in adapter.parameters())
        assert len(config.adapter_layers) * of_one_layer == parameters, row
