"""The rivals of the study: their parameters, and losses and captions compared with plain computations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import make_batch, reinitialise
from study.rivals.clipcap import ClipCap
from study.rivals.cross_attention import CrossAttention
from study.rivals.flamingo import Flamingo, GatedLayer
from study.rivals.frozen import FrozenCaptioner
from study.rivals.image_tokens import ImageTokens, pixel_shuffle
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from ituning_hf.captioner.loss_ituning import caption_loss, next_tokens, pack_rows

RIVALS = [ClipCap, ImageTokens, Flamingo, CrossAttention]
IMAGES, WIDTH, VISION_WIDTH, PATCHES = 3, 22, 15, 36


@pytest.fixture
def text_model(backbones: dict[str, Path]) -> Any:
    model = GPT2LMHeadModel.from_pretrained(backbones["text"]).double()
    reinitialise(model)  # larger weights: each token depends more on those before it
    return model


@pytest.fixture
def visual_features() -> torch.Tensor:
    return torch.randn(IMAGES, 1 + PATCHES, VISION_WIDTH).double()


@pytest.fixture(params=RIVALS)
def rival(request: pytest.FixtureRequest, text_model: Any) -> FrozenCaptioner:
    return randomize(request.param(text_model, VISION_WIDTH).double())


def randomize(rival: FrozenCaptioner) -> FrozenCaptioner:
    """Give what is trained random values, so that captions depend on the image."""
    for parameter in trained(rival).values():
        torch.nn.init.normal_(parameter)
    return rival.train()


def trained(rival: FrozenCaptioner) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in rival.named_parameters() if p.requires_grad}


def captions() -> dict[str, torch.Tensor]:
    """Five captions of each image."""
    batch = make_batch(images=IMAGES, k=5)
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


@pytest.mark.parametrize(
    ("rival", "equal", "default"),
    [
        (ClipCap, 2_179_364, (195 + 1) * 2560 + (2560 + 1) * 5120),
        (ImageTokens, 2_179_217, (4 * 195 + 1) * 512 + (512 + 1) * 512),
        (Flamingo, 2_179_596, 6 * (512 * (2 * 512 + 2 * 195) + 8 * 512**2 + 4 * 512 + 2)),
        (CrossAttention, 2_179_584, 6 * (512 * (2 * 512 + 2 * 195 + 3) + 512)),
    ],
)
def test_parameters(rival: type[Any], equal: int, default: int):
    with torch.device("meta"):
        text_model = GPT2LMHeadModel(GPT2Config(n_embd=512, n_layer=6, n_head=8, vocab_size=97))
        for wanted, expected in ((2_179_584, equal), (None, default)):
            parameters = trained(rival(text_model, 195, wanted))
            assert sum(p.numel() for p in parameters.values()) == expected


def test_the_loss_is_that_of_each_caption_alone(rival: FrozenCaptioner, visual_features: torch.Tensor):
    batch, options = captions(), {"label_smoothing": 0.1, "num_items_in_batch": 7}
    loss = rival(visual_features, **batch, **options).loss
    found = torch.autograd.grad(loss, list(trained(rival).values()))
    losses = []
    for row, (ids, mask, labels) in enumerate(zip(*batch.values(), strict=True)):
        prefix = rival.read_images(visual_features[row // 5, None])
        tokens = rival.text_model.get_input_embeddings()(ids[mask.bool()])[None]
        logits = rival.text_model(inputs_embeds=torch.cat([prefix, tokens], dim=1)).logits[0]
        targets = labels[mask.bool()][1:]
        logits = logits[prefix.shape[1] : -1]
        losses.append(F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1))
    expected = sum(losses) / 7
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(trained(rival).values())))


def test_rows_that_cannot_be_packed_have_the_same_loss(
    rival: FrozenCaptioner, visual_features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    batch = captions()
    loss = rival(visual_features, **batch).loss
    monkeypatch.setattr("study.rivals.frozen.pack_rows", lambda *arguments: None)
    torch.testing.assert_close(rival(visual_features, **batch).loss, loss)


def test_cross_attention_is_that_of_transformers(text_model: Any):
    config = GPT2Config(**text_model.config.to_dict() | {"add_cross_attention": True})
    theirs = GPT2LMHeadModel(config).double().eval()
    theirs.load_state_dict(text_model.state_dict(), strict=False)
    ours: Any = randomize(CrossAttention(text_model, WIDTH).double())
    for block, layer in zip(theirs.transformer.h, ours.layers, strict=True):
        projections = layer.attention
        for copied, parts in (
            (block.crossattention.q_attn, [projections.q_proj]),
            (block.crossattention.c_attn, [projections.k_proj, projections.v_proj]),
            (block.crossattention.c_proj, [projections.out_proj]),
        ):
            copied.weight.data = torch.cat([part.weight.data for part in parts]).T
            copied.bias.data = torch.cat([part.bias.data for part in parts])
    features, batch = torch.randn(IMAGES, 7, WIDTH).double(), captions()
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = theirs(**text, encoder_hidden_states=features.repeat_interleave(5, dim=0)).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(ours(features, **batch).loss, expected)


def test_cross_attention_starts_as_that_of_transformers():
    config = GPT2Config(n_embd=96, n_layer=2, n_head=3, vocab_size=97)
    attention = CrossAttention(GPT2LMHeadModel(config), 80).layers[1].attention
    for name, std in (("q_proj", 0.02), ("k_proj", 0.02), ("v_proj", 0.02), ("out_proj", 0.01)):
        projection = getattr(attention, name)
        assert projection.weight.std().item() == pytest.approx(std, rel=0.05)
        assert not projection.bias.any()


def test_flamingo_starts_as_the_language_model(text_model: Any, visual_features: torch.Tensor):
    flamingo = Flamingo(text_model, VISION_WIDTH).double().train()
    batch = captions()
    loss = flamingo(visual_features, **batch).loss
    packed = pack_rows(
        batch["input_ids"], batch["attention_mask"], next_tokens(batch["labels"]), IMAGES, WIDTH
    )
    ids, position_ids, targets, _ = packed
    hidden_states = text_model.transformer(ids, position_ids=position_ids, use_cache=False).last_hidden_state
    assert torch.equal(loss, caption_loss(text_model.lm_head, hidden_states, targets, None, 0.0))
    loss.backward()
    has_gradient = {name for name, p in trained(flamingo).items() if p.grad.any()}
    assert has_gradient == {
        f"text_model.transformer.h.{i}.{gate}" for i in range(4) for gate in ("attention_gate", "ffn_gate")
    }


def test_flamingo_layer_is_its_formula(text_model: Any, visual_features: torch.Tensor):
    layer: Any = randomize(Flamingo(text_model, VISION_WIDTH).double()).layers[2]
    assert isinstance(layer, GatedLayer)
    layer.read_images(visual_features)
    layer.layer = torch.nn.Identity()
    h, image = torch.randn(IMAGES, 5, WIDTH).double(), visual_features
    found = layer(h)
    query = layer.norm(h) @ layer.attention.q_proj.weight.T
    contexts = []
    for channels in (slice(0, 11), slice(11, 22)):  # two heads
        key, value = (
            image @ projection.weight[channels].T
            for projection in (layer.attention.k_proj, layer.attention.v_proj)
        )
        weights = (query[..., channels] @ key.transpose(1, 2) / 11**0.5).softmax(dim=-1)
        contexts.append(weights @ value)
    h = h + layer.attention_gate.tanh() * (torch.cat(contexts, dim=-1) @ layer.attention.out_proj.weight.T)
    norm, up, _, down = layer.ffn
    expected = h + layer.ffn_gate.tanh() * (F.gelu(norm(h) @ up.weight.T) @ down.weight.T)
    torch.testing.assert_close(found, expected)


def test_pixel_shuffle_concatenates_squares_of_patches():
    patches = torch.arange(16).view(1, 16, 1)  # 4 x 4
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert pixel_shuffle(patches).tolist() == [expected]
    class_token = torch.full((1, 1, 1), 99)
    assert pixel_shuffle(torch.cat([class_token, patches], dim=1)).tolist() == [expected]


@torch.no_grad()
def test_greedy_search_takes_the_likeliest_token(rival: FrozenCaptioner, visual_features: torch.Tensor):
    text_model = rival.text_model
    found = rival.generate(visual_features=visual_features, min_new_tokens=6, max_new_tokens=6)
    prefix = rival.read_images(visual_features)
    ids = torch.full((IMAGES, 1), text_model.config.bos_token_id)
    for _ in range(6):
        embeddings = torch.cat([prefix, text_model.get_input_embeddings()(ids)], dim=1)
        logits = text_model(inputs_embeds=embeddings, use_cache=False).logits[:, -1]
        logits[:, text_model.config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(found, ids[:, 1:])
    assert len(found.unique(dim=0)) > 1  # captions depend on the image


def test_beams_of_several_images(rival: FrozenCaptioner, visual_features: torch.Tensor):
    search = {"num_beams": 3, "min_new_tokens": 6, "max_new_tokens": 6}
    alone = [rival.generate(visual_features=features[None], **search) for features in visual_features]
    assert torch.equal(rival.generate(visual_features=visual_features, **search), torch.cat(alone))


def test_only_the_rival_is_trained(rival: FrozenCaptioner, text_model: Any, visual_features: torch.Tensor):
    modules, before = list(text_model.modules()), {n: p.clone() for n, p in text_model.named_parameters()}
    other = type(rival)(text_model, VISION_WIDTH).double()
    optimizer = torch.optim.SGD(trained(other).values(), lr=0.1)
    other.train()(visual_features, **captions()).loss.backward()
    optimizer.step()
    assert list(text_model.modules()) == modules
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in text_model.named_parameters())
    weights = {id(p) for p in text_model.parameters()}
    assert {id(p) for p in other.parameters()} - weights == {id(p) for p in trained(other).values()}
    assert all(p.grad is not None for p in trained(other).values())
    assert not any(module.training for module in other.text_model.modules())
