"""Run trials of a sweep until all are done; any number of workers share one sweep.

A trial is an ordinary run in a folder of its own. After each epoch its value on the held-out images
is reported to the study, which may prune the trial: its folder then remains as a stopped run.
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

from distill.components.fingerprints import CALLED
from distill.errors import UnsuitableRecipe, UserError
from distill.events import Epoch, Event, Start
from distill.format import counted
from distill.models.out_of_memory import OutOfMemory
from distill.recipe import compare_recipes, recipe_variants, recipes
from distill.recipe.recipes import Recipe, RecipeError, ResolvedRecipe
from distill.recipe.validation import leaves
from distill.runs import check_runs_match
from distill.runs.run_folder import RunFolder
from distill.sweep import check_stored_trials, optuna_space
from distill.sweep.assign_trials import ClaimedTrial, Trials
from distill.sweep.storage import FINGERPRINT, Storage
from distill.sweep.sweep_file import Sweep
from distill.sweep.sweep_schema import keys_and_values, searched_keys
from distill.training.divergence import Diverged

LOOK_S = 2.0  # seconds between two checks by a worker that waits for the others
# Attributes of an attempt: why it has no value, and how often its values were redrawn.
INFEASIBLE, DIVERGED, REDRAWN = "infeasible", "diverged", "redrawn"
OF_RESULT = {  # for each fingerprint of a sweep, its table and key in result.json
    "data": ("data", "fingerprint"),
    "test": ("data", "test_fingerprint"),
    "class_names": ("data", "class_names_fingerprint"),
    "teacher": ("teacher", "fingerprint"),
}
DRAWS = 20  # most attempts to draw values that can be trained
# Keys added later whose default differs from what earlier versions did.
CHANGES_OLD_SWEEPS = {"augment.trivial.before_crop"}
# Prefixes of the keys that determine a teacher's logits: trials that differ in them share no cache.
VIEWED = ("data.", "augment.", "mix.", "teacher.", "train.precision")

Reader = Callable[[Event], None]
Train = Callable[[ResolvedRecipe, RunFolder, Reader], None]  # trains one run to its end
PrintLine = Callable[[str], None]


class TrialLost(Exception):
    """Another worker has taken over this worker's trial."""


def open_trials(
    sweep: Sweep, storage: Storage, parent: Path, inputs: Mapping[str, str] | None = None
) -> Trials:
    """Open the trials of a sweep in a storage; the study is created if it does not exist.

    `parent`: the folder of the trials. `inputs`: the fingerprints of images and teachers by name,
    as `selection.check_teachers` returns them. Raises UserError if the storage has a sweep of this
    name with another definition, images or teachers, or attempts that this sweep cannot have
    stored, and if a folder in `parent` is a symbolic link.
    """
    inputs = inputs or {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if sweep.is_maximized else "minimize"
    with storage.explain_errors():
        common = "\n".join([definition(sweep), *_lines(_as_definition_keys(inputs))])
        study = storage.study(sweep.name, direction, common, _defaults(sweep))
        if fault := check_stored_trials.fault_of(storage.read_attempts(study), sweep):
            raise storage.damaged(fault)
    study.pruner = optuna_space.pruner(sweep)
    trials = Trials(sweep, study, storage, parent, inputs)
    trials.check_folders()
    return trials


def _as_definition_keys(inputs: Mapping[str, str]) -> dict[str, str]:
    """Return fingerprints by their keys in the sweep's definition instead of their names."""
    return {f"{FINGERPRINT}{name}": value for name, value in inputs.items()}


def input_variants(sweep: Sweep) -> list[Recipe]:
    """Return the base recipe with each data source, and with each list of teachers, in [space]."""
    recipe, varied = sweep.base.recipe, list[Recipe]()
    options = [(name, o) for name, space in sweep.file.space.items() for o in space.options]
    for key, value in (pair for name, option in options for pair in keys_and_values(name, option)):
        if key == "data.source":
            varied.append(recipe_variants.with_source(recipe, value))
        elif key == "teacher.runs":
            varied.append(recipe_variants.with_teacher(recipe, value))
    return varied


def definition(sweep: Sweep) -> str:
    """Return what all workers of a sweep must have in common: the base recipe and the sweep file.

    The text has one line per key, `optim.lr = 0.1`.
    """
    file = sweep.file.model_dump(exclude={"study": {"trials", "heartbeat_s", "name"}})
    return "\n".join(_lines({**compare_recipes.values(sweep.base.recipe), **dict(leaves(file))}))


def _defaults(sweep: Sweep) -> list[str]:
    """Return the lines of the definition whose keys have their defaults.

    They may be absent from a study that an earlier version created.
    """
    origins = sweep.base.origins
    return _lines(
        {
            key: value
            for key, value in compare_recipes.values(sweep.base.recipe).items()
            if origins.get(key, "default") == "default" and key not in CHANGES_OLD_SWEEPS
        }
    )


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {value}" for key, value in values.items()]


def with_cached_logits(sweep: Sweep) -> tuple[Sweep, str]:
    """Return the sweep with a cache of teacher logits that its trials share, and a note on it.

    If a cache cannot be used or shared, the sweep is returned unchanged, and the note has the
    reason.
    """
    recipe = sweep.base.recipe
    if not recipes.has_teacher(recipe):
        return sweep, "no trial has a teacher"
    keys = searched_keys(sweep.file)
    if varied := [key for key in keys if key.startswith(VIEWED)]:
        names = " and ".join(varied)
        return sweep, f"{names} varies: only trials with the same value can share cached logits"
    shared = "the teacher's logits are cached by the first trials and read by the others"
    if recipe.cache is not None:
        return sweep, shared
    terms = {key.split(".")[1] for key in keys if key.startswith("loss.")}
    try:  # without the parameter limit, which the recipe's own student may exceed
        base = recipes.load(sweep.file.recipe, [*sweep.file.overrides, "cache={}"])
        if not terms <= recipe.loss.terms().keys():  # their inputs are unknown before the trial
            raise RecipeError(sweep.name, [])
    except RecipeError:
        return sweep, (
            "a loss term needs the teacher's feature maps, which are not cached: every trial runs "
            "the teacher"
        )
    file = sweep.file.model_copy(update={"overrides": (*sweep.file.overrides, "cache={}")})
    return Sweep(sweep.name, file, base), shared


def work(
    trials: Trials, train: Train, print_line: PrintLine, done: Callable[[], None] = lambda: None
) -> None:
    """Run trials until all are done, including trials of workers that die meanwhile.

    `done` is called after each trial of this worker. If a run raises an error, its trial is
    released for other workers, and the error is raised.
    """
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
    with trials.storage.explain_errors(), trials.working(name):
        is_waiting = False
        while trials.n_open():
            for number in trials.release_dead():
                print_line(
                    f"note: trial {number} is stored as running, without a heartbeat of a worker: "
                    f"unless one follows within {trials.storage.silence_s} s, it is trained again"
                )
            claimed = trials.claim(name)
            if claimed is not None:
                is_waiting = False
                _attempt(trials, claimed, train, print_line)
                done()
                continue
            if not is_waiting:
                others = counted(trials.n_open(), "trial")
                print_line(f"{others} left with other workers: waiting in case one of them dies")
            is_waiting = True
            time.sleep(LOOK_S)


def _attempt(trials: Trials, claimed: ClaimedTrial, train: Train, print_line: PrintLine) -> None:
    """Run one attempt at a trial: draw its values, train, and store its end state and value."""
    storage, sweep, folder = trials.storage, trials.sweep, trials.folder(claimed.number)
    with _stop_if_lost(claimed, print_line), storage.heartbeat(claimed.row):
        try:
            resolved = _draw_recipe(claimed, sweep, print_line)
            _check_recipe(folder, resolved)
            train(resolved, folder, PruningCallback(claimed, sweep.metric))
        except (RecipeError, UnsuitableRecipe, OutOfMemory) as fault:
            if isinstance(fault, OutOfMemory) and not trials.record_out_of_memory(claimed):
                raise
            why = _reason(fault)
            claimed.trial.set_user_attr(INFEASIBLE, why)
            _end(storage, claimed, TrialState.PRUNED)
            print_line(f"trial {claimed.number} is infeasible: {why}")
        except TrialPruned:
            _end(storage, claimed, TrialState.PRUNED)
            print_line(f"trial {claimed.number} is pruned: {folder.path} remains as a stopped run")
        except Diverged as fault:
            claimed.trial.set_user_attr(DIVERGED, str(fault))
            _end(storage, claimed, TrialState.PRUNED)
            print_line(f"trial {claimed.number} is pruned: {fault}")
        else:
            _check_inputs(trials.inputs, folder)
            value = float(folder.result()["metrics"][sweep.metric])
            _end(storage, claimed, TrialState.COMPLETE, value)
            print_line(f"trial {claimed.number} is done: {sweep.metric} {value:.4f}")


def _check_recipe(folder: RunFolder, resolved: ResolvedRecipe) -> None:
    """Raise UserError if a trial's folder contains a run, finished or not, of another recipe."""
    if not folder.is_run:
        return
    try:
        check_runs_match.check_same(folder, resolved.recipe)
    except RecipeError as fault:  # in the folder's recipe.toml; the trial itself is feasible
        raise UserError(f"{fault}\nDelete {folder.path}, or choose another --out.") from None


def differing_inputs(inputs: Mapping[str, str], folder: RunFolder) -> list[str]:
    """Return what a finished trial was trained or tested with that is not the sweep's.

    The names are meant for a message: images, test split, class names, teacher. `inputs`: the
    sweep's fingerprints by name. Empty without `inputs`.
    """
    result = folder.result() if inputs else {}
    return [
        CALLED[name]
        for name, (table, key) in OF_RESULT.items()
        if name in inputs and result[table][key] not in inputs[name].split(" + ")
    ]


def _check_inputs(inputs: Mapping[str, str], folder: RunFolder) -> None:
    """Raise UserError if a finished trial has other images or another teacher than the sweep.

    `inputs`: the sweep's fingerprints by name.
    """
    if differing := differing_inputs(inputs, folder):
        raise UserError(
            f"{folder.path} has another {' and '.join(differing)} than the sweep it belongs to, "
            "which changed while the sweep was running.\n"
            "Restore the former, delete that folder, and type the same command again."
        )


def _draw_recipe(claimed: ClaimedTrial, sweep: Sweep, print_line: PrintLine) -> ResolvedRecipe:
    """Draw a trial's values, store them, and return the trial's recipe.

    Values that give an invalid recipe are redrawn, up to DRAWS draws in all. Raises RecipeError if
    the last ones are invalid too.
    """
    trial, file = claimed.trial, sweep.file
    stored = trial.storage.get_trial(claimed.row)
    is_fixed = file.space.keys() <= stored.params.keys()  # a cell of a grid, or a later attempt
    values, n_drawn, refusal = dict[str, Any](), 0, None
    while n_drawn < (1 if is_fixed else DRAWS):
        values, n_drawn = optuna_space.draw_values(trial.study, stored, file), n_drawn + 1
        try:
            sweep.trial_recipe(values)
            break
        except RecipeError as fault:
            refusal = fault
    optuna_space.store_values(trial, claimed.row, file, values)
    shown = ", ".join(f"{name} = {_short(value)}" for name, value in values.items())
    print_line(f"trial {claimed.number} of {sweep.n_trials}: {shown}")
    if n_drawn > 1 and refusal is not None:
        trial.set_user_attr(REDRAWN, n_drawn - 1)
        print_line(f"note: drawn {n_drawn} times; one draw cannot be trained: {_reason(refusal)}")
    return sweep.trial_recipe(values)


def _reason(fault: Exception) -> str:
    """Return an error's message on one line.

    A value's origin in it is `the sweep` instead of `--set`, since the sweep has set the value, and
    what to type instead is left out.
    """
    faults = fault.faults if isinstance(fault, RecipeError) else str(fault).splitlines()
    reasons = (each.partition("; type --set ")[0] for each in faults)
    return "; ".join(reasons).replace("(--set)", "(the sweep)")


def _end(
    storage: Storage, claimed: ClaimedTrial, state: TrialState, value: float | None = None
) -> None:
    """Store the end of an attempt. Raises TrialLost if another worker has ended it already."""
    if not storage.end(claimed.row, state, value):
        raise TrialLost


@contextmanager
def _stop_if_lost(claimed: ClaimedTrial, print_line: PrintLine) -> Iterator[None]:
    """If another worker has taken over the trial, leave this context and print a message."""
    try:
        yield
    except (TrialLost, UpdateFinishedTrialError):
        print_line(f"trial {claimed.number} was taken over by another worker, and is left to it")


class PruningCallback:
    """A callback that reports a run's metric to the study after each epoch, and may end the run.

    Calling it raises TrialPruned if the study prunes the trial, and TrialLost if another worker has
    taken over the trial. `metric`: the name of the metric.
    """

    def __init__(self, claimed: ClaimedTrial, metric: str) -> None:
        self.trial, self.metric = claimed.trial, metric
        self.reported = set(claimed.trial.storage.get_trial(claimed.row).intermediate_values)
        self.epochs = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Start):
            self.epochs = event.epochs
        if not isinstance(event, Epoch):
            return
        try:
            if event.epoch not in self.reported:  # an earlier worker may have reported it
                self.trial.report(event.metrics[self.metric], event.epoch)
        except UpdateFinishedTrialError as fault:
            raise TrialLost from fault
        if event.epoch < self.epochs and self.trial.should_prune():
            raise TrialPruned


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
