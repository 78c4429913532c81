"""Run trials of a sweep until all are done; any number of workers share one sweep.

A trial is a run like any other, in a folder of its own. After each epoch its value on the held-out
part goes to the study, and the study may end it: then its folder stays as a run that was stopped.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.trial import TrialState

from distill.errors import UnsuitableRecipe, UserError
from distill.events import Epoch, Event, Start
from distill.format import counted
from distill.recipe import recipes
from distill.recipe.recipes import Recipe, RecipeError, ResolvedRecipe
from distill.runs.run_folder import RunFolder
from distill.sweep import optuna_space
from distill.sweep.storage import FINGERPRINT, Storage
from distill.sweep.sweep_file import Sweep
from distill.sweep.sweep_schema import keys_set, pairs
from distill.sweep.trials import ClaimedTrial, Trials
from distill.training.divergence import Diverged
from distill.training.fingerprints import CALLED
from distill.training.out_of_memory import OutOfMemory

LOOK_S = 2.0  # between two looks of a worker that waits for the others
# Attributes of an attempt: why it has no value, and how often its values were drawn again.
INFEASIBLE, DIVERGED, REDRAWN = "infeasible", "diverged", "redrawn"
OF_RESULT = {  # where result.json has the fingerprints of a sweep
    "data": ("data", "fingerprint"),
    "test": ("data", "test_fingerprint"),
    "class_names": ("data", "class_names_fingerprint"),
    "teacher": ("teacher", "fingerprint"),
}
DRAWS = 20  # of a trial whose values cannot be trained
# A key that is new and whose default is not what the program did before it existed.
CHANGES_OLD_SWEEPS = {"augment.trivial.before_crop"}
VIEWED = ("data.", "augment.", "mix.", "teacher.", "train.precision")

Reader = Callable[[Event], None]
Train = Callable[[ResolvedRecipe, RunFolder, Reader], None]  # one run, to its end
Say = Callable[[str], None]


class TrialLost(Exception):
    """Another worker has taken this worker's trial."""


def open_trials(
    sweep: Sweep, storage: Storage, place: Path, inputs: Mapping[str, str] | None = None
) -> Trials:
    """The sweep's trials, those that are done and those to come. Raises UserError where the storage
    holds another sweep of this name, or one of other images or teachers.

    `inputs`: the fingerprints of images and teachers by name, as `enlist.check` returns them.
    """
    inputs = inputs or {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if sweep.is_maximized else "minimize"
    with storage.explain_errors():
        common = "\n".join([definition(sweep), *_lines(_as_definition_keys(inputs))])
        study = storage.study(sweep.name, direction, common, _defaults(sweep))
    study.pruner = optuna_space.pruner(sweep)
    return Trials(sweep, study, storage, place, inputs)


def _as_definition_keys(inputs: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints as keys of the definition."""
    return {f"{FINGERPRINT}{name}": value for name, value in inputs.items()}


def variants(sweep: Sweep) -> list[Recipe]:
    """The base recipe with each data source and each list of teachers that the space has."""
    recipe, found = sweep.base.recipe, list[Recipe]()
    options = [(name, o) for name, space in sweep.file.space.items() for o in space.options]
    for key, value in (pair for name, option in options for pair in pairs(name, option)):
        if key == "data.source":
            found.append(recipes.with_source(recipe, value))
        elif key == "teacher.runs":
            found.append(recipes.with_teacher(recipe, value))
    return found


def definition(sweep: Sweep) -> str:
    """What all workers of a sweep have in common, a line for each key."""
    file = sweep.file.model_dump(exclude={"study": {"trials", "heartbeat_s", "name"}})
    return "\n".join(_lines({**recipes.values(sweep.base.recipe), **dict(recipes.leaves(file))}))


def _defaults(sweep: Sweep) -> list[str]:
    """The lines of the definition that no file and no option has set."""
    origins = sweep.base.origins
    return _lines(
        {
            key: value
            for key, value in recipes.values(sweep.base.recipe).items()
            if origins.get(key, "default") == "default" and key not in CHANGES_OLD_SWEEPS
        }
    )


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {value}" for key, value in values.items()]


def with_cached_logits(sweep: Sweep) -> tuple[Sweep, str]:
    """The teacher's answers kept for all trials, where they can be; what the head says of it."""
    recipe = sweep.base.recipe
    if not recipes.has_teacher(recipe):
        return sweep, "no trial asks a teacher"
    keys = keys_set(sweep.file)
    if varied := [key for key in keys if key.startswith(VIEWED)]:
        names = " and ".join(varied)
        return sweep, f"{names} varies: only trials that agree in it can share stored answers"
    shared = "the teacher's answers are stored by the first trials and read by the others"
    if recipe.cache is not None:
        return sweep, shared
    terms = {key.split(".")[1] for key in keys if key.startswith("loss.")}
    try:  # without the budget, which the recipe's own student may be over
        base = recipes.load(sweep.file.recipe, [*sweep.file.overrides, "cache={}"])
        if not terms <= recipe.loss.terms().keys():  # what they read is not known before
            raise RecipeError(sweep.name, [])
    except RecipeError:
        return sweep, "a term reads the teacher's maps, which are not stored: each trial asks it"
    file = sweep.file.model_copy(update={"overrides": (*sweep.file.overrides, "cache={}")})
    return Sweep(sweep.name, file, base), shared


def work(trials: Trials, train: Train, say: Say, done: Callable[[], None] = lambda: None) -> None:
    """Take trials until all are done. Another worker that dies meanwhile is replaced.

    `done` is called after each trial of this worker.

    Raises what a run raises; the trial it befell is given back first.
    """
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
    with trials.storage.explain_errors(), trials.working(name):
        is_waiting = False
        while trials.n_open():
            trials.release_dead()
            taken = trials.claim(name)
            if taken is not None:
                is_waiting = False
                _attempt(trials, taken, train, say)
                done()
                continue
            if not is_waiting:
                others = counted(trials.n_open(), "trial")
                say(f"{others} with other workers: waiting, in case one dies")
            is_waiting = True
            time.sleep(LOOK_S)


def _attempt(trials: Trials, taken: ClaimedTrial, train: Train, say: Say) -> None:
    """One trial, from its values to its end in the storage."""
    storage, sweep, folder = trials.storage, trials.sweep, trials.folder(taken.number)
    with _stop_if_lost(taken, say), storage.heartbeat(taken.row):
        try:
            resolved = _draw_recipe(taken, sweep, say)
            train(resolved, folder, PruningCallback(taken, sweep.metric))
        except (RecipeError, UnsuitableRecipe, OutOfMemory) as fault:
            if isinstance(fault, OutOfMemory) and not trials.mark_full(taken):
                raise
            why = _reason(fault)
            taken.trial.set_user_attr(INFEASIBLE, why)
            _end(storage, taken, TrialState.PRUNED)
            say(f"trial {taken.number} is infeasible: {why}")
        except TrialPruned:
            _end(storage, taken, TrialState.PRUNED)
            say(f"trial {taken.number} is pruned: {folder.path} stays as a run that was stopped")
        except Diverged as fault:
            taken.trial.set_user_attr(DIVERGED, str(fault))
            _end(storage, taken, TrialState.PRUNED)
            say(f"trial {taken.number} is pruned: {fault}")
        else:
            _check_inputs(trials.inputs, folder)
            value = float(folder.result()["metrics"][sweep.metric])
            _end(storage, taken, TrialState.COMPLETE, value)
            say(f"trial {taken.number} is done: {sweep.metric} {value:.4f}")


def _check_inputs(inputs: Mapping[str, str], folder: RunFolder) -> None:
    """Raises UserError if a trial was trained or tested on other images than the sweep has, or
    with another teacher.
    """
    result = folder.result() if inputs else {}
    apart = [
        CALLED[name]
        for name, (table, key) in OF_RESULT.items()
        if name in inputs and result[table][key] not in inputs[name].split(" + ")
    ]
    if apart:
        raise UserError(
            f"{folder.path} has another {' and '.join(apart)} than the sweep it belongs to: it "
            "changed while the sweep was at work.\n"
            "Bring the former back, delete that folder, and type the same command again."
        )


def _draw_recipe(taken: ClaimedTrial, sweep: Sweep, say: Say) -> ResolvedRecipe:
    """The recipe of a trial, which is written down. What cannot be trained is drawn again, DRAWS
    times in all. Raises RecipeError where the last of them cannot either.
    """
    trial, file = taken.trial, sweep.file
    known = trial.storage.get_trial(taken.row)
    is_fixed = file.space.keys() <= known.params.keys()  # a cell of a grid, or taken up again
    values, n_drawn, refusal = dict[str, Any](), 0, None
    while n_drawn < (1 if is_fixed else DRAWS):
        values, n_drawn = optuna_space.draw_values(trial.study, known, file), n_drawn + 1
        try:
            sweep.trial_recipe(values)
            break
        except RecipeError as fault:
            refusal = fault
    optuna_space.store_values(trial, taken.row, file, values)
    said = ", ".join(f"{name} = {_short(value)}" for name, value in values.items())
    say(f"trial {taken.number} of {sweep.n_trials}: {said}")
    if n_drawn > 1 and refusal is not None:
        trial.set_user_attr(REDRAWN, n_drawn - 1)
        say(f"note: drawn {n_drawn} times; one that cannot be trained: {_reason(refusal)}")
    return sweep.trial_recipe(values)


def _reason(fault: Exception) -> str:
    """On one line; what the sweep sets, it sets as --set does."""
    faults = fault.faults if isinstance(fault, RecipeError) else str(fault).splitlines()
    return "; ".join(faults).replace("(--set)", "(the sweep)")


def _end(
    storage: Storage, taken: ClaimedTrial, state: TrialState, value: float | None = None
) -> None:
    """Raises Lost where somebody has ended it before."""
    if not storage.end(taken.row, state, value):
        raise TrialLost


@contextmanager
def _stop_if_lost(taken: ClaimedTrial, say: Say) -> Iterator[None]:
    """A trial that is ours no more is left."""
    try:
        yield
    except (TrialLost, UpdateFinishedTrialError):
        say(f"trial {taken.number} was taken over by another worker: left to it")


class PruningCallback:
    """Reads a run's events; tells the study each epoch's value and ends the run when it says so.

    Raises TrialPruned, or Lost where the trial is another worker's by now.
    """

    def __init__(self, taken: ClaimedTrial, metric: str) -> None:
        self.trial, self.metric = taken.trial, metric
        self.known = set(taken.trial.storage.get_trial(taken.row).intermediate_values)
        self.epochs = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Start):
            self.epochs = event.epochs
        if not isinstance(event, Epoch):
            return
        try:
            if event.epoch not in self.known:  # by the worker that died
                self.trial.report(event.metrics[self.metric], event.epoch)
        except UpdateFinishedTrialError as fault:
            raise TrialLost from fault
        if event.epoch < self.epochs and self.trial.should_prune():
            raise TrialPruned


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
