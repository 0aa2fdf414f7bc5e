from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from torch.utils.data import DataLoader

from ituning_hf.data.sampler import ImageBatchSampler, SampleKey

SHAPES = {
    "num_images": st.integers(1, 40),
    "per_device_batch_size": st.integers(1, 5),
    "gradient_accumulation_steps": st.integers(1, 4),
    "num_processes": st.integers(1, 4),
    "seed": st.integers(0, 3),
    "shuffle": st.booleans(),
}
ONE = {
    "num_images": 7,
    "per_device_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "num_processes": 1,
    "process_index": 0,
    "seed": 0,
}


def take_steps(num_steps: int, **options: Any) -> list[list[list[SampleKey]]]:
    """For each optimizer step the micro-batches of one process."""
    batches = iter(ImageBatchSampler(**options))
    accumulation = options["gradient_accumulation_steps"]
    return [list(islice(batches, accumulation)) for _ in range(num_steps)]


def merge_processes(num_steps: int, **options: Any) -> list[list[SampleKey]]:
    """For each optimizer step the samples of all processes, sorted."""
    per_process = [
        take_steps(num_steps, **options, process_index=index) for index in range(options["num_processes"])
    ]
    return [
        sorted(key for steps in per_process for batch in steps[step] for key in batch)
        for step in range(num_steps)
    ]


@given(st.fixed_dictionaries(SHAPES))
def test_an_epoch_counts_every_image_once(options: dict[str, Any]) -> None:
    steps_per_epoch = ImageBatchSampler(**options, process_index=0).steps_per_epoch
    steps = merge_processes(2 * steps_per_epoch, **options)
    for epoch in (0, 1):
        keys = [key for step in steps[epoch * steps_per_epoch :][:steps_per_epoch] for key in step]
        assert {key.epoch for key in keys} == {epoch}
        counted = sorted(key.index for key in keys if not key.padding)
        assert counted == list(range(options["num_images"]))
        assert {key.index for key in keys if key.padding} <= set(counted)


@given(st.fixed_dictionaries(SHAPES))
def test_micro_batches_are_always_full(options: dict[str, Any]) -> None:
    for step in take_steps(5, **options, process_index=options["num_processes"] - 1):
        assert [len(batch) for batch in step] == [options["per_device_batch_size"]] * len(step)


@given(st.fixed_dictionaries(SHAPES))
def test_processes_together_see_what_one_process_sees(options: dict[str, Any]) -> None:
    divided = options.pop("num_processes")
    global_batch = options["per_device_batch_size"] * options["gradient_accumulation_steps"] * divided
    one_batch = options | {
        "per_device_batch_size": global_batch,
        "gradient_accumulation_steps": 1,
        "num_processes": 1,
    }
    assert merge_processes(7, **options, num_processes=divided) == merge_processes(7, **one_batch)


@given(st.fixed_dictionaries(SHAPES), st.integers(0, 30), st.data())
def test_starting_later_skips_steps(options: dict[str, Any], start: int, data: st.DataObject) -> None:
    options["process_index"] = data.draw(st.integers(0, options["num_processes"] - 1))
    skipped = take_steps(start + 4, **options)[start:]
    assert take_steps(4, **options, start_step=start) == skipped


@given(st.fixed_dictionaries(SHAPES), st.integers(0, 30), st.data())
@examples(100, 3000)
def test_a_run_gone_on_with_otherwise_divided_sees_the_rest(
    options: dict[str, Any], stop: int, data: st.DataObject
) -> None:
    whole = merge_processes(stop + 4, **options)
    micro_images = options["gradient_accumulation_steps"] * options["per_device_batch_size"]
    global_batch = micro_images * options["num_processes"]
    processes = data.draw(st.sampled_from([n for n in range(1, global_batch + 1) if global_batch % n == 0]))
    share = global_batch // processes
    per_device = data.draw(st.sampled_from([n for n in range(1, share + 1) if share % n == 0]))
    divided = {
        "num_processes": processes,
        "per_device_batch_size": per_device,
        "gradient_accumulation_steps": share // per_device,
    }
    assert merge_processes(4, **options | divided, start_step=stop) == whole[stop:]


@given(st.fixed_dictionaries(SHAPES), st.integers(0, 9))
@examples(100, 3000)
def test_processes_share_a_step_and_none_has_anothers_image(options: dict[str, Any], step: int) -> None:
    parts = [
        [key for batch in take_steps(step + 1, **options, process_index=index)[step] for key in batch]
        for index in range(options["num_processes"])
    ]
    counted = [key for part in parts for key in part if not key.padding]
    assert len(set(counted)) == len(counted)
    assert {len(part) for part in parts} == {
        options["gradient_accumulation_steps"] * options["per_device_batch_size"]
    }


def test_the_order_is_numpy_s_permutation() -> None:
    steps = take_steps(4, **(ONE | {"num_images": 4, "seed": 9}))
    indices = [key.index for step in steps for key in step[0]]
    expected = [np.random.default_rng([9, epoch]).permutation(4).tolist() for epoch in (0, 1)]
    assert indices == expected[0] + expected[1]
    assert expected[0] != expected[1]


def test_how_a_step_is_divided_and_filled_up() -> None:
    options = {
        "num_images": 7,
        "per_device_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_processes": 2,
        "seed": 0,
        "shuffle": False,
    }
    of_process = [take_steps(1, **options, process_index=index)[0] for index in (0, 1)]
    assert of_process == [
        [
            [SampleKey(0, 0, False), SampleKey(0, 1, False)],
            [SampleKey(0, 4, False), SampleKey(0, 5, False)],
        ],
        [
            [SampleKey(0, 2, False), SampleKey(0, 3, False)],
            [SampleKey(0, 6, False), SampleKey(0, 0, True)],
        ],
    ]


def test_a_data_loader_takes_it_as_batch_sampler() -> None:
    class Echo:
        def __getitem__(self, key: SampleKey) -> SampleKey:
            return key

    loader: DataLoader[Any] = DataLoader(
        Echo(), batch_sampler=ImageBatchSampler(**ONE), collate_fn=lambda keys: keys
    )
    assert list(islice(loader, 9)) == list(islice(ImageBatchSampler(**ONE), 9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"per_device_batch_size": 0}, "per_device_batch_size must be at least 1, got 0"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps must be at least 1, got -1"),
        ({"num_processes": 0}, "num_processes must be at least 1, got 0"),
        ({"num_processes": 3, "process_index": 3}, "process_index must be from 0 to 2, got 3"),
        ({"process_index": -1}, "process_index must be from 0 to 0, got -1"),
        ({"start_step": -1}, "start_step must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        ImageBatchSampler(**(ONE | change))
