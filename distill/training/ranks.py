"""Agree across ranks on saving and stopping.

A signal or a clock reaches one process; training goes on in all or in none. Each tells the others
its wish at every step, over the hosts' own connection (gloo) beside the one that moves gradients,
and reads what was told a step before: nobody waits for a device, and who has died is noticed, which
NCCL alone would not for minutes.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed

from distill.components.device import TIMEOUT

# What the libraries that move tensors between processes say of one that is gone. Gloo throws a bare
# RuntimeError, and not all of its texts name it: these are its transports' own.
OF_ANOTHER = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Application timeout caused pair closure",
    "Socket closed",
    "Socket unexpectedly closed",
    "Connect timeout",
    "Read timeout",
    "Write timeout",
)


def is_lost_process(fault: Exception) -> bool:
    """Whether a RuntimeError says that another process ended or hangs."""
    return isinstance(fault, distributed.DistError) or any(
        text in str(fault) for text in OF_ANOTHER
    )


class RankAgreement:
    """The largest wish of all processes: of this step where there is one process, else of the one
    before.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        several = accelerator.num_processes > 1
        self.group: Any = (
            distributed.new_group(backend="gloo", timeout=TIMEOUT) if several else None
        )
        self.told: tuple[Any, torch.Tensor] | None = None  # on its way

    def __call__(self, request: int) -> int:
        """Called by all processes, after each step."""
        if self.group is None:
            return request
        agreed = self._receive()
        wishes = torch.tensor([request])
        work = distributed.all_reduce(
            wishes, op=distributed.ReduceOp.MAX, group=self.group, async_op=True
        )
        self.told = work, wishes
        return agreed

    def now(self, request: int) -> int:
        """The same without delay: all wait for all."""
        agreed = self(request)
        return agreed if self.group is None else self._receive()

    def reset(self) -> None:
        """What is on its way was met already. Called by all processes."""
        self._receive()

    def _receive(self) -> int:
        if self.told is None:
            return 0
        work, wishes = self.told
        self.told = None
        work.wait()  # raises where somebody has gone
        return int(wishes.item())
