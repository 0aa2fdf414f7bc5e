"""The exit codes of errors, errors that every process has found, launches that are refused."""

import os
import subprocess
from datetime import timedelta
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from accelerate.commands.launch import launch_command, launch_command_parser

from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.training.errors import TrainingError
from ituning_hf.utils.distributed import create_accelerator, raise_on_main
from ituning_hf.utils.errors import OtherProcessError, UserError, WorkError, exit_code_of


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("a setting"), 2),
        (CaptionerError("a captioner"), 2),
        (FileNotFoundError("a file"), 2),
        (ImportError("an extra"), 2),
        (WorkError("a full disk"), 1),
        (TrainingError("NaN"), 1),
        (ModuleNotFoundError("a bug"), None),
        (ValueError("a bug"), None),
        (RuntimeError("a bug"), None),
    ],
)
def test_exit_codes(error: Exception, code: int | None):
    assert exit_code_of(error) == code


def test_the_main_process_raises_what_every_process_has_found():
    error = UserError("3 images could not be read")
    with pytest.raises(UserError, match=r"^3 images could not be read$") as raised:
        raise_on_main(SimpleNamespace(is_main_process=True), error)
    assert raised.value is error
    for index, local_index, on_other_host in ((1, 1, False), (2, 0, True), (3, 1, False)):
        other = SimpleNamespace(
            is_main_process=False,
            process_index=index,
            local_process_index=local_index,
            is_local_main_process=local_index == 0,
        )
        with pytest.raises(OtherProcessError, match=r"^3 images could not be read$") as raised:
            raise_on_main(other, error)
        assert (raised.value.exit_code, raised.value.on_other_host) == (2, on_other_host)


def test_processes_wait_longer_than_a_download_takes(monkeypatch):
    launched = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    start = Mock(side_effect=ConnectionError("started"))
    monkeypatch.setattr(torch.distributed, "init_process_group", start)
    with pytest.raises(ConnectionError, match="started"):
        create_accelerator()
    assert start.call_args.kwargs["timeout"] == timedelta(hours=2)


def test_a_launch_that_starts_one_process_instead_of_several_is_refused(monkeypatch):
    """Accelerate would let each host train alone."""
    popen = Mock(return_value=Mock(returncode=0))
    monkeypatch.setattr(subprocess, "Popen", popen)
    for options in ([], ["--num_processes", "2"]):
        launch_command(launch_command_parser().parse_args(["--cpu", *options, "examples/train.py"]))
    one, several = (call.kwargs["env"] for call in popen.call_args_list)
    os.environ.update(one)
    create_accelerator()
    os.environ.update(several)
    with pytest.raises(UserError, match="started one process instead of several: give it --multi_gpu"):
        create_accelerator()


def test_srun_starts_processes_with_a_main_host(monkeypatch):
    """PyTorch's variables are set from those of srun; the main host must be given."""
    for name, value in {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"before srun, run export MASTER_ADDR=.* MASTER_PORT=29500"):
        create_accelerator()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    start = Mock(side_effect=ConnectionError("started"))
    monkeypatch.setattr(torch.distributed, "init_process_group", start)
    with pytest.raises(ConnectionError, match="started"):
        create_accelerator()
    assert (start.call_args.kwargs["rank"], start.call_args.kwargs["world_size"]) == (1, 2)
    assert os.environ["LOCAL_RANK"] == "0"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "ACCELERATE_USE_FSDP is set, and the model cannot be sharded"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "accumulates 4 steps: give --gradient_accumulation"),
    ],
)
def test_an_unsupported_launch_is_refused(monkeypatch, variable: str, value: str, message: str):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message):
        create_accelerator()
