"""Generation, compared with a stock GPT-2 whose rows each have a copy of the image.

All models compute in double precision. In single precision the results of nearly equal beams depend on the
instruction set of the CPU.
"""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import standardize
from small_models import IMAGE_SIZE, make_batch
from torch import nn
from transformers import BatchFeature, GenerationConfig, GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList

from ituning_hf import ITuningForCaptioning
from ituning_hf.captioner.adapter_ituning import ITuningAdapter
from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.captioner.generation_ituning import add_bos_token, mask_of_padding

IMAGES, BOS, PAD = 3, 0, 299
# Any of these tokens ends a caption, so that captions and beams end at different lengths.
ENDS = list(range(100, 200))


class ReadsItsImage(nn.Module):
    """A stock feed-forward network in parallel to the adapter's formula, with one image per row."""

    def __init__(self, mlp: nn.Module, adapter: ITuningAdapter, memory: torch.Tensor) -> None:
        super().__init__()
        self.mlp, self.adapter, self.memory = mlp, adapter, memory

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = self.memory.repeat_interleave(x.shape[0] // self.memory.shape[0], dim=0)
        split = (self.adapter.num_heads, self.adapter.head_dim)
        query = self.adapter.q_proj(x).unflatten(-1, split)
        key = self.adapter.k_proj(memory).unflatten(-1, split)
        value = self.adapter.v_proj(memory).unflatten(-1, split)
        weights = torch.einsum("bthc,bnhc->bhtn", query, key).div(math.sqrt(split[1])).softmax(-1)
        read = torch.einsum("bhtn,bnhc->bthc", weights, value).flatten(2)
        return self.mlp(x) + self.adapter.out_proj(read)


@pytest.fixture
def captioner(captioner: ITuningForCaptioning) -> ITuningForCaptioning:
    return captioner.double()


@pytest.fixture
def pixel_values(pixel_values: torch.Tensor) -> torch.Tensor:
    return pixel_values.double()


@pytest.fixture
def reference(captioner, pixel_values, backbones: dict[str, Path]) -> GPT2LMHeadModel:
    model = GPT2LMHeadModel.from_pretrained(backbones["text"]).double()
    memory = standardize(captioner.get_image_features(pixel_values))
    for i, adapter in captioner.adapters().items():
        model.transformer.h[i].mlp = ReadsItsImage(model.transformer.h[i].mlp, adapter, memory)
    return model


def begin(rows: int = IMAGES) -> torch.Tensor:
    return torch.full((rows, 1), BOS)


def prompts(rows: int = IMAGES, length: int = 7) -> torch.Tensor:
    ids = torch.randint(1, 200, (rows, length), generator=torch.Generator().manual_seed(4))
    return torch.cat([begin(rows), ids], dim=1)


class Favor(LogitsProcessor):
    """Force a token once a row has reached a given length."""

    def __init__(self, token: int, lengths: list[int]) -> None:
        self.token, self.lengths = token, torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, self.token] = -math.inf
        scores[input_ids.shape[1] >= self.lengths, self.token] = math.inf
        return scores


# --- Every mode, compared with the reference

MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 40},
    "several samples": {"do_sample": True, "num_return_sequences": 4},
    "beams": {"num_beams": 5},
    "all beams": {"num_beams": 5, "num_return_sequences": 5, "length_penalty": 0.3},
    "beams without a cache": {"num_beams": 3, "use_cache": False},
    "beams stopped early": {"num_beams": 4, "early_stopping": True, "no_repeat_ngram_size": 2},
    "sampled beams": {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
    "penalties": {"repetition_penalty": 1.3, "min_new_tokens": 4, "bad_words_ids": [[207], [13, 14]]},
}


@pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
def test_generation_matches_the_reference(captioner, reference, pixel_values, options: dict[str, Any]):
    settings = {"max_new_tokens": 9, "eos_token_id": ENDS, "pad_token_id": PAD, **options}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    torch.manual_seed(0)
    expected = reference.generate(begin(), attention_mask=begin() + 1, **settings)
    torch.manual_seed(0)
    found = captioner.generate(pixel_values=pixel_values, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if "num_beams" in options:
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.beam_indices, expected.beam_indices)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_batched_captions_match_single_images_and_features(captioner, pixel_values, num_beams: int):
    settings = {"max_new_tokens": 9, "eos_token_id": ENDS, "pad_token_id": PAD, "num_beams": num_beams}
    captions = captioner.generate(pixel_values=pixel_values, **settings)
    features = captioner.get_image_features(pixel_values)
    assert torch.equal(captioner.generate(visual_features=features, **settings), captions)
    lengths = set()
    for i in range(IMAGES):
        (alone,) = captioner.generate(pixel_values=pixel_values[[i]], **settings)
        lengths.add(len(alone))
        assert captions[i].tolist() == alone.tolist() + [PAD] * (captions.shape[1] - len(alone))
    # Otherwise this test and the one above could not fail.
    assert len({tuple(row.tolist()) for row in captions}) == IMAGES
    assert len(lengths) > 1


# --- Defaults


def test_by_default_captions_stop_at_eos_and_are_padded(captioner, pixel_values):
    end = captioner.config.text_config.eos_token_id
    processors = LogitsProcessorList([Favor(end, [3, 7, 5])])
    captions = captioner.generate(pixel_values=pixel_values, logits_processor=processors)
    assert captions.shape == (IMAGES, 8)  # the longest: BOS, six tokens, EOS
    for row, length in zip(captions.tolist(), [3, 7, 5], strict=True):
        assert row[0] == BOS
        assert end not in row[1:length]
        assert row[length:] == [end] * (8 - length)


def test_a_generation_config_need_not_name_the_special_tokens(captioner, pixel_values):
    expected = captioner.generate(pixel_values=pixel_values, max_new_tokens=4)
    config = GenerationConfig(max_new_tokens=4)
    assert torch.equal(captioner.generate(pixel_values=pixel_values, generation_config=config), expected)


@pytest.mark.parametrize("through", ["keyword", "configuration"])
def test_max_length_counts_the_whole_sequence(captioner, pixel_values, through: str):
    options = {"max_length": 6, "min_length": 6}
    if through == "configuration":
        options = {"generation_config": GenerationConfig(**options)}
    assert captioner.generate(pixel_values=pixel_values, **options).shape == (IMAGES, 6)


# --- Training batches, and images as the first argument


@pytest.mark.parametrize("num_beams", [1, 3])
def test_targets_of_a_training_batch_are_not_read(captioner, num_beams: int):
    batch, settings = make_batch(IMAGES, k=5), {"max_new_tokens": 6, "num_beams": num_beams}
    expected = captioner.generate(pixel_values=batch["pixel_values"], **settings)
    assert torch.equal(captioner.generate(**batch, label_smoothing=0.1, **settings), expected)


def test_a_replaced_generation_configuration_need_not_name_the_special_tokens(captioner, pixel_values):
    expected = captioner.generate(pixel_values=pixel_values, max_new_tokens=4)
    captioner.generation_config = GenerationConfig(max_new_tokens=4)
    assert torch.equal(captioner.generate(pixel_values=pixel_values), expected)
    assert captioner.generation_config.eos_token_id == captioner.config.text_config.eos_token_id


def test_images_may_be_the_first_argument(captioner, pixel_values):
    expected = captioner.generate(pixel_values=pixel_values, max_new_tokens=4)
    assert torch.equal(captioner.generate(pixel_values, max_new_tokens=4), expected)
    prompted = captioner.generate(pixel_values=pixel_values, input_ids=prompts(), max_new_tokens=4)
    assert torch.equal(captioner.generate(pixel_values, input_ids=prompts(), max_new_tokens=4), prompted)


# --- Prompts


@pytest.mark.parametrize("num_beams", [1, 3])
def test_continues_a_prompt(captioner, reference, pixel_values, num_beams: int):
    settings = {"max_new_tokens": 6, "num_beams": num_beams, "pad_token_id": BOS}
    expected = reference.generate(prompts(), attention_mask=torch.ones_like(prompts()), **settings)
    for given in ({"input_ids": prompts()}, {"inputs": prompts()}):
        assert torch.equal(captioner.generate(**given, pixel_values=pixel_values, **settings), expected)
    assert torch.equal(captioner.generate(prompts(), pixel_values=pixel_values, **settings), expected)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_prompts_of_unequal_length_match_single_prompts(captioner, pixel_values, num_beams: int):
    settings = {"max_new_tokens": 6, "num_beams": num_beams}
    ids, lengths = prompts(), [3, 8, 5]
    padded = torch.stack(
        [nn.functional.pad(row[:n], (8 - n, 0)) for row, n in zip(ids, lengths, strict=True)]
    )
    mask = torch.stack([(torch.arange(8) >= 8 - n).long() for n in lengths])
    settings_of_all = {"input_ids": padded, "pixel_values": pixel_values, **settings}
    together = captioner.generate(attention_mask=mask, **settings_of_all)
    assert torch.equal(captioner.generate(**settings_of_all), together)  # the mask follows from the padding
    for i, n in enumerate(lengths):
        alone = captioner.generate(input_ids=ids[[i], :n], pixel_values=pixel_values[[i]], **settings)
        assert torch.equal(together[[i], 8 - n :], alone)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_all_prompts_of_an_image_attend_to_that_image(captioner, pixel_values, options: dict[str, Any]):
    settings = {"max_new_tokens": 6, **options}
    torch.manual_seed(0)
    shared = captioner.generate(input_ids=prompts(rows=6), pixel_values=pixel_values, **settings)
    torch.manual_seed(0)
    repeated = captioner.generate(
        input_ids=prompts(rows=6), pixel_values=pixel_values.repeat_interleave(2, dim=0), **settings
    )
    assert torch.equal(shared, repeated)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_missing_bos_token_is_added(captioner, pixel_values, num_beams: int):
    settings = {"pixel_values": pixel_values, "max_new_tokens": 5, "num_beams": num_beams}
    expected = captioner.generate(input_ids=prompts(), **settings)
    assert torch.equal(captioner.generate(input_ids=prompts()[:, 1:], **settings), expected)
    expected = captioner.generate(input_ids=begin(), **settings)
    empty = torch.empty((IMAGES, 0), dtype=torch.long)
    for no_prompt in ({}, {"input_ids": empty}, {"input_ids": empty, "attention_mask": empty}):
        assert torch.equal(captioner.generate(**no_prompt, **settings), expected)


WITH_BOS_TOKEN = [  # prompts, mask -> prompts, mask; the BOS token is 9
    ([[9, 1], [9, 2]], [[1, 1], [1, 1]], [[9, 1], [9, 2]], [[1, 1], [1, 1]]),
    ([[1, 2], [3, 4]], [[1, 1], [1, 1]], [[9, 1, 2], [9, 3, 4]], [[1, 1, 1], [1, 1, 1]]),
    ([[1, 2], [9, 4]], [[1, 1], [1, 1]], [[9, 1, 2], [9, 9, 4]], [[1, 1, 1], [0, 1, 1]]),
    ([[7, 1], [9, 4]], [[0, 1], [1, 1]], [[9, 9, 1], [9, 9, 4]], [[0, 1, 1], [0, 1, 1]]),
    ([[9, 9], [3, 4]], [[0, 0], [1, 1]], [[9, 9, 9], [9, 3, 4]], [[0, 0, 1], [1, 1, 1]]),
    ([[9, 1], [9, 9]], [[0, 1], [0, 1]], [[9, 9, 1], [9, 9, 9]], [[0, 1, 1], [0, 0, 1]]),
    ([[], []], [[], []], [[9], [9]], [[1], [1]]),
]


@pytest.mark.parametrize(("ids", "mask", "wanted_ids", "wanted_mask"), WITH_BOS_TOKEN)
def test_the_bos_token_is_added_before_the_prompt(ids, mask, wanted_ids, wanted_mask):
    ids, mask = torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.long)
    found_ids, found_mask = add_bos_token(ids, mask, 9)
    assert found_mask.tolist() == wanted_mask
    assert found_ids.tolist() == wanted_ids


@pytest.mark.parametrize(
    ("pad", "expected"),
    [
        (9, [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]),  # BOS is also the padding token
        (8, [[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]),
    ],
)
def test_which_leading_tokens_are_padding(pad: int, expected: list[list[int]]):
    ids = torch.tensor([[9, 9, 9, 4], [8, 9, 9, 9], [9, 9, 9, 9]])
    if pad == 9:
        ids[1] = torch.tensor([9, 4, 9, 9])
    assert mask_of_padding(ids, bos_token_id=9, pad_token_id=pad).tolist() == expected


# --- Caches


def test_a_cache_is_continued_without_a_bos_token(captioner, pixel_values):
    ids = torch.tensor([[5, 7, 11]] * IMAGES)
    with torch.no_grad():
        past = captioner(pixel_values, ids, use_cache=True).past_key_values
        for _ in range(3):
            ids = torch.cat([ids, captioner(pixel_values, ids).logits[:, -1:].argmax(-1)], dim=1)
    found = captioner.generate(
        pixel_values=pixel_values, input_ids=ids[:, :4], past_key_values=past, max_new_tokens=2
    )
    assert torch.equal(found, ids)


def test_prefill_in_chunks(captioner, pixel_values):
    settings = {"input_ids": prompts(), "pixel_values": pixel_values, "max_new_tokens": 5}
    expected = captioner.generate(**settings)
    assert torch.equal(captioner.generate(**settings, prefill_chunk_size=3), expected)


SHARED = [({}, 3), ({"num_beams": 5}, 15), ({"do_sample": True, "num_return_sequences": 4}, 12)]


@pytest.mark.parametrize(("options", "rows"), SHARED)
def test_each_image_is_encoded_and_projected_once_and_shared_by_all_rows(
    captioner, pixel_values, monkeypatch, options: dict[str, Any], rows: int
):
    encoded, projected, seen = [], [], []
    captioner.vision_model.register_forward_hook(lambda *_: encoded.append(1))
    project = ITuningAdapter.project_visual
    monkeypatch.setattr(ITuningAdapter, "project_visual", lambda *a: projected.append(1) or project(*a))
    for adapter in captioner.adapters().values():
        adapter.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    captioner.generate(pixel_values=pixel_values, max_new_tokens=5, **options)
    assert (len(encoded), len(projected)) == (1, len(captioner.adapters()))
    assert {len(hidden_states) for hidden_states, _, _ in seen} == {rows}
    assert {len(x) for _, key, value in seen for x in (key, value)} == {IMAGES}
    # One and the same tensors at every step.
    assert len({(id(key), id(value)) for _, key, value in seen}) == len(captioner.adapters())


# --- Threads


def test_threads_share_one_model(captioner):
    options = [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"repetition_penalty": 1.7}]
    threads, generator = len(options), torch.Generator().manual_seed(8)
    images = [torch.randn(1 + i, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator) for i in range(threads)]

    def run(i: int) -> torch.Tensor:
        return captioner.generate(pixel_values=images[i], max_new_tokens=12, **options[i])

    alone = [run(i) for i in range(threads)]
    barrier = threading.Barrier(threads)

    def run_together(i: int) -> list[torch.Tensor]:
        barrier.wait()
        return [run(i) for _ in range(4)]

    with ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(run_together, range(threads)))
    for i, repeats in enumerate(together):
        assert all(torch.equal(found, alone[i]) for found in repeats)


# --- Refusals

PIXELS = torch.zeros(IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE).double()
UNSUPPORTED = [
    ({"prompt_lookup_num_tokens": 2}, r"'assisted_generation' is not supported: use one of \['greedy_"),
    ({"guidance_scale": 2.0}, r"guidance_scale=2\.0 is not supported"),
    ({"cache_implementation": "paged"}, r"Continuous batching .* is not supported"),
    ({"penalty_alpha": 0.6, "top_k": 4, "trust_remote_code": True}, r"mode 'contrastive_search' is not sup"),
    ({"dola_layers": "low", "trust_remote_code": True}, r"mode 'dola_generation' is not supported"),
    (
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.1, "trust_remote_code": True},
        r"mode 'group_beam_search' is not supported",
    ),
]


@pytest.mark.parametrize(("options", "message"), UNSUPPORTED)
def test_unsupported_modes_are_refused(captioner, options: dict[str, Any], message: str):
    with pytest.raises(CaptionerError, match=message):
        captioner.generate(pixel_values=PIXELS, max_new_tokens=4, **options)


PADDED_ON_THE_RIGHT = torch.tensor([[1] * 8, [1] * 8, [1] * 7 + [0]])
BAD_INPUT = [
    ({"pixel_values": None}, "Got neither of pixel_values and visual_features"),
    (
        {"pixel_values": None, "visual_features": torch.zeros(3, 10, 14)},
        r"expected \(num_images, tokens, 15\)",
    ),
    ({"input_ids": prompts(rows=4)}, "input_ids has 4 rows for 3 images: .* image-major"),
    ({"input_ids": prompts(), "inputs": prompts()}, "inputs and input_ids are two names"),
    ({"inputs": PIXELS}, "inputs and pixel_values are two names"),
    ({"inputs": BatchFeature({"pixel_values": PIXELS})}, r"pass its parts, generate\(\*\*batch\)"),
    (
        {"input_ids": prompts(), "attention_mask": PADDED_ON_THE_RIGHT},
        "attention_mask has padding after tokens: .* padded on the left.* pass its labels too",
    ),
    ({"max_new_tokenz": 3}, "max_new_tokenz"),
    (
        {"input_ids": prompts(), "max_new_tokens": 42},
        r"A prompt of 8 tokens and 42 new tokens exceed .* 48 positions: lower max_new_tokens",
    ),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUT)
def test_invalid_inputs_are_refused(captioner, inputs: dict[str, Any], message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        captioner.generate(**{"pixel_values": PIXELS, "max_new_tokens": 4} | inputs)


def test_every_position_of_the_language_model_can_be_used(captioner):
    settings = {"min_new_tokens": 41, "max_new_tokens": 41}
    assert captioner.generate(pixel_values=PIXELS, input_ids=prompts(), **settings).shape == (IMAGES, 49)
