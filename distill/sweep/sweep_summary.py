"""Summarise the trials of a sweep: the best one, and which keys mattered."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from distill.errors import Failure, UserError
from distill.evaluation.final_test import measure_later
from distill.events import MEASURES, measure_name
from distill.format import counted
from distill.recipe import recipe_variants, recipes
from distill.recipe.recipe_fingerprint import fingerprint_as_written, recipe_fingerprint
from distill.recipe.recipes import About
from distill.runs.check_runs_match import training_fingerprint
from distill.runs.run_folder import RunFolder, write_json, write_text
from distill.sweep.assign_trials import RUN, WORKER, Trials, counted_attempts
from distill.sweep.storage import Storage
from distill.sweep.sweep_file import Sweep
from distill.sweep.sweep_schema import Space, option_label
from distill.sweep.worker import (
    DIVERGED,
    INFEASIBLE,
    REDRAWN,
    PrintLine,
    Train,
    differing_inputs,
    open_trials,
    with_cached_logits,
    work,
)

BEST, SUMMARY = "best.toml", "sweep.json"
FEWEST = 4  # finished trials needed to compute importances


def run_sweep(
    planned: Sweep,
    storage: Storage,
    parent: Path,
    train: Train,
    print_line: PrintLine,
    inputs: Mapping[str, str] | None = None,
    *,
    is_tested: bool = True,
) -> dict[str, Any]:
    """Run trials until the sweep is done; return its summary, which is also written to `parent`.

    Trials are measured on held-out images only. The best one is then measured on the test split,
    once, unless `is_tested` is False. `inputs`: the fingerprints of images and teachers, see
    `worker.open_trials`. Raises UserError if the storage has another sweep of this name, Failure if
    no trial was completed, and any error of a run.
    """
    planned, note = with_cached_logits(planned)
    trials = open_trials(planned, storage, parent, inputs)
    count = counted(planned.n_trials, "trial")
    print_line(f"{planned.name}: {count}, {trials.n_open()} left, {storage.shown}")
    print_line(f"note: {note}")
    work(trials, train, print_line, done=lambda: write(trials, summary(trials)))
    found = summary(trials)
    write(trials, found)
    if found["best"] is None:
        reasons = dict.fromkeys(row["why"] for row in found["trials"] if row["why"])
        raise Failure(
            "\n  ".join(["no trial was trained to its end, so there is no best one", *reasons])
        )
    if is_tested:
        found["test"] = _measure_on_test(trials, found["best"], print_line)
        write(trials, found)
    return found


def _measure_on_test(
    trials: Trials, best: Mapping[str, Any], print_line: PrintLine
) -> dict[str, float] | None:
    """Return the best trial's metrics on the test split, measured now if they have not been.

    `best`: the row of this trial in the summary. Returns None if the trial's folder has another run
    or is on another machine, or if another worker is measuring the trial.
    """
    folder = trials.folder(best["trial"])
    if reason := _why_other_run(trials, best, folder):
        print_line(f"note: {reason}, so trial {best['trial']} is not measured on the test split")
        return None
    measure_later(folder)
    metrics = folder.result()["metrics"]
    names = [measure_name(measure, "test") for measure in MEASURES]
    return {name: metrics[name] for name in names if name in metrics} or None


def _why_other_run(trials: Trials, best: Mapping[str, Any], folder: RunFolder) -> str:
    """Return a reason why the run in a folder is not the finished run of a trial; empty if it is.

    Compares recipe, images, teachers and the value on held-out images with the trial's. `best`: the
    row of the trial in the summary.
    """
    if not (folder.is_run and folder.is_finished):
        return f"{folder.path} is not on this machine"
    metric = trials.sweep.metric
    try:
        recipe, planned = recipes.read(folder.recipe), trials.sweep.trial_recipe(best["values"])
        same_data = recipe_variants.with_size_and_normalisation_of(planned.recipe, recipe)
        if training_fingerprint(recipe) != training_fingerprint(same_data):
            return f"{folder.path} has another run: its recipe is not that of the trial"
        result = folder.result()
        prints = fingerprint_as_written(folder.recipe), recipe_fingerprint(recipe)
        if result["recipe_fingerprint"] not in prints:
            return f"{folder.path} has another run's result.json: it is not of its recipe"
        if differing := differing_inputs(trials.inputs, folder):
            return f"{folder.path} has another {' and '.join(differing)} than the sweep"
        if result["metrics"][metric] != best["value"]:
            return (
                f"{folder.path} has another run: its {metric} is {result['metrics'][metric]:.6g}, "
                f"and the storage has {best['value']:.6g}"
            )
    except UserError as fault:
        return str(fault).splitlines()[0].rstrip(".")
    return ""


def _describe(sweep: Sweep) -> dict[str, Any]:
    """Return what a sweep searches: its name, recipe, metric, goal and search space."""
    return {
        "sweep": sweep.name,
        "recipe": sweep.base.name,
        "metric": sweep.metric,
        "goal": "maximize" if sweep.is_maximized else "minimize",
        "space": {name: _space_summary(space) for name, space in sweep.file.space.items()},
    }


def _space_summary(space: Space) -> dict[str, Any]:
    """Return the kind of a space with the labels of its options or its ends: `{"log": [0, 1]}`."""
    return {space.kind: [*map(option_label, space.options)] or list(space.bounds)}


def summary(trials: Trials) -> dict[str, Any]:
    """Summarise the trials of a sweep that are done, in values that JSON can represent.

    Keys of the result:
    - `sweep`, `recipe`: names; `metric`; `goal`: "maximize" or "minimize";
    - `space`: by name, the kind with its ends or the labels of its options;
    - `asked`: the number of trials; `counts`: the numbers of trials that are `complete`, `pruned`,
      `infeasible` and `diverged`, whose sum is `asked` once all are done;
    - `taken_up`: the number of attempts whose worker ended before they did; `redrawn`: how many
      drawn values could not be trained;
    - `best`: a row of `trials`, or None; `test`: its metrics on the test split, or None before
      `run_sweep` has measured them;
    - `importance`: by name, 0..1, see `importances`; `storage`: its URL without the password;
    - `trials`: a row for each trial with its number `trial`, `state`, `value` of the metric,
      `values` by name in [space], `epochs` (the metric by epoch), `run` (the folder), `why` (it was
      not trained to its end), `workers` (in order), `began` and `ended`.
    """
    sweep, attempts = trials.sweep, trials.attempts()
    ended = {n: a for n, a in counted_attempts(attempts).items() if a.state.is_finished()}
    rows = [_row(n, attempt, attempts[n]) for n, attempt in ended.items()]
    complete = [row for row in rows if row["state"] == "complete"]
    choose = max if sweep.is_maximized else min
    states = [row["state"] for row in rows]
    return {
        **_describe(sweep),
        "asked": max(sweep.n_trials, len(rows)),
        "counts": {s: states.count(s) for s in ("complete", "pruned", INFEASIBLE, DIVERGED)},
        "taken_up": sum(len(row["workers"]) - 1 for row in rows),
        "redrawn": sum(attempt.user_attrs.get(REDRAWN, 0) for attempt in ended.values()),
        "best": choose(complete, key=lambda row: row["value"]) if complete else None,
        "test": None,
        "importance": importances(trials.study, [ended[row["trial"]] for row in complete]),
        "storage": trials.storage.shown,
        "trials": rows,
    }


def importances(study: optuna.Study, complete: Sequence[FrozenTrial]) -> dict[str, float]:
    """Return the importance of each name in [space]; the importances add up to 1.

    PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255): how strongly a key distinguishes the
    best tenth of the trials from the others. Empty for fewer than four complete trials, or if all
    have the same value.
    """
    if len(complete) < FEWEST or len({trial.value for trial in complete}) == 1:
        return {}
    with catch_warnings():
        simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {name: float(importance) for name, importance in found.items()}


def write(trials: Trials, summarised: dict[str, Any]) -> None:
    """Write the summary as `sweep.json`, and the best trial's whole recipe as `best.toml`.

    The latter is not written before a trial is complete. `summarised`: the result of `summary`.
    """
    write_json(trials.parent / SUMMARY, summarised)
    best = summarised["best"]
    if best is None:
        return
    recipe = trials.sweep.trial_recipe(best["values"]).recipe
    about = _about(trials.sweep, summarised, trials.parent)
    path = trials.parent / BEST
    write_text(path, recipes.dumps(recipe.model_copy(update={"about": about})))


def _about(sweep: Sweep, summarised: dict[str, Any], parent: Path) -> About:
    best = summarised["best"]
    verb = "distill" if sweep.base.recipe.student else "train-teacher"
    runs = sweep.base.recipe.teacher.runs if sweep.base.recipe.teacher else ()
    return About(
        claim=f"The best of {counted(summarised['asked'], 'trial')} of the sweep {sweep.name}: "
        f"trial {best['trial']}, {sweep.metric} = {best['value']:.4f}, chosen on held-out images",
        command=f"python cli.py {verb} --recipe {parent / BEST}",
        teacher=" + ".join(runs) or "none",
        hardware="not yet run",
        minutes="not yet run",
        accuracy="not yet run",
    )


def _row(number: int, attempt: FrozenTrial, attempts: Sequence[FrozenTrial]) -> dict[str, Any]:
    marks = attempt.user_attrs
    why = next((name for name in (INFEASIBLE, DIVERGED) if name in marks), None)
    done = attempt.state == TrialState.COMPLETE
    return {
        "trial": number,
        "state": why or attempt.state.name.lower(),
        "value": attempt.value if done else None,
        "values": dict(attempt.params),
        "epochs": {str(epoch): value for epoch, value in attempt.intermediate_values.items()},
        "run": None if why == INFEASIBLE else marks.get(RUN),
        "why": marks.get(why) if why else None,
        "workers": [a.user_attrs[WORKER] for a in attempts if WORKER in a.user_attrs],
        "began": _iso(attempt.datetime_start),
        "ended": _iso(attempt.datetime_complete),
    }


def _iso(moment: datetime | None) -> str | None:
    """Return a time in ISO format, in the local time of the worker's host; None for None."""
    return None if moment is None else moment.isoformat(timespec="milliseconds")
