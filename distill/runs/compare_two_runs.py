"""Compare two finished runs on the same test images.

Everything is computed from the predictions in the runs' evaluation.npz, or from predictions that
were just computed again. A difference found here
concerns these two trained networks, not their recipes: other seeds would give other networks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill import metrics
from distill.errors import UserError
from distill.events import Split, measure_name
from distill.format import counted, describe_class_difference, points
from distill.recipe import compare_recipes, recipes
from distill.runs import check_runs_match, read_predictions, run_folder
from distill.runs.read_predictions import Predictions
from distill.runs.run_folder import RunFolder, open_finished
from distill.runs.teacher_student_summary import summary_row
from distill.statistics import SIGNIFICANT, Interval, bootstrap, count_pairs, wilson


@dataclass(frozen=True)
class ComparedRun:
    """The measures of one of the two compared runs: accuracies and ece in 0..1, nll in nats."""

    run: str
    recipe: str
    network: str
    parameters: int
    top1_test: float
    top1_test_interval: Interval  # Wilson's
    nll_test: float
    nll_test_interval: Interval  # bootstrap
    ece_test: float
    top1_val: float | None  # of the final weights, on the held-out images
    val_split: Split  # "val_ema" if the final weights are averaged
    elapsed_s: float  # of training
    total_s: float | None  # with preparation and test; None for runs of old versions
    weights: str  # sha256


@dataclass(frozen=True)
class ClassDifference:
    """Counts of one class: its test images, and those that each run predicts correctly."""

    name: str
    n: int
    right_a: int
    right_b: int
    only_a: int  # images that run A predicts correctly and run B does not
    only_b: int


@dataclass(frozen=True)
class Comparison:
    """The comparison of run B with run A on n test images; every difference is B − A."""

    a: ComparedRun
    b: ComparedRun
    n: int
    only_a: int  # images that run A predicts correctly and run B does not
    only_b: int
    both_right: int
    both_wrong: int
    difference: float  # of the accuracies
    difference_interval: Interval  # paired bootstrap: each resample has the same images of both
    p: float  # p-value of McNemar's exact test of the hypothesis of equal accuracy
    agreement: float  # fraction of images with the same prediction, correct or not
    agreement_interval: Interval  # Wilson's
    classes: tuple[ClassDifference, ...]
    recipes: tuple[str, ...]  # the keys that differ, A -> B: `optim.lr: 0.1 -> 0.2`
    says: str  # the findings and limitations


def compare(
    path_a: Path, path_b: Path, measured: Mapping[Path, Predictions] | None = None
) -> Comparison:
    """Compare the finished run in `path_b` (B) with the one in `path_a` (A).

    `measured`: by path, predictions that were just computed again, instead of the saved ones.

    Raises UserError if a run is not finished, if its predictions or measures are missing, or if the
    two were measured on different images.
    """
    a, b = open_finished(path_a), open_finished(path_b)
    saved = {run.path: _predictions(run) for run in (a, b)}
    return _compare(a, b, saved | dict(measured or {}))


def _compare(a: RunFolder, b: RunFolder, predictions: Mapping[Path, Predictions]) -> Comparison:
    of_a, of_b = predictions[a.path], predictions[b.path]
    _check_same_images(a, b, of_a, of_b)
    right_a, right_b, n = of_a.is_correct, of_b.is_correct, len(of_a.labels)
    pairs = count_pairs(right_a, right_b)
    gain = right_b.astype(float) - right_a.astype(float)
    same = int(metrics.is_same_prediction(of_a.logits, of_b.logits).sum())
    interval = bootstrap(_mean, gain)
    runs = _describe(a, of_a), _describe(b, of_b)
    return Comparison(
        a=runs[0],
        b=runs[1],
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
        classes=_by_class(a, of_a, of_b),
        recipes=tuple(_differences(a, b)),
        says=" ".join([*_findings(runs, n, interval, pairs.p), *_limitations(a, b)]),
    )


def _differences(a: RunFolder, b: RunFolder) -> list[str]:
    """List the differences between the recipes of two runs: `optim.lr: 0.1 -> 0.2`.

    Left out are keys that a run does not read (`compare_recipes.is_read`).
    """
    read = (
        compare_recipes.values_read(recipes.read(run.recipe), run.result()["role"])
        for run in (a, b)
    )
    return compare_recipes.differing(*read)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


def _predictions(run: RunFolder) -> Predictions:
    run_folder.check_is_tested(run)
    check_runs_match.check_recipe_of_result(run)
    predictions = read_predictions.read_run(run)
    if predictions is None:
        raise UserError(
            f"{run.evaluation} is missing: a run cannot be compared without its predictions.\n"
            "Restore the file, or train the run again in another --out."
        )
    return predictions


def _check_same_images(
    a: RunFolder, b: RunFolder, predictions_a: Predictions, predictions_b: Predictions
) -> None:
    """Raise UserError if two runs were tested on different images.

    Compares fingerprints of the test split, labels and class names.
    """
    advice = "Two runs are compared on the same test split; choose two of one data source."
    names = [run.result()["class_names"] for run in (a, b)]
    problem = ""
    differing = check_runs_match.test_split_differences([a.result(), b.result()])
    if names[0] != names[1]:
        problem = "other classes: " + " / ".join(describe_class_difference(*names))
    elif len(predictions_a.labels) != len(predictions_b.labels):
        n_a, n_b = len(predictions_a.labels), len(predictions_b.labels)
        problem = f"{n_a:,} / {counted(n_b, 'image')}"
    elif (predictions_a.labels != predictions_b.labels).any():
        n = int((predictions_a.labels != predictions_b.labels).sum())
        problem = (
            f"other labels, {n:,} of {len(predictions_a.labels):,}, or the same in another order"
        )
    elif differing:
        verb = "differs" if len(differing) == 1 and not differing[0].endswith("s") else "differ"
        problem = f"other images: their {' and '.join(differing)} {verb}"
    if problem:
        raise UserError(f"{a.path} and {b.path} were measured on {problem}.\n{advice}")


def _describe(run: RunFolder, predictions: Predictions) -> ComparedRun:
    result, row = run.result(), summary_row("", run)
    nll = metrics.nll(predictions.logits, predictions.labels)
    n_correct = int(predictions.is_correct.sum())
    return ComparedRun(
        run=str(run.path),
        recipe=result["recipe"],
        network=row.network,
        parameters=result["parameters"],
        top1_test=n_correct / len(nll),
        top1_test_interval=wilson(n_correct, len(nll)),
        nll_test=float(nll.mean()),
        nll_test_interval=bootstrap(_mean, nll),
        ece_test=result["metrics"][measure_name("ece", "test")],
        top1_val=row.top1_val,
        val_split=row.val_split,
        elapsed_s=result["elapsed_s"],
        total_s=row.total_s,
        weights=result["weights"],
    )


def _by_class(
    a: RunFolder, predictions_a: Predictions, predictions_b: Predictions
) -> tuple[ClassDifference, ...]:
    right_a, right_b = predictions_a.is_correct, predictions_b.is_correct
    rows = []
    for label, name in enumerate(a.result()["class_names"]):
        in_class = predictions_a.labels == label
        masks = (
            in_class,
            in_class & right_a,
            in_class & right_b,
            in_class & right_a & ~right_b,
            in_class & right_b & ~right_a,
        )
        rows.append(ClassDifference(name, *(int(mask.sum()) for mask in masks)))
    return tuple(rows)


def _findings(
    runs: tuple[ComparedRun, ComparedRun], n: int, interval: Interval, p: float
) -> Iterator[str]:
    """Yield sentences on what the comparison shows and what it does not."""
    a, b = runs
    low, high = map(points, interval)
    if a.weights == b.weights:
        yield "Both have the same weights: there is nothing to compare."
        return
    if p < SIGNIFICANT:
        better, worse = (a, b) if b.top1_test < a.top1_test else (b, a)
        yield (
            f"Shown: on images like {'this one' if n == 1 else f'these {n:,}'} the network of "
            f"{better.run} is correct more often than that of {worse.run}; B − A is between {low} "
            f"and {high} points."
        )
    else:
        yield (
            f"No difference is shown: with {'this' if n == 1 else 'these'} {counted(n, 'image')} "
            f"B − A may be anything between {low} and {high} points."
        )
    yield (
        "This does not show that one recipe is better. One run of each shows nothing about other "
        "seeds; train several of each for that."
    )


def _limitations(a: RunFolder, b: RunFolder) -> Iterator[str]:
    """Yield sentences on how the images of two runs differ, or may differ without a fingerprint."""
    results = [run.result() for run in (a, b)]
    unnamed = check_runs_match.missing_test_split_note(results)
    yield from unnamed
    if results[0]["data"]["fingerprint"] == results[1]["data"]["fingerprint"]:
        return
    if unnamed:
        yield (
            "Their training images differ, and their test images may differ too: only the labels "
            "of these are known to be the same."
        )
    else:
        yield "Their training images differ; their test images are the same."
