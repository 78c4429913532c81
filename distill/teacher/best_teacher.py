"""Choose the best of several finished teachers if none is named.

Teachers are compared by their accuracy on held-out images, if all hold out the same images. Runs on
one data set hold out the same images if they hold out the same number of them
(`distill/data/split_by_content.py`).
"""

from collections.abc import Sequence

from distill.errors import UserError
from distill.events import measure_name
from distill.format import counted, percent
from distill.runs import check_result, journal, read_predictions
from distill.runs.run_folder import RunFolder


def choose_best(found: Sequence[RunFolder], n_held_out: int) -> tuple[RunFolder, list[str]]:
    """Return the best of several finished teachers of one data set, and notes on the choice.

    `found`: at least one teacher's run. `n_held_out`: the number of images that the student's run
    holds out. Teachers that hold out the same images as the student are preferred; without any, all
    are considered. The teacher with the best held-out accuracy is chosen. If the accuracies are
    missing (`data.holdout = 0`) or were measured on different images, the newest one is chosen.
    """
    found = [run for run in found if _is_verified(run)] or found
    by_age = sorted(found, key=lambda run: str(run.result()["finished_at"]), reverse=True)
    preferred = [run for run in by_age if _n_held_out(run) == n_held_out] or by_age
    measured = [run for run in preferred if _val_accuracy(run) is not None]
    if len({_n_held_out(run) for run in measured}) != 1:
        return preferred[0], _notes_on_newest(preferred, by_age)
    ranked = sorted(measured, key=lambda run: _val_accuracy(run) or 0.0, reverse=True)
    return ranked[0], _notes_on_best(ranked, by_age)


def _is_verified(run: RunFolder) -> bool:
    """Whether a run's journal and saved predictions confirm its accuracy on held-out images."""
    try:
        check_result.check_journal(run, journal.events(run.journal))
        predictions = read_predictions.read_run(run)
    except UserError:
        return False
    has_held_out = predictions is not None and predictions.val_logits is not None
    return has_held_out or not _n_held_out(run)


def _n_held_out(run: RunFolder) -> int | None:
    """Return how many images a run held out; None if an earlier version wrote its result without
    this number.
    """
    n: int | None = run.result()["data"].get("val_images")
    return n


def _val_accuracy(run: RunFolder) -> float | None:
    """Return the held-out accuracy, 0..1, of a run's final weights; None if nothing was held
    out.
    """
    metrics = run.result()["metrics"]
    averaged, own = (metrics.get(measure_name("top1", split)) for split in ("val_ema", "val"))
    top1: float | None = own if averaged is None else averaged
    return top1 if _n_held_out(run) else None


def _notes_on_best(ranked: Sequence[RunFolder], found: Sequence[RunFolder]) -> list[str]:
    """Return a note on the choice of the best teacher; empty if only one was found.

    `ranked`: the compared teachers, the best first. `found`: all teachers.
    """
    if len(found) == 1:
        return []
    first, *others = ranked
    left = [run for run in found if run not in ranked]
    images = counted(_n_held_out(first) or 0, "held-out image")
    if others:
        rank = f"the best of {len(ranked)} on the same {images}"
        following = f"; the next is {others[0].path}, {percent(_val_accuracy(others[0]))}"
    else:
        rank, following = f"the only one with {images}", ""
    return [_note(first, f"{rank}, {percent(_val_accuracy(first))}{following}", left)]


def _notes_on_newest(preferred: Sequence[RunFolder], found: Sequence[RunFolder]) -> list[str]:
    """Return a note on the choice of the newest teacher; empty if only one was found.

    `preferred`: the considered teachers, the newest first. `found`: all teachers.
    """
    if len(found) == 1:
        return []
    first, *others = preferred
    left = [run for run in found if run not in preferred]
    if not others:
        return [_note(first, "the only one that holds out as many images as this run", left)]
    reason = "they have no accuracy on the same held-out images"
    rank = f"the newest of {len(preferred)}, since {reason}; the next is {others[0].path}"
    return [_note(first, rank, left)]


def _note(taken: RunFolder, why: str, left: Sequence[RunFolder]) -> str:
    names = ", ".join(str(run.path) for run in left)
    uncompared = f"; not compared, because they held out other images: {names}" if left else ""
    return f"no --teacher was given: {taken.path} is used, {why}{uncompared}"
