"""The `[loss]` tables: weight, schedule and arguments of each term, and the inputs it needs.

`Term.needs` is a set of these names:

    labels        a distribution over the classes for each sample
    one label     one class per sample, so images cannot be mixed
    teacher       the teacher's logits, computed or cached
    live teacher  a teacher that is computed in each step, not cached
    taps          feature maps of student and teacher
    pair          the teacher's logits of both images before they are mixed
    sample index  the index of each sample in the training set

`distill/losses/NAME.py` has the paper, the equation and the arguments of each term.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
# The upper bounds are far above useful values. They keep the product of two values within float32,
# and loops over a count finite in practice.
MOST = 1_000_000_000
Positive = Annotated[float, Field(gt=0, le=MOST)]
NotNegative = Annotated[float, Field(ge=0, le=MOST)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Channels = Annotated[int, Field(ge=1, le=65_536)]
Temperature = Annotated[float, Field(ge=0.001, le=1_000_000)]
Temperatures = Annotated[tuple[Temperature, ...], Field(strict=False, min_length=1)]
Names = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has lists, frozen models need tuples
Taps = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
ConsecutiveTaps = Annotated[tuple[str, ...], Field(strict=False, min_length=2)]

LABELS = frozenset({"labels"})
ONE_LABEL = frozenset({"labels", "one label", "teacher"})
LOGITS = frozenset({"teacher"})
MAPS = frozenset({"live teacher", "taps"})
STAGES = ("stages.0", "stages.1", "stages.2")


class Table(BaseModel):
    """A table of a recipe or a sweep file: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class When(Table):
    """When a loss term is active, in fractions of the training."""

    begin: ShareBelowOne = 0.0
    end: Annotated[float, Field(gt=0, le=1)] = 1.0
    warmup: ShareBelowOne = 0.0  # after `begin`, the weight increases from 0 over this fraction
    fade_to: NotNegative = 1.0  # factor on the weight at `end`; linear from 1 after the warmup


class Term(Table):
    """Keys of every loss term: its weight in the total loss, and when it is active."""

    needs: ClassVar[frozenset[str]]
    weight: NotNegative = 1.0
    when: When = When()


class Hard(Term):
    """Cross-entropy with the labels."""

    needs: ClassVar = LABELS
    label_smoothing: ShareBelowOne = 0.0


class Kd(Term):
    """Hinton's knowledge distillation, arXiv 1503.02531."""

    needs: ClassVar = LOGITS
    weight: NotNegative = 0.9
    temperature: Temperature = 4.0
    standardise: bool = False


class Dkd(Term):
    """Decoupled knowledge distillation, arXiv 2203.08679."""

    needs: ClassVar = ONE_LABEL
    alpha: NotNegative = 1.0
    beta: NotNegative = 2.0
    temperature: Temperature = 4.0
    standardise: bool = False


class Dist(Term):
    """Relations between and within classes, arXiv 2205.10536."""

    needs: ClassVar = LOGITS
    beta: NotNegative = 1.0
    gamma: NotNegative = 1.0
    temperature: Temperature = 4.0


class LogitStd(Term):
    """KD of standardised logits, arXiv 2403.01427."""

    needs: ClassVar = LOGITS
    temperature: Temperature = 1.0


class Mse(Term):
    """Squared distance of logits, arXiv 1312.6184."""

    needs: ClassVar = LOGITS
    centred: bool = True


class MultiTemperature(Term):
    """KD at several temperatures at once."""

    needs: ClassVar = LOGITS
    temperatures: Temperatures = (1.0, 2.0, 4.0)
    standardise: bool = False


class Ctkd(Term):
    """KD at a learnt temperature, arXiv 2211.16231."""

    needs: ClassVar = LOGITS
    weight: NotNegative = 0.9
    lowest: Temperature = 1.0
    spread: Temperature = 20.0
    curriculum: ShareBelowOne = 0.0417  # 10 of 240 epochs


class Mlkd(Term):
    """Multi-level logit distillation, DOI 10.1109/CVPR52729.2023.02325."""

    needs: ClassVar = LOGITS
    temperatures: Temperatures = (2.0, 3.0, 4.0, 5.0, 6.0)
    batch: NotNegative = 64.0
    classes: NotNegative = 4096.0


class Ttm(Term):
    """Transformed teacher matching, arXiv 2402.11148."""

    needs: ClassVar = LOGITS
    exponent: Annotated[float, Field(gt=0, le=1)] = 0.1
    weighted: bool = False


class Wkd(Term):
    """WKD-L, a Wasserstein distance between logits, arXiv 2412.08139."""

    needs: ClassVar = ONE_LABEL
    gamma: NotNegative = 800.0
    temperature: Temperature = 8.0
    entropy: Annotated[float, Field(ge=0.001, le=1000)] = 0.05
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 10
    sharpness: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    decay_from: Share = 0.625  # epoch 150 of 240


class SoftMix(Term):
    """KD with the teacher's logits of two images, mixed in the same proportion as the images."""

    needs: ClassVar = frozenset({"pair"})
    temperature: Temperature = 4.0


class FitNet(Term):
    """Hints, arXiv 1412.6550."""

    needs: ClassVar = MAPS
    student_tap: str = "stages.1"
    teacher_tap: str = "stages.1"
    # The regressor: a 1x1 convolution and batch norm, or RepDistiller's, which ends in a ReLU.
    layout: Literal["pointwise", "released"] = "pointwise"


class At(Term):
    """Attention transfer, arXiv 1612.03928."""

    needs: ClassVar = MAPS
    student_taps: Taps = STAGES
    teacher_taps: Taps = STAGES
    reduction: Literal["mean", "paper"] = "mean"


class Sp(Term):
    """Similarity-preserving distillation, arXiv 1907.09682."""

    needs: ClassVar = MAPS
    student_tap: str = "stages.2"
    teacher_tap: str = "stages.2"
    reduction: Literal["scale_free", "paper"] = "scale_free"


class Nst(Term):
    """Neuron selectivity transfer, arXiv 1707.01219."""

    needs: ClassVar = MAPS
    student_tap: str = "stages.2"
    teacher_tap: str = "stages.2"
    student_taps: Taps | None = None  # several maps instead of the one above
    teacher_taps: Taps | None = None


class Pkt(Term):
    """Probabilistic knowledge transfer, arXiv 1803.10837."""

    needs: ClassVar = MAPS
    student_tap: str = "features"
    teacher_tap: str = "features"
    reduction: Literal["scale_free", "paper"] = "scale_free"


class Rkd(Term):
    """Relational knowledge distillation, arXiv 1904.05068."""

    needs: ClassVar = MAPS
    distance: NotNegative = 1.0
    angle: NotNegative = 2.0
    rows: Annotated[int, Field(ge=3, le=65_536)] = (
        128  # the angles are computed between at most this many samples of a batch
    )
    student_tap: str = "features"
    teacher_tap: str = "features"


class Vid(Term):
    """Variational information distillation, arXiv 1904.05835."""

    needs: ClassVar = MAPS
    student_taps: Taps = STAGES
    teacher_taps: Taps = STAGES


class Fsp(Term):
    """Flow of the solution procedure, DOI 10.1109/CVPR.2017.754."""

    needs: ClassVar = MAPS
    student_taps: ConsecutiveTaps = ("stem", *STAGES)
    teacher_taps: ConsecutiveTaps = ("stem", *STAGES)


class Ab(Term):
    """Activation boundaries, arXiv 1811.03233."""

    needs: ClassVar = MAPS
    student_taps: Taps = STAGES
    teacher_taps: Taps = STAGES


class Ft(Term):
    """Factor transfer, arXiv 1802.04977."""

    needs: ClassVar = MAPS
    student_tap: str = "stages.2"
    teacher_tap: str = "stages.2"
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    reconstruction: NotNegative = 0.001


class Cc(Term):
    """Correlation congruence, arXiv 1904.01802."""

    needs: ClassVar = MAPS
    student_tap: str = "features"
    teacher_tap: str = "features"
    dims: Channels = 128


class Crd(Term):
    """Contrastive representation distillation, arXiv 1910.10699."""

    needs: ClassVar = MAPS | {"sample index"}
    student_tap: str = "features"
    teacher_tap: str = "features"
    dims: Channels = 128
    negatives: Annotated[int, Field(ge=1, le=10_000_000)] = 16_384
    temperature: Annotated[float, Field(ge=0.02, le=1_000_000)] = (
        0.07  # at least 0.02: for a smaller T, exp(1/T) overflows float32
    )
    momentum: ShareBelowOne = 0.5


class ReviewKd(Term):
    """Knowledge review, arXiv 2104.09044."""

    needs: ClassVar = MAPS
    student_taps: Taps = (*STAGES, "features")
    teacher_taps: Taps = (*STAGES, "features")
    width: Channels = 64  # channels of the fused maps


class SimKd(Term):
    """Squared distance of projected maps; the student reuses the teacher's classifier, arXiv
    2203.14001.
    """

    needs: ClassVar = MAPS
    student_tap: str = "projector"
    teacher_tap: str = "maps"


class Losses(Table):
    """The loss terms by name; a term that is None is absent."""

    hard: Hard | None = None
    kd: Kd | None = None
    dkd: Dkd | None = None
    dist: Dist | None = None
    logit_std: LogitStd | None = None
    mse: Mse | None = None
    multi_temperature: MultiTemperature | None = None
    ctkd: Ctkd | None = None
    mlkd: Mlkd | None = None
    ttm: Ttm | None = None
    wkd: Wkd | None = None
    soft_mix: SoftMix | None = None
    fitnet: FitNet | None = None
    at: At | None = None
    sp: Sp | None = None
    nst: Nst | None = None
    fsp: Fsp | None = None
    ab: Ab | None = None
    ft: Ft | None = None
    pkt: Pkt | None = None
    rkd: Rkd | None = None
    cc: Cc | None = None
    vid: Vid | None = None
    crd: Crd | None = None
    reviewkd: ReviewKd | None = None
    simkd: SimKd | None = None

    def terms(self) -> dict[str, Term]:
        """Return the terms that are present, by name, in the order of this table."""
        return {name: term for name, term in self if term is not None}


TEACHERS = frozenset({"teacher", "live teacher", "pair"})  # inputs that come from a teacher


def arguments(term: Term) -> dict[str, Any]:
    """Return a term's own arguments: all except `weight` and `when`."""
    return term.model_dump(exclude={"weight", "when"})


def taps(term: Term, network: Literal["student", "teacher"]) -> Iterator[tuple[str, str]]:
    """Yield (key, tap) for every feature map of `network` that a term reads.

    `key`: the term's key, such as "student_taps"; `tap`: the map's name, such as "stages.1".
    """
    one, several = f"{network}_tap", f"{network}_taps"
    if (found := getattr(term, several, None)) is not None:  # nst has both keys
        yield from ((several, tap) for tap in found)
    elif (tap := getattr(term, one, None)) is not None:
        yield one, tap
