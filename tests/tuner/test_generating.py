"""Generation with adapters: equal to forward step by step, with the images projected once."""

import pytest
import torch
from methods import DEPTH, IMAGES, ITUNING, ROWS, all_families
from torch import nn

from ituning_hf.captioner.adapter_ituning import ITuningAdapter
from ituning_hf.captioner.decoders_ituning import decoder_family

GREEDY = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False}
BEAMS = GREEDY | {"num_beams": 4}
SAMPLING = GREEDY | {"do_sample": True, "num_return_sequences": 3, "top_k": 20}


@pytest.fixture(autouse=True)
def _padding_token(text_model):
    text_model.generation_config.pad_token_id = 0


def greedy_loop(model: nn.Module, rows: torch.Tensor, steps: int) -> torch.Tensor:
    for _ in range(steps):
        logits = ITUNING.logits(model, input_ids=rows, use_cache=False)[:, -1]
        logits[:, model.config.eos_token_id] = -torch.inf
        rows = torch.cat([rows, logits.argmax(-1, keepdim=True)], dim=1)
    return rows


def begin_of(text_model: nn.Module) -> torch.Tensor:
    """The BOS token, for each of two images."""
    config = text_model.config
    return torch.full((2, 1), decoder_family(config).special_tokens(config)["bos_token_id"])


@all_families
def test_generation_equals_forward_step_by_step(text_model):
    model = ITUNING.wrap(text_model)
    expected = greedy_loop(model, ROWS, 7)
    inputs = {"input_ids": ROWS, "attention_mask": torch.ones_like(ROWS)} | ITUNING.inputs
    assert torch.equal(model.generate(**inputs, **GREEDY), expected)
    assert torch.equal(model.generate(**inputs, **GREEDY, cache_implementation="static"), expected)
    with model.disable_adapter():
        assert not torch.equal(model.generate(**inputs, **GREEDY), expected)


@all_families
@pytest.mark.parametrize("how", [GREEDY, BEAMS, SAMPLING], ids=["greedy", "beams", "sampling"])
def test_projecting_once_equals_projecting_at_each_step(text_model, monkeypatch, how: dict):
    model = ITUNING.wrap(text_model)
    projections = []
    project = ITuningAdapter.project_visual

    def counted(self, image):
        projections.append(len(image))
        return project(self, image)

    monkeypatch.setattr(ITuningAdapter, "project_visual", counted)
    begin = begin_of(text_model)
    results = []
    for generate in (model.generate, model.get_base_model().generate):
        torch.manual_seed(5)
        results.append(
            generate(
                input_ids=begin,
                attention_mask=torch.ones_like(begin),
                visual_features=IMAGES,
                return_dict_in_generate=True,
                output_scores=True,
                **how,
            )
        )
    once, each_step = results
    assert torch.equal(once.sequences, each_step.sequences)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(once.scores, each_step.scores, strict=True))
    assert projections[:DEPTH] == [2] * DEPTH  # the images themselves, once in each layer
    assert len(projections) == DEPTH * (1 + 7)


@all_families
def test_without_a_prompt_each_image_gets_a_text(text_model):
    model = ITUNING.wrap(text_model)
    begin = begin_of(text_model)
    expected = model.generate(begin, attention_mask=begin * 0 + 1, visual_features=IMAGES, **BEAMS)
    assert expected.shape == (2, 8)
    assert torch.equal(model.generate(visual_features=IMAGES, **BEAMS), expected)
    assert torch.equal(model.generate(None, input_ids=None, visual_features=IMAGES, **BEAMS), expected)
    with model.disable_adapter():
        texts = model.generate(visual_features=IMAGES, **BEAMS)
    assert torch.equal(texts[0], texts[1])  # without an image


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
@pytest.mark.parametrize("rows", [2, 4])
def test_the_targets_of_a_batch_are_not_prompts(text_model, task_type: str | None, rows: int):
    model = ITUNING.wrap(text_model, task_type=task_type)
    expected = model.generate(visual_features=IMAGES, **BEAMS)
    texts = ROWS[:rows]
    mask = torch.ones_like(texts).index_fill(1, torch.tensor([5]), 0)
    batch = {"input_ids": texts, "attention_mask": mask, "labels": texts, "label_smoothing": 0.1}
    assert torch.equal(model.generate(**batch, visual_features=IMAGES, **BEAMS), expected)
    assert torch.equal(model.generate(texts, labels=texts, visual_features=IMAGES, **BEAMS), expected)
