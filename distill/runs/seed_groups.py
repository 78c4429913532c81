"""Group runs that differ only in their seeds, and test differences between groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile

import numpy as np

from distill import statistics
from distill.format import counted
from distill.recipe import recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.recipe.recipes import Recipe
from distill.recipe.schema import LOGGING_AND_SAVING, Train
from distill.runs import run_folder
from distill.runs.check_runs_match import Seeds, distinct
from distill.runs.read_run_folder import RunRecord
from distill.statistics import Interval, MeanAndInterval


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds.

    `records` has one run per pair of seeds, `duplicates` the further runs with the same seeds or
    with the same weights, which are copies.
    """

    name: str
    records: tuple[RunRecord, ...]
    duplicates: tuple[RunRecord, ...] = ()

    @property
    def by_seeds(self) -> dict[Seeds, RunRecord]:
        return {record.seeds: record for record in self.records}

    @property
    def test_accuracies(self) -> list[float]:
        """The test accuracies of the finished runs."""
        return [top1 for record in self.records if (top1 := record.test_metric("top1")) is not None]

    def spread(self, measure: str) -> MeanAndInterval | None:
        """Return the mean and 95 % interval of a measure on the test split, over finished runs.

        `measure`: `top1`, `nll` or `ece`. None if no run is finished.
        """
        values = [
            value for record in self.records if (value := record.test_metric(measure)) is not None
        ]
        return statistics.mean_and_interval(values) if values else None


@dataclass(frozen=True)
class GroupDifference:
    """The difference between two groups in accuracy on the test split.

    `a`, `b`: the groups' names; `method`: the statistical test. `difference`: a − b, 0..1. `p`: the
    p-value of the null hypothesis of no difference. If the groups cannot be compared, both are None
    and `method` is the reason.
    """

    a: str
    b: str
    method: str
    difference: float | None = None
    interval: Interval | None = None
    p: float | None = None


def groups(records: Sequence[RunRecord]) -> list[Group]:
    """Group the runs that have the same settings except for their seeds, in the order given.

    The settings include the fingerprints of images, test split and teachers. A run without one (an
    unfinished run, or one of an earlier version) is assumed to have that of the first other run of
    the same settings.
    """
    members: dict[tuple[str, ...], list[RunRecord]] = {}
    known: dict[str, tuple[str, ...]] = {}  # fingerprints of test split and teachers, by settings
    for record in records:
        settings = _common_settings(record)
        pairs = zip(
            known.get(settings, ("", "")),
            (record.test_fingerprint, record.teacher_fingerprint),
            strict=True,
        )
        known[settings] = tuple(first or own for first, own in pairs)
    for record in records:
        settings = _common_settings(record)
        pairs = zip(
            (record.test_fingerprint, record.teacher_fingerprint), known[settings], strict=True
        )
        members.setdefault((settings, *(own or first for own, first in pairs)), []).append(record)
    names = _names(list(members.values()))
    return [_group(name, runs) for name, runs in zip(names, members.values(), strict=True)]


def without_seeds(record: RunRecord) -> Recipe:
    """Return a run's recipe without the keys that may differ in a group.

    These are the seeds, the keys on logging and saving, the path of the images and, if no loss term
    reads a teacher, the [teacher] table.
    """
    recipe = record.recipe
    if record.role == "student" and not recipes.has_teacher(recipe):
        recipe = recipe.model_copy(update={"teacher": None})
    defaults = {name: Train.model_fields[name].default for name in LOGGING_AND_SAVING}
    train = recipe.train.model_copy(update=defaults | {"seed": 0})
    data = recipe.data.model_copy(update={"seed": 0, "source": ""})
    return recipe.model_copy(update={"train": train, "data": data})


def group_differences(groups: Sequence[Group]) -> list[GroupDifference]:
    """Return the difference between the groups of each pair, in order."""
    return [group_difference(a, b) for a, b in combinations(groups, 2)]


def group_difference(a: Group, b: Group) -> GroupDifference:
    """Test whether two groups differ in test accuracy.

    With two or more common seeds, the test is Student's t on the pairs of runs with the same seeds.
    With one, or if each group has a single run, it is McNemar's test on one run of each group,
    which compares two networks and not their recipes.
    """
    common = [
        (of_a, of_b)
        for seeds, of_a in a.by_seeds.items()
        if (of_b := b.by_seeds.get(seeds)) is not None
        if of_a.is_finished and of_b.is_finished
    ]
    if len({record.test_fingerprint for pair in common for record in pair} - {""}) > 1:
        return GroupDifference(a.name, b.name, "they were tested on different images")
    if len(common) > 1:
        accuracies = (Group(a.name, runs).test_accuracies for runs in zip(*common, strict=True))
        difference, p = statistics.paired_difference(*accuracies)
        method = f"Student's t on {len(common)} common seeds"
        return GroupDifference(a.name, b.name, method, difference.mean, difference.interval, p)
    if not common and len(a.records) == len(b.records) == 1:
        common = [(a.records[0], b.records[0])]
    return _between_two(a, b, common)


def _between_two(
    a: Group, b: Group, common: Sequence[tuple[RunRecord, RunRecord]]
) -> GroupDifference:
    """Compare the first pair of runs by McNemar's test on the images that only one gets right."""
    if not common:
        return GroupDifference(a.name, b.name, "no common seeds, so no pairs")
    (run_a, run_b), *_ = common
    of_a, of_b = run_a.predictions, run_b.predictions
    if of_a is None or of_b is None:
        return GroupDifference(a.name, b.name, "the predictions of one are missing")
    is_known = run_a.test_fingerprint and run_b.test_fingerprint
    if (is_known and run_a.test_fingerprint != run_b.test_fingerprint) or not np.array_equal(
        of_a.labels, of_b.labels
    ):
        return GroupDifference(a.name, b.name, "they were tested on different images")
    pairs = statistics.count_pairs(of_a.is_correct, of_b.is_correct)
    method = (
        "McNemar's test, one run each: correct in the first only "
        f"{counted(pairs.only_a, 'image')}, in the second only {pairs.only_b:,}"
    )
    difference = (pairs.only_a - pairs.only_b) / len(of_a.labels)
    return GroupDifference(a.name, b.name, method, difference, None, pairs.p)


def _test_and_teacher(record: RunRecord) -> tuple[str, str]:
    """Return the fingerprints of a run's test split and teachers, "" for those it has not."""
    return record.test_fingerprint, record.teacher_fingerprint


def _common_settings(record: RunRecord) -> str:
    """Return a text that is the same for all runs of a group.

    It contains the fingerprints of recipe and data, the role, and the step at which a run was
    finished early, but not the fingerprints of test split and teachers.
    """
    settings = (
        f"{recipe_fingerprint(without_seeds(record))} {record.data_fingerprint} {record.role}"
    )
    early = run_folder.early_end(record.result)
    return f"{settings} {early}" if early else settings


def _group(name: str, records: Sequence[RunRecord]) -> Group:
    first = distinct((record, record.seeds, record.result.get("weights")) for record in records)
    kept = {id(record) for record in first}
    return Group(name, tuple(first), tuple(each for each in records if id(each) not in kept))


def _names(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Return a name for each group: the common prefix of its folder names.

    If two groups have the same prefix, a number is added.
    """
    prefixes = [_common_prefix([record.name for record in records]) for records in groups]
    return [
        name if prefixes.count(name) == 1 else f"{name} ({prefixes[: i + 1].count(name)})"
        for i, name in enumerate(prefixes)
    ]


def _common_prefix(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in alike).rstrip("0123456789-_. ") or names[0]
