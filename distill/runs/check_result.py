"""Check that a finished run's result.json contradicts neither its recipe nor its journal."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.events import VALIDATED, End, Epoch, Event, Start
from distill.files import run_json_schemas
from distill.files.escape_text import visible
from distill.recipe import describe_network
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import FINISHED_EARLY, RunFolder

LONGEST_NAME = 80  # characters of a network's name in a message
MOST_FAULTS = 10  # in a message
TIMM = "timm/"  # begins the names of timm's networks
BYTES = 4  # of a parameter: the final weights are float32


# Keys of result.json that the last start event of the journal has too.
SHARED = ("recipe", "network", "parameters", "epochs", "device", "precision", "processes")


def check_figures(run: RunFolder, recipe: Recipe) -> None:
    """Raise UserError, listing every contradiction, if result.json has other figures than it must.

    The recipe determines the role, the network's name, its number of parameters and the epochs. If
    only building the network shows its size, the parameters must fit into the weights file, and for
    timm's networks be at least half of its numbers. Keys that an earlier version did not write are
    not compared.
    """
    result = run.result()
    faults = [
        *_faults_of_network(run, recipe, result),
        *_faults_of_epochs(recipe, result),
        *_faults_of_an_early_end(result),
        *_faults_of_times(result),
    ]
    if faults:
        raise _contradiction(run, run.recipe.name, faults)


def check_journal(run: RunFolder, events: Sequence[Event]) -> None:
    """Raise UserError if result.json has other values than the journal.

    Compared are the last start event, the epoch of the final weights and the end event. This covers
    what the recipe does not determine: the accuracies on held-out images, of the run and of its
    teacher, times, the epochs of a run by minutes, and the size of a network that only building it
    shows. A journal that was deleted is not compared, nor is a value that an earlier version did
    not write.
    """
    if not events:
        return
    starts = [event for event in events if isinstance(event, Start)]
    if not starts:
        raise UserError(
            f"{run.journal} has no start event, which every run begins with: it was changed.\n"
            "Restore it, or delete it: it is then not compared."
        )
    result = run.result()
    pairs = [
        *_pairs_of_start(result, starts[-1]),
        *_pairs_of_epoch(result, events),
        *_pairs_of_end(result, events),
    ]
    faults = {
        f"{name} is {_shown(ours)} instead of {_shown(theirs)}": None
        for name, ours, theirs in pairs
        if not _is_same(ours, theirs)
    }
    if faults:
        raise _contradiction(run, run.journal.name, [*faults][:MOST_FAULTS])


# A value's name, and the value in result.json and in the journal.
_Pair = tuple[str, Any, Any]


def _pairs_of_start(result: Mapping[str, Any], start: Start) -> Iterator[_Pair]:
    for key in SHARED:
        if key in result:
            yield key, result[key], getattr(start, key)
    for key in ("train_images", "val_images"):
        if key in result["data"]:
            yield key, result["data"][key], getattr(start, key)
    teacher = result["teacher"]
    yield "the teacher's top1", teacher["top1"], start.teacher_top1
    if "top1_images" in teacher:
        yield "the images of the teacher's top1", teacher["top1_images"], start.teacher_images


def _pairs_of_epoch(result: Mapping[str, Any], events: Sequence[Event]) -> Iterator[_Pair]:
    """Yield the measures on held-out images of the epoch whose weights are the final ones."""
    for event in events:
        if isinstance(event, Epoch) and event.epoch == result.get("epoch"):
            for name, value in event.metrics.items():
                if name.partition("/")[2] in VALIDATED:
                    yield f"{name} of epoch {event.epoch}", result["metrics"].get(name), value


def _pairs_of_end(result: Mapping[str, Any], events: Sequence[Event]) -> Iterator[_Pair]:
    """Yield what the end event has; a trial of a sweep may be measured on the test split later."""
    for end in [event for event in events if isinstance(event, End)][-1:]:
        for name, value in end.metrics.items():
            yield name, result["metrics"].get(name), value
        for key in ("epoch", "parameters", "elapsed_s", "total_s"):
            if result.get(key) is not None:
                yield key, result[key], getattr(end, key)


def _is_same(ours: Any, theirs: Any) -> bool:
    """Whether two values are equal; a journal writes every number that is not finite as NaN."""
    if isinstance(theirs, float) and isnan(theirs):
        return ours is None or (isinstance(ours, float) and not isfinite(ours))
    return bool(ours == theirs)


def _contradiction(run: RunFolder, other: str, faults: Sequence[str]) -> UserError:
    return UserError(
        f"{run.result_file} contradicts {other}: {'; '.join(faults)}.\n{run_json_schemas.RETRAIN}"
    )


def _shown(value: object) -> str:
    return "missing" if value is None else visible(str(value))[:LONGEST_NAME]


def _faults_of_network(run: RunFolder, recipe: Recipe, result: Mapping[str, Any]) -> Iterator[str]:
    if not {"role", "class_names"} <= result.keys():  # whoever reads them names the missing key
        return
    table = recipe.student if result["role"] == "student" else recipe.teacher
    if table is None:
        yield f"it is the result of a {result['role']}, which the recipe does not have"
        return
    n_classes = len(result["class_names"])
    name = describe_network.summary(table, n_classes)
    described = describe_network.describe(table, n_classes)
    network, parameters = result.get("network", name), result.get("parameters", 0)
    if network != name:
        yield f"its network is {visible(network)[:LONGEST_NAME]} instead of {name}"
    if described is not None and "parameters" in result and parameters != described.parameters:
        yield f"it has {parameters:,} parameters instead of {described.parameters:,}"
    weights = run.weights(result["role"])
    if described is None and weights.is_file():
        n_bytes = _bytes_of_tensors(weights)
        if BYTES * parameters > n_bytes:
            yield f"it has {parameters:,} parameters, which {weights.name} is too small for"
        # The file has buffers too: means and variances of batch norms, fewer than parameters.
        if "parameters" in result and network.startswith(TIMM) and 2 * BYTES * parameters < n_bytes:
            yield f"it has {parameters:,} parameters, which {weights.name} is too large for"


def _bytes_of_tensors(weights: Path) -> int:
    """Return the size of a safetensors file without its header, which the file's first 8 bytes
    give.
    """
    with weights.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return max(0, weights.stat().st_size - 8 - header)


def _faults_of_epochs(recipe: Recipe, result: Mapping[str, Any]) -> Iterator[str]:
    """Yield contradictions of the numbers of epochs; a run by minutes has its own number."""
    epochs = result.get("epochs")
    if epochs is None:
        return
    expected = 0 if "imported" in result else recipe.train.epochs
    if recipe.train.minutes is None and epochs != expected:
        yield f"it has {epochs:,} epochs instead of {expected:,}"
    elif result.get("epoch", 0) > epochs:
        yield f"its best epoch is {result['epoch']:,} of {epochs:,}"
    elif not result.get("epoch", 1) and expected and FINISHED_EARLY not in result:
        yield "its best epoch is 0, which only a run that was finished early can have"


def _faults_of_an_early_end(result: Mapping[str, Any]) -> Iterator[str]:
    early = result.get(FINISHED_EARLY) or {}
    for kind in ("epochs", "steps"):
        done, planned = early.get(kind, 0), early.get(f"planned_{kind}", 0)
        if done > planned:
            yield f"it was finished early after {done:,} of {planned:,} planned {kind}"
    if early and "epoch" in result and result["epoch"] > early.get("epochs", 0):
        yield f"its best epoch is {result['epoch']:,}; it was finished after {early['epochs']:,}"


def _faults_of_times(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a contradiction of the times: the whole time includes that of the training."""
    training, whole = result.get("elapsed_s"), result.get("total_s")
    if training is not None and whole is not None and whole < training:
        yield f"its time is {whole:,.1f} s in all, and {training:,.1f} s of training"
