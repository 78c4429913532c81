"""Check student networks against the rules of university courses, clause by clause."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from distill.errors import UserError
from students.design import Design, doubling

BUDGET = 5_000_000


@dataclass(frozen=True)
class Rules:
    """The rules of a course; `faults` yields the clauses that a design and activation break."""

    title: str
    may_equal: bool  # whether a network of exactly the budget's size is allowed
    faults: Callable[[Design, str], Iterator[str]]

    @property
    def bound(self) -> str:
        """Return `fewer than` or `at most`, the words before the budget in messages."""
        return "at most" if self.may_equal else "fewer than"

    def exclusive_limit(self, budget: int) -> int:
        """Return the smallest number of parameters that these rules forbid."""
        return budget + self.may_equal


def broken_clauses(
    rules: Rules, design: Design, activation: str, budget: int = BUDGET
) -> list[str]:
    """Return the clauses that a design breaks, each with the design's value; may be empty."""
    faults = list(rules.faults(design, activation))
    if design.parameters >= rules.exclusive_limit(budget):
        faults.append(f"{rules.bound} {budget:,} parameters: it has {design.parameters:,}")
    return faults


def rules_by_name(name: str) -> Rules:
    """Return the rules called `name`. Raises UserError if there are none."""
    if name not in RULES:
        raise UserError(f"--rules {name} is unknown; allowed: {', '.join(RULES)}.")
    return RULES[name]


def _nyu2022(design: Design, activation: str) -> Iterator[str]:
    """Yield the clauses of 2022 that are broken.

    The rules leave only these free: N stages, B_i blocks, C_1 channels, F_i and K_i kernel sizes,
    and the pool P.
    """
    first = design.channels[0]
    if design.channels != doubling(first, design.stages):
        yield f"C_(i+1) = 2 C_i: its channels are {'-'.join(map(str, design.channels))}"
    yield from _input_layer(design)
    if design.downsample != "stride":
        yield "a later layer begins with a convolution of stride 2: its layers begin with max pools"
    elif design.stage_strides != (1, *(2,) * (design.stages - 1)):
        yield f"stride 1, then 2 at each later layer: its strides are {list(design.stage_strides)}"
    if design.convs_per_block != 2:
        yield f"a block has two convolutions: it has {design.convs_per_block}"
    if design.projector_width is not None:
        yield "the last layer feeds the average pool: a projector is between them"
    if activation != "relu":
        yield f"blocks end in relu: they end in {activation}"


def _input_layer(design: Design) -> Iterator[str]:
    """Yield the clauses of 2022 on the input layer that are broken.

    Any initialisation is allowed.
    """
    first = design.channels[0]
    if design.stem_width != first:
        yield f"the input layer has C_1 = {first} channels: it has {design.stem_width}"
    if design.stem_kernel != design.kernels[0]:
        yield (
            f"the input layer's filters are F_1 = {design.kernels[0]} wide: they are "
            f"{design.stem_kernel}"
        )
    if design.stem_stride != 1 or design.stem_pool:
        yield "the input layer keeps 32x32: it makes the image smaller"
    if not design.stem_norm:
        yield "the input layer's convolution is followed by bn and relu: it has no bn"


def _nyu2025(design: Design, activation: str) -> Iterator[str]:
    """Yield nothing: the rules require a residual convolutional network, which a `Design` is."""
    yield from ()


RULES = {
    # "Mini-Project 1: Residual Network Design", ECE-GY 7123, NYU Tandon, section 2.
    "nyu2022": Rules("NYU ECE-GY 7123, 2022", False, _nyu2022),
    "nyu2025": Rules("NYU, 2025: a residual network of at most five million", True, _nyu2025),
}
