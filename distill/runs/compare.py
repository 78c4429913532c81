"""Compare two finished runs on the same test images.

Everything is computed from the answers that the runs left in evaluation.npz. What a difference on
these images says is about these two networks: another seed of either recipe is another network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.errors import UserError
from distill.evaluation import saved_predictions
from distill.evaluation.saved_predictions import Predictions
from distill.events import measure_name
from distill.format import describe_class_difference, points
from distill.recipe import recipes
from distill.runs import run_folder
from distill.runs.run_folder import RunFolder, open_finished
from distill.runs.summary import summary_row as figures
from distill.statistics import SIGNIFICANT, Interval, bootstrap, count_pairs, wilson


@dataclass(frozen=True)
class ComparedRun:
    """One of the two, in figures: shares 0..1, nll in nats."""

    run: str
    recipe: str
    network: str
    parameters: int
    top1_test: float
    top1_test_interval: Interval  # Wilson's
    nll_test: float
    nll_test_interval: Interval  # bootstrap
    ece_test: float
    top1_val: float | None  # of the kept weights, on the held-out part
    elapsed_s: float
    weights: str  # sha256


@dataclass(frozen=True)
class ClassDifference:
    """One class: how many images it has, and who is right on how many of them."""

    name: str
    n: int
    right_a: int
    right_b: int
    only_a: int  # right by A alone
    only_b: int


@dataclass(frozen=True)
class Comparison:
    """B against A on N images; a difference is B − A."""

    a: ComparedRun
    b: ComparedRun
    n: int
    only_a: int  # images that A alone has right
    only_b: int
    both_right: int
    both_wrong: int
    difference: float  # of the accuracies
    difference_interval: Interval  # paired bootstrap: the same images of both
    p: float  # McNemar's exact test of "both are right equally often"
    agreement: float  # share of images with the same answer, right or wrong
    agreement_interval: Interval  # Wilson's
    classes: tuple[ClassDifference, ...]
    recipes: tuple[str, ...]  # `optim.lr: 0.1 -> 0.2`
    says: str  # what is shown and what is not


def compare(path_a: Path, path_b: Path) -> Comparison:
    """Run B against run A.

    Raises UserError where one is not finished, has lost its answers or figures, or was measured on
    other images.
    """
    return _compare(open_finished(path_a), open_finished(path_b))


def _compare(a: RunFolder, b: RunFolder) -> Comparison:
    ours, theirs = _predictions(a), _predictions(b)
    _check_same_images(a, b, ours, theirs)
    right_a, right_b, n = ours.is_right, theirs.is_right, len(ours.labels)
    pairs = count_pairs(right_a, right_b)
    gain = right_b.astype(float) - right_a.astype(float)
    same = int((ours.logits.argmax(axis=1) == theirs.logits.argmax(axis=1)).sum())
    interval = bootstrap(_mean, gain)
    sides = _describe(a, ours), _describe(b, theirs)
    return Comparison(
        a=sides[0],
        b=sides[1],
        n=n,
        only_a=pairs.only_a,
        only_b=pairs.only_b,
        both_right=pairs.both,
        both_wrong=pairs.neither,
        difference=float(gain.mean()),
        difference_interval=interval,
        p=pairs.p,
        agreement=same / n,
        agreement_interval=wilson(same, n),
        classes=_by_class(a, ours, theirs),
        recipes=tuple(_differences(a, b)),
        says=" ".join([*_findings(sides, n, interval, pairs.p), *_limitations(a, b)]),
    )


def _differences(a: RunFolder, b: RunFolder) -> Iterator[str]:
    """What differs between the recipes. Of students not the network in [teacher], which describes
    nobody: who taught is `teacher.runs`, and how, TEACHING.
    """
    are_students = {a.result()["role"], b.result()["role"]} == {"student"}
    for line in recipes.differences(recipes.read(a.recipe), recipes.read(b.recipe)):
        key = line.partition(":")[0]
        table, _, name = key.partition(".")
        if not (are_students and table == "teacher" and name not in recipes.TEACHING):
            yield line


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def _predictions(run: RunFolder) -> Predictions:
    run_folder.check_is_tested(run)
    found = saved_predictions.read_run(run)
    if found is None:
        raise UserError(
            f"{run.evaluation} is not there: without its answers a run cannot be compared.\n"
            "Bring the file back, or train the run again in another --out."
        )
    return found


def _check_same_images(a: RunFolder, b: RunFolder, ours: Predictions, theirs: Predictions) -> None:
    """The fingerprints of the test split, labels and class names say whether both were tested on
    the same images.
    """
    advice = "Two runs are compared on the same test split; choose two of one data source."
    names = [run.result()["class_names"] for run in (a, b)]
    found = ""
    apart = run_folder.test_split_differences([a.result(), b.result()])
    if names[0] != names[1]:
        found = "other classes: " + " / ".join(describe_class_difference(*names))
    elif len(ours.labels) != len(theirs.labels):
        found = f"{len(ours.labels):,} / {len(theirs.labels):,} images"
    elif (ours.labels != theirs.labels).any():
        k = int((ours.labels != theirs.labels).sum())
        found = f"other labels, {k:,} of {len(ours.labels):,}, or the same in another order"
    elif apart:
        verb = "differs" if len(apart) == 1 and not apart[0].endswith("s") else "differ"
        found = f"other images: their {' and '.join(apart)} {verb}"
    if found:
        raise UserError(f"{a.path} and {b.path} were measured on {found}.\n{advice}")


def _describe(run: RunFolder, answers: Predictions) -> ComparedRun:
    result, row = run.result(), figures("", run)
    nll = saved_predictions.nll(answers.logits, answers.labels)
    right = int(answers.is_right.sum())
    return ComparedRun(
        run=str(run.path),
        recipe=result["recipe"],
        network=row.network,
        parameters=result["parameters"],
        top1_test=right / len(nll),
        top1_test_interval=wilson(right, len(nll)),
        nll_test=float(nll.mean()),
        nll_test_interval=bootstrap(_mean, nll),
        ece_test=result["metrics"][measure_name("ece", "test")],
        top1_val=row.top1_val,
        elapsed_s=result["elapsed_s"],
        weights=result["weights"],
    )


def _by_class(a: RunFolder, ours: Predictions, theirs: Predictions) -> tuple[ClassDifference, ...]:
    right_a, right_b = ours.is_right, theirs.is_right
    rows = []
    for label, name in enumerate(a.result()["class_names"]):
        here = ours.labels == label
        counts = (here, here & right_a, here & right_b)
        alone = (here & right_a & ~right_b, here & right_b & ~right_a)
        rows.append(ClassDifference(name, *(int(which.sum()) for which in (*counts, *alone))))
    return tuple(rows)


def _findings(
    sides: tuple[ComparedRun, ComparedRun], n: int, interval: Interval, p: float
) -> Iterator[str]:
    """The finding in words, with its limits."""
    a, b = sides
    low, high = map(points, interval)
    if a.weights == b.weights:
        yield "Both hold the same weights: there is nothing to compare."
        return
    if p < SIGNIFICANT:
        better, worse = (a, b) if b.top1_test < a.top1_test else (b, a)
        yield (
            f"Shown: on images like these {n:,} the network of {better.run} is right more often "
            f"than that of {worse.run}; B − A is between {low} and {high} points."
        )
    else:
        yield (
            f"No difference is shown: these {n:,} images fit a B − A of anything between {low} and "
            f"{high} points."
        )
    yield (
        "Not shown: that one recipe is better. One run of each says nothing about another seed; "
        "for that, train several of each."
    )


def _limitations(a: RunFolder, b: RunFolder) -> Iterator[str]:
    """What the results do not say of the images."""
    results = [run.result() for run in (a, b)]
    unnamed = run_folder.test_split_unnamed(results)
    yield from unnamed
    if results[0]["data"]["fingerprint"] == results[1]["data"]["fingerprint"]:
        return
    if unnamed:
        yield (
            "Their training images differ, and so perhaps those they were tested on: only the "
            "labels of these are known to be the same."
        )
    else:
        yield "Their training images differ; those they were tested on are the same."
