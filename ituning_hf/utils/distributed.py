"""Several processes: create the accelerator, and propagate errors across ranks."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    gather_object,
    parse_flag_from_env,
)

from .devices import library_versions
from .errors import OtherProcessError, UserError, exit_code_of
from .ranks import process_rank
from .terminal import quiet_transformers

# How long processes wait for one that reads a large dataset, downloads a backbone or scores captions. The
# default with NCCL, 10 minutes, is shorter than a download. Launchers end the other processes after a crash.
TIMEOUT = timedelta(hours=2)
_GRACE_SECONDS = 0.5
# Settings that may differ between the processes of a command: paths, which each host may have in another
# place, and what only the main process or only the data loader uses. Digests identify the files.
_SETTINGS_OF_A_HOST = frozenset(
    {
        "output_dir",
        "resume_from_checkpoint",
        "dataloader_num_workers",
        "model",
        "dataset",
        "image_root",
        "vision_model",
        "text_model",
        "features",
        "predictions",
        "report",
    }
)


def create_accelerator(mixed_precision: str | None = None, **kwargs: Any) -> Accelerator:
    """Return an accelerator over all the processes that were launched.

    Args:
        mixed_precision: As `Accelerator` takes it; None leaves it to `accelerate config`.
        **kwargs: For `Accelerator`.

    Raises:
        UserError: for a launcher's option that would shard the model or accumulate gradients a second time;
            if Accelerate sees fewer processes than were launched (each would do all the work and overwrite
            the others' files), or they have other versions of the libraries; for fp16 on a CPU.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):  # `accelerate launch` sets it
            raise UserError(
                f"ACCELERATE_USE_{name} is set, and the model cannot be sharded. Only the small adapters "
                "have gradients and optimizer states: use `accelerate launch --multi_gpu` or `torchrun`."
            )
    launched = _find_processes()
    # Without a GPU Accelerate otherwise sees one process under `torchrun`.
    cpu = launched > 1 and not torch.accelerator.is_available()
    # Buffers are frozen and equal on all ranks: DDP would broadcast them in each step, int8 weights too.
    handlers = [
        DistributedDataParallelKwargs(broadcast_buffers=False),
        InitProcessGroupKwargs(timeout=TIMEOUT),
    ]
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=cpu, kwargs_handlers=handlers, **kwargs)
    if accelerator.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched and Accelerate sees {accelerator.num_processes}: start "
            "them with `accelerate launch` or `torchrun`."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError(
            f"Accelerate accumulates {accelerator.gradient_accumulation_steps} steps: give "
            "--gradient_accumulation_steps to `ituning train`, and not to `accelerate launch`."
        )
    if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
        raise UserError(
            f"mixed precision fp16 requires a GPU, and on {accelerator.device} Accelerate would compute "
            "in fp32 and not say so: give --mixed_precision bf16 or no."
        )
    versions = {name: text for name, text in library_versions().items() if name != "python"}
    require_equal(accelerator, {}, versions)
    return accelerator


def _find_processes() -> int:
    """Return the number of processes; set the variables that PyTorch reads in those that `srun` started."""
    rank = process_rank()
    # `accelerate launch` sets the first in each process, the second if several were asked for.
    if rank.count == 1 and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys():
        raise UserError(
            "`accelerate launch` started one process instead of several: give it --multi_gpu, which also "
            "starts processes on CPUs, or use `torchrun`."
        )
    if rank.count > 1 and "RANK" not in os.environ:
        if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise UserError(
                "srun started several processes, and they do not know the host of the first: before srun, "
                'run export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) '
                "MASTER_PORT=29500."
            )
        names = {"RANK": rank.index, "WORLD_SIZE": rank.count, "LOCAL_RANK": rank.local_index}
        os.environ |= {name: str(value) for name, value in names.items()}
    return rank.count


def require_equal(accelerator: Accelerator, settings: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse processes that would not do the same work; every process must call it.

    Args:
        accelerator: The processes.
        settings: The command's settings, of which those that hosts may choose are not compared.
        values: Other values that must be equal, by a name that the message shows.

    Raises:
        UserError: on the first process of each host; OtherProcessError on the others.
    """
    own = {f"--{name}": value for name, value in settings.items() if name not in _SETTINGS_OF_A_HOST}
    reports = gather_object([(socket.gethostname(), own | dict(values))])
    main_host, expected = reports[0]
    for index, (host, found) in enumerate(reports):
        differing = [name for name in expected | found if expected.get(name) != found.get(name)]
        if not differing:
            continue
        pairs = "; ".join(f"{name} {expected.get(name)!r} and {found.get(name)!r}" for name in differing)
        text = (
            f"Process 0 on {main_host} and process {index} on {host} have different settings, data, models "
            f"or libraries: {pairs}. Give all processes the same, and start them again."
        )
        if accelerator.is_local_main_process:
            raise UserError(text)
        raise OtherProcessError(text, 2)


@contextmanager
def command_process() -> Iterator[None]:
    """Set up a command's logging, and leave the process group at its end."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    quiet_transformers()
    try:
        yield
    finally:
        leave_group()  # a process that exits inside the group may be aborted and lose its exit code


@contextmanager
def sync_errors(accelerator: Accelerator) -> Iterator[None]:
    """End all processes when one fails inside the block, so that the others do not wait for it forever.

    Every process enters the block. The code inside must not wait for other processes.

    Raises:
        OtherProcessError: if another process failed. The first that failed raises its own error.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    report = None if error is None else (_host(accelerator), str(error), exit_code_of(error) or 1)
    for process, failed in enumerate(gather_object([report])):
        if failed is not None and process == accelerator.process_index and error is not None:
            raise error
        if failed is not None:
            host, text, exit_code = failed
            raise _error_of_other(accelerator, host, f"process {process}: {text}", exit_code) from error


def raise_on_main(accelerator: Accelerator, error: Exception) -> NoReturn:
    """Raise an error that every process has found on the main one, and an OtherProcessError on the others."""
    if accelerator.is_main_process:
        raise error
    raise _error_of_other(accelerator, 0, str(error), exit_code_of(error) or 1) from error


def _host(accelerator: Accelerator) -> int:
    """Return the index of the first process of this host."""
    return accelerator.process_index - accelerator.local_process_index


def _error_of_other(accelerator: Accelerator, host: int, text: str, exit_code: int) -> OtherProcessError:
    on_other_host = accelerator.is_local_main_process and host != _host(accelerator)
    return OtherProcessError(text, exit_code, on_other_host)


def leave_group() -> None:
    """Close this process's group of processes, if it is in one; no collective may follow.

    A thread of PyTorch's gloo needs the GIL to release the last tensors it sent. Closing the group can wait
    for that thread while it holds the GIL, and deadlock (seen with PyTorch 2.13). The sleep releases the GIL.
    """
    if torch.distributed.is_initialized():
        time.sleep(_GRACE_SECONDS)
        torch.distributed.destroy_process_group()
