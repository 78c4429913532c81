"""Find the widest network within a parameter budget for every depth."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

from students.design import Design, widest
from students.design_spec import PerStage


def widest_designs(
    max_params: int,
    stages: Iterable[int],
    blocks: Iterable[int],
    *,
    asymmetric: bool = False,
    **spec: Any,
) -> list[dict[str, Any]]:
    """Return the widest design for each number of stages and choice of blocks, if one fits.

    A design has fewer than `max_params` parameters. Keys of each row: `stages`, `blocks` (a number
    for all stages; `asymmetric`: one per stage), `width`, `parameters`, `macs`,
    `macs_per_parameter`. `spec`: more arguments of `Design.of`. Costs five counts per row; with
    `asymmetric` there are blocks ** stages rows. Pooled stages (`downsample` "pool") may have 0
    blocks, though not all of them. Raises UserError for an invalid spec, for instance a pool larger
    than the last map.
    """
    rows = []
    for n, n_blocks in _choices(stages, list(blocks), asymmetric):
        width = widest(max_params, stages=n, blocks=n_blocks, **spec)
        if width is not None:
            design = Design.of(stages=n, blocks=n_blocks, width=width, **spec)
            rows.append(
                {
                    "stages": n,
                    "blocks": n_blocks,
                    "width": width,
                    "parameters": design.parameters,
                    "macs": design.macs,
                    "macs_per_parameter": design.macs / design.parameters,
                }
            )
    return rows


def _choices(
    stages: Iterable[int], blocks: list[int], asymmetric: bool
) -> Iterator[tuple[int, PerStage]]:
    for n in stages:
        if asymmetric:
            yield from ((n, list(choice)) for choice in product(blocks, repeat=n) if any(choice))
        else:
            yield from ((n, number) for number in blocks)
