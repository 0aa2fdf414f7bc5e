"""The rank of this process among those that share the work, without a process group."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import UserError

# The variables of a process's index, the number of processes, and the index on its host. srun sets the second
# for the processes of a step alone: in a batch script without srun, SLURM_NTASKS counts processes that do not
# exist.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun, accelerate launch
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # srun
)


@dataclass(frozen=True)
class Rank:
    """One of the processes that share the work.

    Args:
        index: Its index, from 0.
        count: The number of processes.
        local_index: Its index among the processes of its host.
    """

    index: int
    count: int
    local_index: int

    def device(self, name: str | None) -> str | None:
        """Return the device to use: the given one, or this process's own GPU if there are several.

        Args:
            name: The user's choice; with None or "cuda", each process of a host gets another GPU.
        """
        import torch  # here, because the rank is read before slow imports

        gpus = torch.cuda.device_count() if name in (None, "cuda") and self.count > 1 else 0
        return f"cuda:{self.local_index % gpus}" if gpus > 1 else name


def process_rank() -> Rank:
    """Return this process's rank, from the environment of `torchrun`, `accelerate launch` or `srun`.

    Raises:
        UserError: The variables are not integers, or the index is not less than the count.
    """
    for names in _LAUNCHERS:
        if not all(os.environ.get(name) for name in names[:2]):
            continue
        texts = [os.environ.get(name) or "0" for name in names]
        if not all(text.isdecimal() for text in texts) or int(texts[0]) >= int(texts[1]):
            raise UserError(
                f"{names[0]} is {texts[0]!r}, {names[1]} {texts[1]!r} and {names[2]} {texts[2]!r}, expected "
                "an index, a larger count, and an index: correct or unset them."
            )
        return Rank(*map(int, texts))
    return Rank(0, 1, 0)
