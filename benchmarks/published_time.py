"""Estimate how long the trainings of a cell of the CRD paper's table take on this machine."""

import time
from collections.abc import Sequence

import torch

from benchmarks.published_cells import TEACHER_RECIPE
from benchmarks.published_runs import Plan, Run
from distill.format import counted, rounded_time
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import Role, RunFolder
from distill.training import measure_speed

N_CLASSES, N_TRAIN = 100, 50_000  # of CIFAR-100
MOST_S = 20.0  # for timing one of the three trainings


def estimate_text(planned: Plan) -> str:
    """Return a line on the time of all runs, one at a time with one thread each on a CPU.

    Times a few steps of each kind of training on random images, with an untrained teacher.
    """
    torch.set_num_threads(1)
    teacher = _teacher_recipe(planned)
    kinds = {"teacher": [planned.teacher] if planned.teacher else []}
    kinds |= {"student with the method": list(planned.students.values())}
    kinds |= {"student alone": list(planned.controls.values())}
    seconds = {kind: _seconds(runs[0], teacher) for kind, runs in kinds.items() if runs}
    parts = [
        f"{counted(len(kinds[kind]), 'run')} of the {kind} of about {rounded_time(each)}"
        for kind, each in seconds.items()
    ]
    total = sum(len(kinds[kind]) * each for kind, each in seconds.items())
    device = measure_speed.device_name()
    return (
        f"estimated time here ({device} a run): {rounded_time(total)} of training in all; "
        f"{', '.join(parts)}"
    )


def _teacher_recipe(planned: Plan) -> Recipe:
    """Return the recipe of the teacher that is to be trained, or was."""
    if planned.teacher is None:
        return recipes.read(RunFolder(planned.teacher_path).recipe)
    return _load(TEACHER_RECIPE, planned.teacher.settings)


def _seconds(run: Run, teacher: Recipe) -> float:
    """Return the estimated seconds of a training."""
    recipe = _load(run.recipe, run.settings)
    role: Role = "teacher" if run.command == "train-teacher" else "student"
    speed = measure_speed.measure(
        recipe,
        role,
        teacher if run.teacher else None,
        measure_speed.random_images(N_TRAIN, N_CLASSES),
        time.monotonic() + MOST_S,
    )
    assert recipe.train.epochs is not None  # each run of a cell sets it
    return N_TRAIN * recipe.train.epochs * speed.image.mean


def _load(name: str, settings: Sequence[str]) -> Recipe:
    return recipes.load(name, settings).recipe
