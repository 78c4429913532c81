"""Group runs that differ only in their seeds, and test differences between groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile

import numpy as np

from distill import statistics
from distill.format import counted
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.recipe.schema import Train
from distill.runs.record import RunRecord
from distill.runs.run_folder import NOT_FINGERPRINTED
from distill.statistics import Interval, MeanAndInterval

Seeds = tuple[int, int]  # train.seed, data.seed


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone, one a seed. `again`: those whose seeds were there."""

    name: str
    records: tuple[RunRecord, ...]
    duplicates: tuple[RunRecord, ...] = ()

    @property
    def by_seeds(self) -> dict[Seeds, RunRecord]:
        return {record.seeds: record for record in self.records}

    @property
    def tested(self) -> list[float]:
        """The accuracies on the test split of those that are finished."""
        return [top1 for record in self.records if (top1 := record.test_metric("top1")) is not None]

    def spread(self, measure: str) -> MeanAndInterval | None:
        """Of a measure on the test split; None where no run is finished."""
        values = [
            value for each in self.records if (value := each.test_metric(measure)) is not None
        ]
        return statistics.mean_and_interval(values) if values else None


@dataclass(frozen=True)
class GroupDifference:
    """How far group `a` is from group `b` in accuracy on the test split.

    `difference` a − b, `p` of "there is none"; None where it is not known, and `how` says why.
    """

    a: str
    b: str
    method: str
    difference: float | None = None
    interval: Interval | None = None
    p: float | None = None


def groups(records: Sequence[RunRecord]) -> list[Group]:
    """The runs by what they are beside their seeds, in the order in which they were given."""
    kinds: dict[tuple[str, str], list[RunRecord]] = {}
    tested: dict[str, list[str]] = {}  # the test splits of each kind, the first one first
    for record in records:
        tested.setdefault(_common_settings(record), []).extend(filter(None, [record.test]))
    for record in records:
        kind = _common_settings(record)
        # A run that does not name its test split is taken to have that of the others.
        test = record.test or next(iter(tested[kind]), "")
        kinds.setdefault((kind, test), []).append(record)
    named = _names(list(kinds.values()))
    return [_group(name, kind) for name, kind in zip(named, kinds.values(), strict=True)]


def without_seeds(record: RunRecord) -> Recipe:
    """The recipe without what may differ in a group: seeds, habits, where the images lie, and a
    teacher that nobody asks.
    """
    recipe = record.recipe
    if record.role == "student" and not recipes.has_teacher(recipe):
        recipe = recipe.model_copy(update={"teacher": None})
    habits = {key.partition(".")[2] for key in NOT_FINGERPRINTED}
    spoken = {name: Train.model_fields[name].default for name in habits}
    train = recipe.train.model_copy(update=spoken | {"seed": 0})
    data = recipe.data.model_copy(update={"seed": 0, "source": ""})
    return recipe.model_copy(update={"train": train, "data": data})


def group_differences(found: Sequence[Group]) -> list[GroupDifference]:
    """Of each pair of groups, in order."""
    return [group_difference(a, b) for a, b in combinations(found, 2)]


def group_difference(a: Group, b: Group) -> GroupDifference:
    """Student's t on the common seeds where there are two or more; else McNemar's test, which
    speaks of two networks and not of their recipes.
    """
    common = [
        (ours, theirs)
        for seeds, ours in a.by_seeds.items()
        if (theirs := b.by_seeds.get(seeds)) is not None
        if ours.is_finished and theirs.is_finished
    ]
    if len({record.test for pair in common for record in pair} - {""}) > 1:
        return GroupDifference(a.name, b.name, "they were tested on other images")
    if len(common) > 1:
        sides = (Group(a.name, ours).tested for ours in zip(*common, strict=True))
        known, p = statistics.paired_difference(*sides)
        how = f"Student's t on {len(common)} common seeds"
        return GroupDifference(a.name, b.name, how, known.mean, known.interval, p)
    if not common and len(a.records) == len(b.records) == 1:
        common = [(a.records[0], b.records[0])]
    return _between_two(a, b, common)


def _between_two(
    a: Group, b: Group, common: Sequence[tuple[RunRecord, RunRecord]]
) -> GroupDifference:
    """By the images that only one of two networks has right."""
    if not common:
        return GroupDifference(a.name, b.name, "no common seeds, nothing is paired")
    (one, other), *_ = common
    ours, theirs = one.predictions, other.predictions
    if ours is None or theirs is None:
        return GroupDifference(a.name, b.name, "the predictions of one are not there")
    is_known = one.test and other.test
    if (is_known and one.test != other.test) or not np.array_equal(ours.labels, theirs.labels):
        return GroupDifference(a.name, b.name, "they were tested on other images")
    pairs = statistics.count_pairs(ours.is_right, theirs.is_right)
    how = (
        "McNemar, a run each: right in the first alone "
        f"{counted(pairs.only_a, 'image')}, in the second {pairs.only_b:,}"
    )
    difference = (pairs.only_a - pairs.only_b) / len(ours.labels)
    return GroupDifference(a.name, b.name, how, difference, None, pairs.p)


def _common_settings(record: RunRecord) -> str:
    """What the runs of a group have in common, beside the test split."""
    return f"{recipes.fingerprint(without_seeds(record))} {record.data} {record.role}"


def _group(name: str, records: Sequence[RunRecord]) -> Group:
    first: dict[Seeds, RunRecord] = {}
    for record in records:
        first.setdefault(record.seeds, record)
    again = tuple(record for record in records if first[record.seeds] is not record)
    return Group(name, tuple(first.values()), again)


def _names(kinds: Sequence[Sequence[RunRecord]]) -> list[str]:
    """What the names of a group's folders begin with; with a number where two begin alike."""
    begins = [_common_prefix([record.name for record in kind]) for kind in kinds]
    return [
        name if begins.count(name) == 1 else f"{name} ({begins[: i + 1].count(name)})"
        for i, name in enumerate(begins)
    ]


def _common_prefix(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in alike).rstrip("0123456789-_. ") or names[0]
