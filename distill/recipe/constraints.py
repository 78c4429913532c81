"""Constraints between keys of a recipe.

A rule is a function that yields a Fault for each violation. Its arguments are the tables that it
reads, by name; it is called if all of them are present and valid.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from math import floor, fsum
from typing import Any

from distill.errors import UserError
from distill.recipe.describe_network import budget_fault, describe, is_described_by_design
from distill.recipe.loss_schema import Losses, taps
from distill.recipe.schema import (
    OWN_KEYS,
    WRN_KEYS,
    Augment,
    Cache,
    Data,
    Ema,
    Mix,
    Optim,
    ResNetKeys,
    Student,
    Teacher,
    Train,
    foreign_keys,
)
from distill.recipe.stage_pairs import is_chosen_later
from networks import network_catalogue
from students.design import Design


@dataclass(frozen=True)
class Fault:
    """A fault of a recipe: `key = value`, followed by the problem.

    `value`: None if the message should not show one, as for a missing key. `against`: a second key,
    which conflicts with `key`; in the message it replaces `{}` in `problem`.
    """

    key: str
    value: Any
    problem: str
    against: str | None = None


Rule = Callable[..., Iterator[Fault]]

SMALLEST = 8  # allowed height and width of training images in pixels; all are even
# Terms that need maps [C, H, W], not pooled vectors.
MAPS_ALONE = {"fitnet", "at", "nst", "fsp", "ab", "ft", "vid"}
WITHOUT_BETAS = {"sgd", "momentum", "rmsprop", "adagrad", "adadelta", "lars"}  # optimizers
ROUNDING = 1e-9  # tolerance for probabilities that add up to 1: 0.33 + 0.56 + 0.11 > 1 in floats
WITHOUT_EPS = {"sgd", "momentum", "lion"}  # optimizers
DEPTHS = "10, 16, 22, 28 …"  # of a Wide ResNet
EXAMPLE = {"stages": 3, "blocks": 1, "width": 64}  # suggested if a residual network lacks the key


def one_mix_a_sample(mix: Mix) -> Iterator[Fault]:
    """Check that the probabilities of the ways of mixing add up to at most 1."""
    probs = {f"mix.{name}.prob": way.prob for name, way in mix.ways().items() if way.prob > 0}
    if fsum(probs.values()) > 1 + ROUNDING:
        (key, first), *rest = probs.items()
        others = " and ".join(f"{other} = {prob}" for other, prob in rest)
        remedy = " ".join(f"--set {key}={prob}" for key, prob in _probs_that_fit(probs).items())
        problem = f"and {others} add up to more than 1; each sample is mixed in one way at most; "
        yield Fault(key, first, problem + f"type {remedy}")


def _probs_that_fit(probs: dict[str, float]) -> dict[str, float]:
    """Return the changed values with which the probabilities add up to 1, by key.

    Only the first one is lowered if that suffices, otherwise all are scaled.
    """
    key, *others = probs
    left = 1 - fsum(probs[other] for other in others)
    fitting = {key: left} if left > 0 else {k: v / fsum(probs.values()) for k, v in probs.items()}
    # Four digits, rounded down: the suggested values must not add up to more than 1 again.
    return {key: floor(round(10_000 * prob, 6)) / 10_000 for key, prob in fitting.items()}


def teacher_network_is_known(teacher: Teacher) -> Iterator[Fault]:
    """Check that the teacher's network has a known name and, if it is a Wide ResNet, a valid depth.

    Only timm knows its own names: `timm/NAME` is checked later, when timm is imported.
    """
    yield from _network_faults("teacher", teacher.network, ("wrn", "resnet"))
    if teacher.network == "wrn" and not network_catalogue.is_valid_depth(teacher.depth):
        yield Fault("teacher.depth", teacher.depth, "is not a depth of wrn; allowed: " + DEPTHS)


def student_network_is_known(student: Student) -> Iterator[Fault]:
    """Check that the student's network has a known name."""
    if student.network == "wrn":  # only [teacher] has the keys `depth` and `widen`
        yield Fault(
            "student.network", "wrn", "needs a depth and a width; type wrn-16-2, for example"
        )
        return
    yield from _network_faults("student", student.network, ("resnet",))


def _network_faults(table: str, network: str, own: tuple[str, ...]) -> Iterator[Fault]:
    fault = network_catalogue.fault_of_name(network)
    if not fault and not _is_known(network, own):
        allowed = ", ".join(f'"{name}"' for name in (*own, "timm/NAME", "FILE.py:NAME"))
        fault = f"is unknown; allowed: {allowed} or a name such as {network_catalogue.EXAMPLES}"
        fault += did_you_mean(*network_catalogue.similar(network, own)[:1])
        if re.fullmatch("[a-z0-9_]+", network):
            fault += f" Networks of timm are typed as timm/NAME: timm/{network}, if timm has it"
    if fault:
        yield Fault(f"{table}.network", network, fault)


def _is_known(network: str, own: tuple[str, ...] = ("wrn", "resnet")) -> bool:
    is_timm = re.fullmatch("timm/.+", network) is not None
    is_named = network_catalogue.is_named(network) or network_catalogue.is_own(network)
    return network in own or is_timm or is_named


def teacher_keys_fit(teacher: Teacher) -> Iterator[Fault]:
    """Check that the keys of a Wide ResNet or of a residual network are used with it only."""
    yield from _foreign_key_faults("teacher", teacher)


def student_keys_fit(student: Student) -> Iterator[Fault]:
    """Check that the keys of a residual network are used with `resnet` only."""
    yield from _foreign_key_faults("student", student)


def _foreign_key_faults(name_of_table: str, table: Student | Teacher) -> Iterator[Fault]:
    if not _is_known(table.network):
        return  # another rule reports it
    family = table.network.partition("/")[0]
    for name, value in table:
        if name in foreign_keys(table.network) & table.model_fields_set:
            owner = "wrn" if name in WRN_KEYS else "FILE.py:NAME" if name in OWN_KEYS else "resnet"
            problem = (
                f"is a key of {owner}, but {{}} is {family}; remove it, "
                f"or type --set {name_of_table}.network={owner}"
            )
            value = list(value) if isinstance(value, tuple) else value
            yield Fault(f"{name_of_table}.{name}", value, problem, f"{name_of_table}.network")


def some_term_is_active(loss: Losses) -> Iterator[Fault]:
    """Check that at every moment of the training at least one term has a weight above 0."""
    terms = loss.terms()
    if not terms:
        yield Fault("loss", None, "has no term; add [loss.hard] or [loss.kd]")
    elif all(term.weight == 0 for term in terms.values()):
        name, term = next(iter(terms.items()))
        problem = "leaves no term with a weight above 0, so nothing would be learnt; type "
        problem += f"--set loss.{name}.weight=1"
        yield Fault(f"loss.{name}.weight", term.weight, problem)
    else:
        whens = [term.when for term in terms.values() if term.weight > 0]
        moments = sorted({0.0, *(when.end for when in whens if when.end < 1)})
        without_term = (m for m in moments if not any(w.begin <= m < w.end for w in whens))
        for moment in without_term:
            problem = f"has no term with a weight above 0 at {moment:g} of the training; "
            problem += "let one begin by then, or type --set loss.hard.weight=1"
            yield Fault("loss", None, problem)


def warmup_ends_before_term(loss: Losses) -> Iterator[Fault]:
    """Check that the warmup of each term ends before the term does."""
    for name, term in loss.terms().items():
        when = term.when
        if when.begin + when.warmup >= when.end:
            problem = f"plus warmup = {when.warmup} is not before end = {when.end}"
            yield Fault(f"loss.{name}.when.begin", when.begin, problem)


def one_label_is_unmixed(loss: Losses, mix: Mix) -> Iterator[Fault]:
    """Check that images are not mixed if a loss term cannot be computed for mixed images.

    Such a term reads one class per sample, or identifies each image by its index.
    """
    for name, term in loss.terms().items():
        reads = {
            "one label": "reads one class per sample, but {} makes several of them",
            "sample index": "knows each image by its index, but {} mixes several images into one",
        }
        for need in reads.keys() & term.needs:
            for way in mix.ways():
                problem = f"{reads[need]}; type --set mix.{way}=false or --set loss.{name}=false"
                yield Fault(f"loss.{name}", None, problem, against=f"mix.{way}")


def pairs_are_mixed(loss: Losses, mix: Mix) -> Iterator[Fault]:
    """Check that images are mixed in pairs if a loss term mixes the teacher's logits of two images.

    Mixup and CutMix mix two images, RICAP four.
    """
    for name, term in loss.terms().items():
        if "pair" not in term.needs:
            continue
        if not mix.ways():
            problem = "mixes the teacher's logits as the images are mixed, and none are; type "
            yield Fault(f"loss.{name}", None, problem + "--set mix.cutmix.prob=0.5")
        if mix.ricap is not None:
            problem = "mixes the logits of two images, but {} mixes four; type "
            remedy = "--set mix.ricap=false"
            yield Fault(f"loss.{name}", None, problem + remedy, against="mix.ricap")


def maps_are_live(loss: Losses, cache: Cache) -> Iterator[Fault]:
    """Check that no teacher cache is used if a loss term reads the teacher's feature maps.

    The cache contains logits only: a map of 640 channels of 8x8 would take 82 kB per sample and
    view.
    """
    for name, term in loss.terms().items():
        if "live teacher" in term.needs:
            problem = "reads the teacher's maps, but {} caches only its logits; type "
            remedy = f"--set cache=false or --set loss.{name}=false"
            yield Fault(f"loss.{name}", None, problem + remedy, against="cache")


def maps_are_of_one_teacher(loss: Losses, teacher: Teacher) -> Iterator[Fault]:
    """Check that terms that read feature maps have a single teacher, without mirroring.

    Several teachers, or an image and its mirror image, are averaged in their logits only.
    """
    combined = {
        "mirror": ("false", "means two forwards, whose maps are not averaged", teacher.mirror),
        "draw": ("all", "means several teachers", teacher.draw == "one"),
        "weights": ("[]", "means several teachers", bool(teacher.weights)),
    }
    for name, term in loss.terms().items():
        if "live teacher" not in term.needs:
            continue
        for key, (default, means, is_set) in combined.items():
            if is_set:
                problem = f"reads the maps of one teacher, but {{}} {means}; type "
                remedy = f"--set teacher.{key}={default} or --set loss.{name}=false"
                yield Fault(f"loss.{name}", None, problem + remedy, against=f"teacher.{key}")


def student_taps_exist(loss: Losses, student: Student) -> Iterator[Fault]:
    """Check that every feature map (tap) of the student that a loss term reads exists."""
    try:
        described = describe(student)
    except UserError:
        return  # student_design_is_valid reports it
    if described is None:
        return  # its taps are known when it is built
    allowed = described.taps
    listed = f"; allowed: {', '.join(allowed)}"  # by the first fault only
    for name, term in loss.terms().items():
        for key, tap in taps(term, "student"):
            if tap not in allowed and not is_chosen_later(term, key, tap):
                hint = (
                    "; the student has no projector: type --set student.projector_width=, "
                    "the teacher's width"
                    if tap == "projector" and is_described_by_design(student)
                    else did_you_mean(*get_close_matches(tap, allowed, n=1))
                )
                problem = f"is not a feature map of the student{listed}{hint}"
                yield Fault(f"loss.{name}.{key}", tap, problem)
                listed = ""


def maps_have_positions(loss: Losses) -> Iterator[Fault]:
    """Check that loss terms that compare positions of feature maps do not read pooled features."""
    for name in MAPS_ALONE & loss.terms().keys():
        term = loss.terms()[name]
        for key, tap in (*taps(term, "student"), *taps(term, "teacher")):
            if tap == "features":
                problem = (
                    "is pooled, and this term reads positions of a map; allowed: one of the maps"
                )
                yield Fault(f"loss.{name}.{key}", tap, problem)


def taps_are_pairs(loss: Losses) -> Iterator[Fault]:
    """Check that each loss term reads as many feature maps of the teacher as of the student."""
    for name, term in loss.terms().items():
        of_student, of_teacher = list(taps(term, "student")), list(taps(term, "teacher"))
        if len(of_student) != len(of_teacher):
            problem = (
                f"has {len(of_student)} maps, and loss.{name}.teacher_taps has "
                f"{len(of_teacher)}; allowed: the same number in both"
            )
            yield Fault(f"loss.{name}.student_taps", [tap for _, tap in of_student], problem)


def one_map_or_several(loss: Losses) -> Iterator[Fault]:
    """Check that a loss term with a list of feature maps does not name a single one as well.

    It would not be read. A single map at its default was not set by the user, or has no effect.
    """
    for name, term in loss.terms().items():
        for one in ("student_tap", "teacher_tap"):
            several = f"{one}s"
            tap, field = getattr(term, one, None), type(term).model_fields.get(one)
            if field and tap != field.default and getattr(term, several, None) is not None:
                problem = "has no effect beside {}; remove one of the two"
                yield Fault(f"loss.{name}.{one}", tap, problem, against=f"loss.{name}.{several}")


def ranges_are_ascending(augment: Augment) -> Iterator[Fault]:
    """Check that the smaller end of each augmentation range comes first."""
    for key, span in {
        "erase.area": augment.erase and augment.erase.area,
        "erase.ratio": augment.erase and augment.erase.ratio,
        "affine.scale": augment.affine and augment.affine.scale,
    }.items():
        if span and span[0] > span[1]:
            yield Fault(f"augment.{key}", span, "is out of order; allowed: the smaller first")


def optimizer_takes_its_arguments(optim: Optim) -> Iterator[Fault]:
    """Check that `momentum` is above 0 for Nesterov's SGD, and that `betas` is absent for Adan.

    `betas` has two values, and Adan has three of its own.
    """
    if optim.name == "sgd" and optim.momentum == 0:
        problem = "cannot be used with sgd, which is Nesterov's; type --set optim.name=momentum"
        yield Fault("optim.momentum", optim.momentum, problem)
    if optim.name == "adan" and optim.betas is not None:
        problem = (
            "has two values, but adan has three of its own; remove it, or use another optimizer"
        )
        yield Fault("optim.betas", list(optim.betas), problem)


def epochs_or_minutes(train: Train) -> Iterator[Fault]:
    """Check that exactly one of `epochs` and `minutes` sets the length of the training."""
    if train.epochs is None and train.minutes is None:
        problem = "is missing; allowed: a whole number (at least 1), or train.minutes instead"
        yield Fault("train.epochs", None, problem)
    if train.epochs is not None and train.minutes is not None:
        problem = f"and train.epochs = {train.epochs} exclude each other; give one of them"
        yield Fault("train.minutes", train.minutes, problem)


def resolution_rises(train: Train, data: Data) -> Iterator[Fault]:
    """Check the progressive-resizing schedule.

    The first image size must start at fraction 0 of the training, and fractions and sizes must
    increase, up to the size of the images.
    """
    if train.resolution is None:
        return
    key, shown = "train.resolution", [list(stage) for stage in train.resolution]
    (first_fraction, size), *_ = train.resolution
    if first_fraction != 0:
        problem = "has no image size for the beginning; the first fraction must be 0: "
        yield Fault(key, shown, problem + f"[0.0, {size}]")
    if (largest := max(size for _, size in train.resolution)) > data.image_size:
        problem = f"has size {largest}, and the images have {{}} = {data.image_size}; type "
        yield Fault(key, shown, problem + f"--set data.size={largest}", against="data.size")
    for (fraction, size), (next_fraction, next_size) in pairwise(train.resolution):
        if next_fraction <= fraction:
            problem = f"has fraction {next_fraction:g} after {fraction:g}; fractions must increase"
            yield Fault(key, shown, problem)
        if next_size <= size:
            problem = f"has size {next_size} after {size}; sizes must increase"
            yield Fault(key, shown, problem)


def maps_fit_every_side(student: Student, train: Train, data: Data) -> Iterator[Fault]:
    """Check that a residual student accepts every image size in `train.resolution`.

    Its maps and its pooling window must fit, and it must have as many features as at full size.
    """
    if train.resolution is None or not is_described_by_design(student):
        return
    spec = student.spec()
    try:
        described = describe(student, size=data.image_size)
    except UserError:
        return  # student_design_is_valid reports it
    assert isinstance(described, Design)
    full = data.image_size
    sizes = sorted({*range(SMALLEST, full, 2), full})
    fitting = [size for size in sizes if _fits(spec, size, described.features)]
    smallest = next(s for s in sizes if all(size in fitting for size in sizes if size >= s))
    refused = [str(size) for _, size in train.resolution if size < smallest]
    if refused:
        problem = (
            f"has size {' and '.join(refused)}, too small for this student's maps or its pool; "
            f"the smallest size that fits is {smallest}"
        )
        yield Fault("train.resolution", [list(stage) for stage in train.resolution], problem)


def _fits(spec: dict[str, Any], size: int, features: int) -> bool:
    """Whether a design accepts images of size x size pixels and has `features` features for them.

    `spec`: the keyword arguments of `Design.of`.
    """
    try:
        return Design.of(**spec, image_size=size).features == features
    except UserError:
        return False


def decay_or_half_life(ema: Ema) -> Iterator[Fault]:
    """Check that at most one of `decay` and `half_life` is set."""
    if ema.decay is not None and ema.half_life is not None:
        problem = f"and ema.decay = {ema.decay} exclude each other; give one of them"
        yield Fault("ema.half_life", ema.half_life, problem)


def arguments_have_effect(optim: Optim) -> Iterator[Fault]:
    """Check that no argument is set that the optimizer or the schedule ignores."""
    for key, without in (("betas", WITHOUT_BETAS), ("eps", WITHOUT_EPS)):
        value = getattr(optim, key)
        if value is not None and optim.name in without:
            shown = list(value) if key == "betas" else value
            problem = f"has no effect if {{}} is {optim.name}; remove it"
            yield Fault(f"optim.{key}", shown, problem, against="optim.name")
    if optim.schedule == "one_cycle" and optim.warmup_epochs > 0:
        problem = "has no effect if {} is one_cycle, which has its own warmup; type "
        problem += "--set optim.warmup_epochs=0"
        yield Fault("optim.warmup_epochs", optim.warmup_epochs, problem, against="optim.schedule")
    if optim.schedule == "constant" and optim.min_lr > 0:
        problem = "has no effect if {} is constant; type --set optim.min_lr=0"
        yield Fault("optim.min_lr", optim.min_lr, problem, against="optim.schedule")


def milestones_are_epochs_of_the_training(optim: Optim, train: Train) -> Iterator[Fault]:
    """Check the milestones of the learning rate.

    They must be ascending and before the last epoch, so that each has an effect. They are set if
    and only if the schedule is "milestones", which needs a number of epochs.
    """
    key, shown, epochs = "optim.milestones", list(optim.milestones), train.epochs
    if optim.schedule != "milestones":
        if shown:
            problem = f"has no effect if {{}} is {optim.schedule}; type --set {key}=[] or "
            problem += "--set optim.schedule=milestones"
            yield Fault(key, shown, problem, against="optim.schedule")
        return
    if train.minutes is not None and epochs is None:
        problem = "counts epochs, and {} sets a time; type --set train.epochs=240, or "
        problem += f"--set optim.schedule=cosine --set {key}=[]"
        yield Fault("optim.schedule", optim.schedule, problem, against="train.minutes")
    if not shown:
        problem = f"is missing, and optim.schedule is milestones; {_milestones_option(epochs)}"
        yield Fault(key, None, problem)
    elif any(after <= before for before, after in pairwise(shown)):
        problem = "is not ascending; each epoch must be larger than the one before"
        yield Fault(key, shown, problem)
    elif epochs is not None and shown[-1] >= epochs:
        late = next(milestone for milestone in shown if milestone >= epochs)
        problem = f"has {late}, and {{}} is {epochs}; after its last epoch the rate has no effect; "
        yield Fault(key, shown, problem + _milestones_option(epochs), against="train.epochs")


def suggested_milestones(epochs: int) -> list[int]:
    """Return milestones for so many epochs, in the proportions of 150, 180 and 210 of 240.

    Empty for one epoch.
    """
    return sorted({epochs * share // 8 for share in (5, 6, 7)} - {0})


def _milestones_option(epochs: int | None) -> str:
    """Return what to type for milestones that fit, or for none if there is only one epoch."""
    milestones = ",".join(map(str, suggested_milestones(epochs or 240)))
    constant = "" if milestones else "optim.schedule=constant --set "
    return f"type --set {constant}optim.milestones=[{milestones}]"


def floor_is_below_the_peak(optim: Optim) -> Iterator[Fault]:
    """Check that the lowest learning rate is below the peak."""
    if optim.min_lr >= optim.lr and optim.schedule != "constant":  # constant ignores min_lr
        problem = f"is not below {{}}, which is {optim.lr:g}; type "
        problem += f"--set optim.min_lr={optim.lr / 100:g}, or 0 for none"
        yield Fault("optim.min_lr", optim.min_lr, problem, against="optim.lr")


def warmup_ends(optim: Optim, train: Train) -> Iterator[Fault]:
    """Check that the warmup of the learning rate ends before the training does."""
    if train.epochs is not None and optim.warmup_epochs >= train.epochs:
        problem = f"does not end before train.epochs = {train.epochs}; type for example "
        problem += f"--set optim.warmup_epochs={train.epochs / 10:g}"
        yield Fault("optim.warmup_epochs", optim.warmup_epochs, problem)


def student_design_is_valid(student: Student, data: Data) -> Iterator[Fault]:
    """Check that `Design.of` accepts the keys of a residual network in [student]."""
    yield from _residual_faults("student", student, data.image_size)


def resnet_teacher_is_valid(teacher: Teacher, data: Data) -> Iterator[Fault]:
    """Check that `Design.of` accepts the keys of [teacher] if its network is "resnet".

    A teacher may have any number of parameters.
    """
    yield from _residual_faults("teacher", teacher, data.image_size)


def _residual_faults(name_of_table: str, table: Student | Teacher, size: int) -> Iterator[Fault]:
    if table.network != "resnet":
        return
    has_width = table.width is not None or table.channels is not None
    given = {"stages": table.stages, "blocks": table.blocks, "width": has_width}
    missing = [name for name, value in given.items() if not value]
    for name in missing:
        problem = 'is missing, and network = "resnet" needs it; type '
        problem += f"--set {name_of_table}.{name}={EXAMPLE[name]}"
        yield Fault(f"{name_of_table}.{name}", None, problem)
    if not missing:
        yield from _design_faults(name_of_table, table, size)


def _design_faults(name_of_table: str, table: ResNetKeys, size: int) -> Iterator[Fault]:
    spec = table.spec()
    try:
        Design.of(**spec, image_size=size)
    except UserError as error:
        for line in map(str.strip, str(error).splitlines()[1:]):
            name = line.split(" = ")[0]
            if name in spec:
                problem = line.removeprefix(f"{name} = {spec[name]!r} ")
                yield Fault(f"{name_of_table}.{name}", spec[name], problem)
            else:
                yield Fault(name_of_table, None, f"is incomplete: {line}")


def within_budget(student: Student, data: Data) -> Iterator[Fault]:
    """Check that the student has strictly fewer parameters than `max_params`, for 10 classes."""
    try:
        excess = budget_fault(student, size=data.image_size)
    except UserError:
        return  # student_design_is_valid reports it
    if excess:
        yield Fault("student.max_params", student.max_params, f"is exceeded: {excess}")


def did_you_mean(near: str | None = None) -> str:
    """Return a suggestion to end a fault's message with; empty without `near`."""
    return f"; did you mean {near}?" if near else ""


RULES: tuple[Rule, ...] = (
    one_mix_a_sample,
    teacher_network_is_known,
    student_network_is_known,
    teacher_keys_fit,
    student_keys_fit,
    some_term_is_active,
    warmup_ends_before_term,
    optimizer_takes_its_arguments,
    arguments_have_effect,
    floor_is_below_the_peak,
    epochs_or_minutes,
    resolution_rises,
    maps_fit_every_side,
    decay_or_half_life,
    warmup_ends,
    milestones_are_epochs_of_the_training,
    student_design_is_valid,
    resnet_teacher_is_valid,
    student_taps_exist,
    maps_have_positions,
    taps_are_pairs,
    one_map_or_several,
    one_label_is_unmixed,
    pairs_are_mixed,
    maps_are_live,
    maps_are_of_one_teacher,
    ranges_are_ascending,
    within_budget,
)
