"""The whole global batch, for terms that compare the samples of a batch with each other.

The relations inside each process's rows are not those of the batch: DIST's classes, SP's and RKD's
pairs would change with the number of processes. Where gradients are accumulated it is the batch of
one part: the others' activations are not kept.
"""

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather


def whole_batch(rows: Tensor) -> Tensor:
    """The rows [b, ...] of every process, [B, ...], in the order of ranks; alone, the same tensor.

    With its gradient: each process computes the same loss of all rows and gets P times the
    gradient of its own, which the mean over P processes makes that of the global batch.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    return torch.cat(list(all_gather(rows.contiguous())))


@torch.no_grad()
def every_row(rows: Tensor) -> Tensor:
    """The same without a gradient, for integers and for what is only remembered."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
