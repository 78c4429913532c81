"""Agree across ranks on saving and stopping.

A signal or a clock reaches one process; all processes must act on it after the same step. After
every step each process sends its request to the others, over a connection of the hosts (gloo)
beside the one that moves gradients, and reads the result of the step before: no device is waited
for, and a process that died is noticed, which NCCL alone would not do for minutes.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed

from distill.components.device import TIMEOUT
from distill.training.signals import Request

# What the libraries that move tensors between processes report of a lost one. Gloo raises a bare
# RuntimeError, and not all of its messages name gloo: the others are of its transports.
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


def is_lost_process(error: Exception) -> bool:
    """Whether a RuntimeError reports that another process ended or hangs."""
    return isinstance(error, distributed.DistError) or any(
        text in str(error) for text in OF_ANOTHER
    )


class RankAgreement:
    """The largest request of all processes; with several, that of the step before."""

    def __init__(self, accelerator: Accelerator) -> None:
        is_distributed = accelerator.num_processes > 1
        self.group: Any = (
            distributed.new_group(backend="gloo", timeout=TIMEOUT) if is_distributed else None
        )
        self.pending: tuple[Any, torch.Tensor] | None = None  # the reduction in progress

    def __call__(self, request: Request) -> Request:
        """Called by all processes, after each step."""
        if self.group is None:
            return request
        agreed = self._receive()
        largest = torch.tensor([request])
        work = distributed.all_reduce(
            largest, op=distributed.ReduceOp.MAX, group=self.group, async_op=True
        )
        self.pending = work, largest
        return agreed

    def now(self, request: Request) -> Request:
        """The largest request of this step: every process waits for all others."""
        agreed = self(request)
        return agreed if self.group is None else self._receive()

    def reset(self) -> None:
        """Discard the result in progress, which is acted on already. Called by all processes."""
        self._receive()

    def _receive(self) -> Request:
        if self.pending is None:
            return Request.NONE
        work, largest = self.pending
        self.pending = None
        work.wait()  # raises if a process is lost
        return Request(int(largest.item()))
