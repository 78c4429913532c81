"""Gather the batch of all processes, for terms that compare its samples.

Relational losses (DIST, PKT, RKD, SP) compare the samples of a batch: computed within each process,
they would depend on the number of processes. With gradient accumulation only the samples of one
micro-batch are compared: the activations of the others are already freed.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


def whole_batch(rows: Tensor) -> Tensor:
    """Gather the rows [b, ...] of all P processes to [B, ...], in the order of ranks.

    A single process gets `rows` itself. The gradient passes through: each process computes the same
    loss of all rows, its own rows get P times their gradient, and the mean over the P processes is
    the gradient of the global batch.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


@torch.no_grad()
def whole_batch_without_grad(rows: Tensor) -> Tensor:
    """Gather like `whole_batch`, but without gradients: for integers and memory banks."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    return _gathered(rows)


class _GatherRows(torch.autograd.Function):
    """Gather rows [b, ...] to [P b, ...]; sum the gradients of all processes in backward.

    Every process has the same number of rows b.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.n_rows = len(rows)
        return _gathered(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)  # all_reduce writes in place
        distributed.all_reduce(total)
        start = distributed.get_rank() * ctx.n_rows
        return total[start : start + ctx.n_rows]


def _gathered(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
