"""Check student networks against the rules of university courses, clause by clause."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from distill.errors import UserError
from students.design import Design, doubling

BUDGET = 5_000_000


@dataclass(frozen=True)
class Clause:
    """A demand of a course's rules. `found` returns what a design with an activation has instead;
    None if it follows the clause.
    """

    demand: str
    found: Callable[[Design, str], str | None]


@dataclass(frozen=True)
class Rules:
    """The rules of a course: what they demand of a network besides its size."""

    title: str
    may_equal: bool  # whether a network of exactly the budget's size is allowed
    clauses: tuple[Clause, ...] = ()

    @property
    def bound(self) -> str:
        """Return `fewer than` or `at most`, the words before the budget in messages."""
        return "at most" if self.may_equal else "fewer than"

    def exclusive_limit(self, budget: int) -> int:
        """Return the smallest number of parameters that these rules forbid."""
        return budget + self.may_equal

    def faults(self, design: Design, activation: str) -> Iterator[str]:
        """Yield the clauses that a design with an activation breaks, each with what it has."""
        for clause in self.clauses:
            if found := clause.found(design, activation):
                yield f"{clause.demand}: {found}"


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


def _channels(design: Design, _activation: str) -> str | None:
    if design.channels == doubling(design.channels[0], design.stages):
        return None
    return f"its channels are {'-'.join(map(str, design.channels))}"


def _stem_width(design: Design, _activation: str) -> str | None:
    is_right = design.stem_width == design.channels[0]
    return None if is_right else f"it has {design.stem_width}, and C_1 is {design.channels[0]}"


def _stem_kernel(design: Design, _activation: str) -> str | None:
    is_right = design.stem_kernel == design.kernels[0]
    return (
        None if is_right else f"they are {design.stem_kernel} wide, and F_1 is {design.kernels[0]}"
    )


def _stem_size(design: Design, _activation: str) -> str | None:
    return "it makes the image smaller" if design.stem_stride != 1 or design.stem_pool else None


def _stem_norm(design: Design, _activation: str) -> str | None:
    return None if design.stem_norm else "it has no bn"


def _downsample(design: Design, _activation: str) -> str | None:
    return None if design.downsample == "stride" else "its layers begin with max pools"


def _strides(design: Design, _activation: str) -> str | None:
    expected = (1, *(2,) * (design.stages - 1))
    if design.downsample != "stride" or design.stage_strides == expected:
        return None
    return f"its strides are {list(design.stage_strides)}"


def _convolutions(design: Design, _activation: str) -> str | None:
    return None if design.convs_per_block == 2 else f"it has {design.convs_per_block}"


def _projector(design: Design, _activation: str) -> str | None:
    return None if design.projector_width is None else "a projector is between them"


def _activation(_design: Design, activation: str) -> str | None:
    return None if activation == "relu" else f"they end in {activation}"


# Free are N stages, B_i blocks, C_1 channels, F_i and K_i kernel sizes, the pool P, and any
# initialisation.
CLAUSES_2022 = (
    Clause("C_(i+1) = 2 C_i", _channels),
    Clause("the input layer has C_1 channels", _stem_width),
    Clause("the input layer's filters are F_1 wide", _stem_kernel),
    Clause("the input layer keeps 32x32", _stem_size),
    Clause("the input layer's convolution is followed by bn and relu", _stem_norm),
    Clause("a later layer begins with a convolution of stride 2", _downsample),
    Clause("stride 1, then 2 at each later layer", _strides),
    Clause("a block has two convolutions", _convolutions),
    Clause("the last layer feeds the average pool", _projector),
    Clause("blocks end in relu", _activation),
)

RULES = {
    # "Mini-Project 1: Residual Network Design", ECE-GY 7123, NYU Tandon, section 2.
    "nyu2022": Rules("NYU ECE-GY 7123, 2022", False, CLAUSES_2022),
    # A `Design` is the residual convolutional network that these rules demand.
    "nyu2025": Rules("NYU, 2025: a residual network of at most five million", True),
}
