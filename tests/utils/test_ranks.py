import pytest
import torch

from ituning_hf.utils.errors import UserError
from ituning_hf.utils.ranks import Rank, process_rank

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "5", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "7", "SLURM_STEP_NUM_TASKS": "11", "SLURM_NTASKS": "11", "SLURM_LOCALID": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Rank(0, 1, 0)),
        (TORCHRUN, Rank(3, 5, 1)),
        (SRUN, Rank(7, 11, 2)),
        (SRUN | TORCHRUN, Rank(3, 5, 1)),  # srun starts torchrun on each host
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "11", "SLURM_LOCALID": "0"}, Rank(0, 1, 0)),  # a batch script
        ({"RANK": "3"}, Rank(0, 1, 0)),
    ],
)
def test_the_rank_is_read_from_the_launchers_variables(monkeypatch, environment, expected):
    for name in TORCHRUN | SRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == expected


@pytest.mark.parametrize("index", ["5", "-1", "x"])
def test_an_impossible_rank_is_refused(monkeypatch, index):
    for name, value in (TORCHRUN | {"RANK": index}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"RANK is '{index}', WORLD_SIZE '5'"):
        process_rank()


def test_each_process_of_a_host_gets_another_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Rank(4 + i, 7, i).device(None) for i in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert Rank(1, 2, 1).device("cuda") == "cuda:1"
    assert Rank(1, 2, 1).device("cpu") == "cpu"
    assert Rank(0, 1, 0).device(None) is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # of --gpus-per-task 1
    assert Rank(1, 2, 1).device(None) is None
