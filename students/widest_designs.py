"""Find the widest network within a parameter budget for every depth."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

from students.design import Design, widest
from students.feature_map_sizes import PerStage


def widest_designs(
    max_params: int,
    stages: Iterable[int],
    blocks: Iterable[int],
    *,
    asymmetric: bool = False,
    **spec: Any,
) -> list[dict[str, Any]]:
    """Return the widest design with fewer than `max_params` parameters for every depth.

    A depth is a number of stages from `stages` and a number of blocks per stage from `blocks`. All
    stages have the same number of blocks; with `asymmetric` every combination is a depth, of which
    there are len(blocks) ** stages. Depths for which no width fits are left out. `spec`: further
    arguments of `Design.of`; with `downsample` "pool" some stages may have 0 blocks, but not all.
    Each row has the keys `stages`, `blocks` (with `asymmetric` one number per stage), `width`,
    `parameters`, `macs` and `macs_per_parameter`, and costs five counts of parameters. Raises
    UserError if a design is invalid, for instance if a pool is larger than the last map.
    """
    rows = []
    for n, n_blocks in _depths(stages, list(blocks), asymmetric):
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


def _depths(
    stages: Iterable[int], blocks: list[int], asymmetric: bool
) -> Iterator[tuple[int, PerStage]]:
    for n in stages:
        if asymmetric:
            yield from ((n, list(choice)) for choice in product(blocks, repeat=n) if any(choice))
        else:
            yield from ((n, number) for number in blocks)
