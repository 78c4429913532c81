"""Gather the batch of all processes, for loss terms that compare its samples.

Relational losses (DIST, PKT, RKD, SP) compare the samples of a batch. If each process compared only
its own samples, the loss would depend on the number of processes. With gradient accumulation only
the samples of one micro-batch are compared, since the activations of earlier ones are freed.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


def whole_batch(rows: Tensor) -> Tensor:
    """Gather the rows [b, ...] of all P processes to [B, ...], in the order of ranks.

    A single process gets `rows` itself. Gradients flow back to the process's own rows, summed over
    the processes. Each process computes the same loss of all rows, so this sum is P times the
    gradient of its own rows; DistributedDataParallel's mean over the P processes then gives the
    gradient of the global batch.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


@torch.no_grad()
def whole_batch_without_grad(rows: Tensor) -> Tensor:
    """Gather the rows [b, ...] of all processes to [B, ...], in the order of ranks.

    No gradients flow back. This is for integers and memory banks.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    return _gather(rows)


class _GatherRows(torch.autograd.Function):
    """Gather rows [b, ...] to [P b, ...]; sum the gradients of all processes in backward.

    Every process has the same number of rows b.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.n_rows = len(rows)
        return _gather(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)  # all_reduce writes in place
        distributed.all_reduce(total)
        start = distributed.get_rank() * ctx.n_rows
        return total[start : start + ctx.n_rows]


def _gather(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
