"""Agree across processes on saving and stopping.

A signal may reach only one process, and clocks differ, but all processes must save or stop after
the same step. After every step each process sends its request to the others, over a separate
connection between the CPUs (gloo), and reads the result of the previous step's exchange. So no
process waits for a GPU, and a process that died is noticed at once; NCCL alone would take minutes.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed

from distill.components.build_accelerator import TIMEOUT
from distill.training.signals import Request


class ProcessAgreement:
    """Computes the largest, which is the most urgent, request of all processes.

    With more than one process a call returns the result of the previous call, so that no step waits
    for communication.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        is_distributed = accelerator.num_processes > 1
        self.group: Any = (
            distributed.new_group(backend="gloo", timeout=TIMEOUT) if is_distributed else None
        )
        self.pending: tuple[Any, torch.Tensor] | None = None  # the reduction in progress

    def __call__(self, request: Request) -> Request:
        """Start to exchange this step's request; return the largest request of the previous step.

        Called by all processes after each step. A single process gets its own request back.
        """
        if self.group is None:
            return request
        agreed = self._receive()
        largest = torch.tensor([request])
        work = distributed.all_reduce(
            largest, op=distributed.ReduceOp.MAX, group=self.group, async_op=True
        )
        self.pending = work, largest
        return agreed

    def agree_now(self, request: Request) -> Request:
        """Return the largest request of all processes in this step. Each process waits for all
        others.
        """
        agreed = self(request)
        return agreed if self.group is None else self._receive()

    def reset(self) -> None:
        """Wait for the exchange in progress and discard its result. Called by all processes."""
        self._receive()

    def _receive(self) -> Request:
        if self.pending is None:
            return Request.NONE
        work, largest = self.pending
        self.pending = None
        work.wait()  # raises if a process is lost
        return Request(int(largest.item()))
