from itertools import islice
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from ituning_hf.data.sampler import ImageBatchSampler, SampleKey

SHAPES = st.fixed_dictionaries(
    {
        "num_images": st.integers(1, 40),
        "per_device_batch_size": st.integers(1, 5),
        "gradient_accumulation_steps": st.integers(1, 4),
        "num_processes": st.integers(1, 4),
        "seed": st.integers(0, 3),
        "shuffle": st.booleans(),
    }
)


def take_steps(num_steps: int, **options: Any) -> list[list[list[SampleKey]]]:
    """For each optimizer step the micro-batches of one process, which are always full."""
    accumulation, size = options["gradient_accumulation_steps"], options["per_device_batch_size"]
    batches = list(islice(ImageBatchSampler(**options), num_steps * accumulation))
    assert {len(batch) for batch in batches} <= {size}
    return [batches[step * accumulation :][:accumulation] for step in range(num_steps)]


def merge_processes(num_steps: int, **options: Any) -> list[list[SampleKey]]:
    """For each optimizer step the samples of all processes, sorted."""
    per_process = [
        take_steps(num_steps, **options, process_index=index) for index in range(options["num_processes"])
    ]
    return [
        sorted(key for steps in per_process for batch in steps[step] for key in batch)
        for step in range(num_steps)
    ]


@given(SHAPES)
@examples(30, 3000)
def test_all_processes_together_count_every_image_of_an_epoch_once(options: dict[str, Any]) -> None:
    steps_per_epoch = ImageBatchSampler(**options, process_index=0).steps_per_epoch
    steps = merge_processes(2 * steps_per_epoch, **options)
    for epoch in (0, 1):
        keys = [key for step in steps[epoch * steps_per_epoch :][:steps_per_epoch] for key in step]
        assert {key.epoch for key in keys} == {epoch}
        counted = sorted(key.index for key in keys if not key.padding)
        assert counted == list(range(options["num_images"]))
        assert {key.index for key in keys if key.padding} <= set(counted)


@given(SHAPES, st.integers(0, 30), st.data())
@examples(30, 3000)
def test_a_later_start_skips_steps(options: dict[str, Any], start: int, data: st.DataObject) -> None:
    options["process_index"] = data.draw(st.integers(0, options["num_processes"] - 1))
    skipped = take_steps(start + 4, **options)[start:]
    assert take_steps(4, **options, start_step=start) == skipped


@given(SHAPES, st.integers(0, 30), st.data())
@examples(50, 3000)
def test_a_run_resumed_on_other_processes_gets_the_remaining_steps(
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


def test_the_order_is_numpys_permutation() -> None:
    steps = take_steps(4, **SMALL | {"num_images": 4, "seed": 9, "shuffle": True})
    indices = [key.index for step in steps for key in step[0]]
    expected = [np.random.default_rng([9, epoch]).permutation(4).tolist() for epoch in (0, 1)]
    assert indices == expected[0] + expected[1]
    assert expected[0] != expected[1]


SMALL = {
    "num_images": 7,
    "per_device_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "num_processes": 1,
    "process_index": 0,
    "seed": 0,
    "shuffle": False,
}


def test_a_step_is_divided_and_padded() -> None:
    options = SMALL | {"gradient_accumulation_steps": 2, "num_processes": 2}
    steps = [take_steps(1, **options | {"process_index": index})[0] for index in (0, 1)]
    assert steps == [
        [
            [SampleKey(0, 0, False), SampleKey(0, 1, False)],
            [SampleKey(0, 4, False), SampleKey(0, 5, False)],
        ],
        [
            [SampleKey(0, 2, False), SampleKey(0, 3, False)],
            [SampleKey(0, 6, False), SampleKey(0, 0, True)],
        ],
    ]
