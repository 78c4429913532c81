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
Weight = Annotated[NotNegative, Field(description="The factor on the term in the total loss.")]
Count = Annotated[int, Field(ge=1, le=MOST)]
Channels = Annotated[int, Field(ge=1, le=65_536)]
Temperature = Annotated[float, Field(ge=0.001, le=1_000_000)]
Temperatures = Annotated[
    tuple[Temperature, ...],
    Field(strict=False, min_length=1, description="The temperatures; the mean over them is taken."),
]
OneTemperature = Annotated[
    Temperature, Field(description="The temperature T that both networks' logits are divided by.")
]
Standardise = Annotated[
    bool,
    Field(description="Whether to replace the logits by their z-scores first, as `logit_std`."),
]
Names = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has lists, frozen models need tuples
Taps = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
StudentTap = Annotated[str, Field(description="The name of the student's feature map.")]
TeacherTap = Annotated[str, Field(description="The name of the teacher's feature map.")]
StudentTaps = Annotated[Taps, Field(description="The names of the student's feature maps.")]
TeacherTaps = Annotated[
    Taps, Field(description="The names of the teacher's feature maps, as many as the student's.")
]
ConsecutiveStudentTaps = Annotated[StudentTaps, Field(min_length=2)]
ConsecutiveTeacherTaps = Annotated[TeacherTaps, Field(min_length=2)]

LABELS = frozenset({"labels"})
ONE_LABEL = frozenset({"labels", "one label", "teacher"})
LOGITS = frozenset({"teacher"})
MAPS = frozenset({"live teacher", "taps"})
STAGES = ("stages.0", "stages.1", "stages.2")


class Table(BaseModel):
    """A table of a recipe or a sweep file: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class When(Table):
    """When a loss term is active, in fractions of the training."""

    begin: ShareBelowOne = 0.0
    """The term begins after this fraction of the training."""
    end: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The term ends after this fraction of the training."""
    warmup: ShareBelowOne = 0.0
    """After `begin`, the weight increases from 0 over this fraction of the training."""
    fade_to: NotNegative = 1.0
    """The factor on the weight at `end`, to which it changes linearly from 1 after the warmup."""


class Term(Table):
    """Keys of every loss term: its weight in the total loss, and when it is active."""

    needs: ClassVar[frozenset[str]]
    weight: Weight = 1.0
    when: When = When()


class Hard(Term):
    """Cross-entropy with the labels."""

    needs: ClassVar = LABELS
    label_smoothing: ShareBelowOne = 0.0
    """This fraction of each label is spread evenly over all classes."""


class Kd(Term):
    """Hinton's knowledge distillation, arXiv 1503.02531."""

    needs: ClassVar = LOGITS
    weight: Weight = 0.9
    temperature: OneTemperature = 4.0
    standardise: Standardise = False


class Dkd(Term):
    """Decoupled knowledge distillation, arXiv 2203.08679."""

    needs: ClassVar = ONE_LABEL
    alpha: NotNegative = 1.0
    """The weight of the target class against all others, TCKD."""
    beta: NotNegative = 2.0
    """The weight of the classes other than the target, NCKD."""
    temperature: OneTemperature = 4.0
    standardise: Standardise = False


class Dist(Term):
    """Relations between and within classes, arXiv 2205.10536."""

    needs: ClassVar = LOGITS
    beta: NotNegative = 1.0
    """The weight of the relations between the classes of a sample."""
    gamma: NotNegative = 1.0
    """The weight of the relations between the samples of a class."""
    temperature: OneTemperature = 4.0


class LogitStd(Term):
    """KD of standardised logits, arXiv 2403.01427."""

    needs: ClassVar = LOGITS
    temperature: OneTemperature = 1.0


class Mse(Term):
    """Squared distance of logits, arXiv 1312.6184."""

    needs: ClassVar = LOGITS
    centred: bool = True
    """Whether to subtract the mean of each sample's logits first."""


class MultiTemperature(Term):
    """KD at several temperatures at once."""

    needs: ClassVar = LOGITS
    temperatures: Temperatures = (1.0, 2.0, 4.0)
    standardise: Standardise = False


class Ctkd(Term):
    """KD at a learnt temperature, arXiv 2211.16231."""

    needs: ClassVar = LOGITS
    weight: Weight = 0.9
    lowest: Temperature = 1.0
    """The lowest temperature."""
    spread: Temperature = 20.0
    """How far the temperature can rise above `lowest`; it begins at lowest + 0.73 spread."""
    curriculum: ShareBelowOne = 0.0417
    """The fraction of the training in which the learning of the temperature becomes fully active;
    10 of 240 epochs by default.
    """


class Mlkd(Term):
    """Multi-level logit distillation, DOI 10.1109/CVPR52729.2023.02325."""

    needs: ClassVar = LOGITS
    temperatures: Temperatures = (2.0, 3.0, 4.0, 5.0, 6.0)
    batch: NotNegative = 64.0
    """The weight of the pairs of samples."""
    classes: NotNegative = 4096.0
    """The weight of the pairs of classes."""


class Ttm(Term):
    """Transformed teacher matching, arXiv 2402.11148."""

    needs: ClassVar = LOGITS
    exponent: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The exponent of the teacher's probabilities: the inverse of a temperature."""
    weighted: bool = False
    """Whether to weight samples by the teacher's uncertainty, WTTM."""


class Wkd(Term):
    """WKD-L, a Wasserstein distance between logits, arXiv 2412.08139."""

    needs: ClassVar = ONE_LABEL
    gamma: NotNegative = 800.0
    """The weight of the Wasserstein distance; the target class's cross-entropy has weight 1."""
    temperature: Temperature = 8.0
    """The temperature of the distributions over the other classes."""
    entropy: Annotated[float, Field(ge=0.001, le=1000)] = 0.05
    """The entropic regularisation of the transport."""
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 10
    """The number of iterations of Sinkhorn's algorithm."""
    sharpness: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    """How fast the distance of two classes grows as the cosine of their weights falls."""
    decay_from: Share = 0.625
    """The fraction of the training after which `gamma` decays to 0: epoch 150 of 240."""


class SoftMix(Term):
    """KD with the teacher's logits of two images, mixed in the same proportion as the images."""

    needs: ClassVar = frozenset({"pair"})
    temperature: OneTemperature = 4.0


class FitNet(Term):
    """Hints, arXiv 1412.6550."""

    needs: ClassVar = MAPS
    student_tap: StudentTap = "stages.1"
    teacher_tap: TeacherTap = "stages.1"
    layout: Literal["pointwise", "released"] = "pointwise"
    """The regressor: a 1x1 convolution and batch norm, or RepDistiller's, which ends in a ReLU."""


class At(Term):
    """Attention transfer, arXiv 1612.03928."""

    needs: ClassVar = MAPS
    student_taps: StudentTaps = STAGES
    teacher_taps: TeacherTaps = STAGES
    reduction: Literal["mean", "paper"] = "mean"
    """How pixels are combined: as in the authors' code, or as in the paper's equation 2."""


class Sp(Term):
    """Similarity-preserving distillation, arXiv 1907.09682."""

    needs: ClassVar = MAPS
    student_tap: StudentTap = "stages.2"
    teacher_tap: TeacherTap = "stages.2"
    reduction: Literal["scale_free", "paper"] = "scale_free"
    """How the difference of the similarities is scaled: independent of the batch size, or as in the
    paper.
    """


class Nst(Term):
    """Neuron selectivity transfer, arXiv 1707.01219."""

    needs: ClassVar = MAPS
    student_tap: StudentTap = "stages.2"
    teacher_tap: TeacherTap = "stages.2"
    student_taps: Taps | None = None
    """The names of several feature maps of the student, instead of `student_tap`."""
    teacher_taps: Taps | None = None
    """The names of several feature maps of the teacher, instead of `teacher_tap`."""


class Pkt(Term):
    """Probabilistic knowledge transfer, arXiv 1803.10837."""

    needs: ClassVar = MAPS
    student_tap: StudentTap = "features"
    teacher_tap: TeacherTap = "features"
    reduction: Literal["scale_free", "paper"] = "scale_free"
    """How the divergence is scaled: independent of the batch size, or as in the authors' code."""


class Rkd(Term):
    """Relational knowledge distillation, arXiv 1904.05068."""

    needs: ClassVar = MAPS
    distance: NotNegative = 1.0
    """The weight of the distances between samples."""
    angle: NotNegative = 2.0
    """The weight of the angles between samples."""
    rows: Annotated[int, Field(ge=3, le=65_536)] = 128
    """The angles are computed between at most this many samples of a batch."""
    student_tap: StudentTap = "features"
    teacher_tap: TeacherTap = "features"


class Vid(Term):
    """Variational information distillation, arXiv 1904.05835."""

    needs: ClassVar = MAPS
    student_taps: StudentTaps = STAGES
    teacher_taps: TeacherTaps = STAGES


class Fsp(Term):
    """Flow of the solution procedure, DOI 10.1109/CVPR.2017.754."""

    needs: ClassVar = MAPS
    student_taps: ConsecutiveStudentTaps = ("stem", *STAGES)
    teacher_taps: ConsecutiveTeacherTaps = ("stem", *STAGES)


class Ab(Term):
    """Activation boundaries, arXiv 1811.03233."""

    needs: ClassVar = MAPS
    student_taps: StudentTaps = STAGES
    teacher_taps: TeacherTaps = STAGES


class Ft(Term):
    """Factor transfer, arXiv 1802.04977."""

    needs: ClassVar = MAPS
    student_tap: StudentTap = "stages.2"
    teacher_tap: TeacherTap = "stages.2"
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The factors have this fraction of the channels of the teacher's map."""
    reconstruction: NotNegative = 0.001
    """The weight of the paraphraser's own loss, with which it learns to reconstruct the teacher's
    map.
    """


class Cc(Term):
    """Correlation congruence, arXiv 1904.01802."""

    needs: ClassVar = MAPS
    student_tap: StudentTap = "features"
    teacher_tap: TeacherTap = "features"
    dims: Channels = 128
    """The length of the vectors that both networks' features are projected to."""


class Crd(Term):
    """Contrastive representation distillation, arXiv 1910.10699."""

    needs: ClassVar = MAPS | {"sample index"}
    student_tap: StudentTap = "features"
    teacher_tap: TeacherTap = "features"
    dims: Channels = 128
    """The length of the vectors that both networks' features are projected to."""
    negatives: Annotated[int, Field(ge=1, le=10_000_000)] = 16_384
    """The number of other images that each image is compared with."""
    temperature: Annotated[float, Field(ge=0.02, le=1_000_000)] = 0.07
    """The temperature of the scores; below 0.02, exp(1/T) overflows float32."""
    momentum: ShareBelowOne = 0.5
    """The weight of an image's old vector when its row of the memory bank is updated."""


class ReviewKd(Term):
    """Knowledge review, arXiv 2104.09044."""

    needs: ClassVar = MAPS
    student_taps: StudentTaps = (*STAGES, "features")
    teacher_taps: TeacherTaps = (*STAGES, "features")
    width: Channels = 64
    """The number of channels of the fused maps."""


class SimKd(Term):
    """Squared distance of projected maps; the student reuses the teacher's classifier, arXiv
    2203.14001.
    """

    needs: ClassVar = MAPS
    student_tap: StudentTap = "projector"
    teacher_tap: TeacherTap = "maps"


class Losses(Table):
    """The loss terms by name; an absent term is not computed."""

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
