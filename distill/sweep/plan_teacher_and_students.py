"""Plan a study: a teacher, a student that learns from it, and the same student without it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from distill.errors import UserError
from distill.recipe import check_recipe_role, find_teacher_recipe, recipes
from distill.recipe.recipes import ResolvedRecipe
from distill.recipe.schema import STUDENT_READS
from distill.recipe.validation import shorten
from distill.runs import check_runs_match, run_folder
from distill.runs.run_folder import RunFolder
from distill.sweep import train_over_seeds
from distill.sweep.train_over_seeds import SeedRun
from networks.network_catalogue import is_own

TEACHER, ALONE, DISTILLED = "teacher", "alone", "distilled"  # folders of a study's runs
SHARED_TABLES = ("data", "teacher")  # whose keys the student's --set gives the teacher too


class TeacherRun(NamedTuple):
    """The training of the study's teacher, and its folder."""

    resolved: ResolvedRecipe
    folder: RunFolder


@dataclass(frozen=True)
class Study:
    """The runs of a study, in the order in which they are trained.

    `teacher`: None if the study uses teachers that are trained already. `students`: each student
    with its control.
    """

    teacher: TeacherRun | None
    students: tuple[SeedRun, ...]


def teacher_recipe(spec: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Return the recipe of the teacher of the recipe `spec`, and its --set options.

    The recipe and its own options are those in the [about] of `spec`. Those of the student's
    `overrides` that describe the images or the teacher's network are added. Raises UserError if the
    text in [about] is not a command's, or names code: only what the user typed may run code.
    """
    text = find_teacher_recipe.teacher_for(spec)
    try:
        name, *words = shlex.split(text)
    except ValueError:
        raise UserError(
            f"about.teacher of {spec} is not a recipe with options: {shorten(text)}.\n"
            "Correct it, or name a trained teacher with --teacher RUN."
        ) from None
    own = [value for option, value in pairwise(words) if option == "--set"]
    for override in own:
        if is_own(override.partition("=")[2].strip().strip("\"'")):
            raise UserError(
                f"about.teacher of {spec} names code to run: {shorten(override)}. A recipe's text "
                "may not run code.\nIf you trust it, train the teacher with train-teacher and "
                "this --set, and name its run with --teacher RUN."
            )
    return name, [*own, *filter(_is_shared, overrides)]


def _is_shared(override: str) -> bool:
    table, _, key = override.partition("=")[0].strip().partition(".")
    return table in SHARED_TABLES and not (table == "teacher" and key in STUDENT_READS)


def plan(
    student: ResolvedRecipe, teacher: ResolvedRecipe | None, n_seeds: int, parent: Path
) -> Study:
    """Plan the runs of a study in folders in `parent`.

    `teacher`: the recipe to train a teacher with; None if the student's recipe names trained ones.
    One seed is that of the recipe; several are 0, 1, …. Raises RecipeError if a recipe cannot be
    trained, UserError if the student's loss terms need no teacher.
    """
    check_recipe_role.check_student(student)
    if not recipes.has_teacher(student.recipe):
        raise UserError(
            f"recipe {student.name} has no term that needs a teacher, so there is nothing to "
            "compare.\nType a recipe that distils, such as --recipe kd_cutmix, or train this one "
            "with distill."
        )
    run = None
    if teacher is not None:
        check_recipe_role.check_teacher(teacher)
        _check_hold_out(student, teacher)
        run = TeacherRun(teacher, RunFolder(parent / TEACHER))
    if n_seeds > 1:
        seeded = train_over_seeds.plan(student, range(n_seeds), parent, controls=True)
        return Study(run, tuple(seeded))
    seed, alone = student.recipe.train.seed, train_over_seeds.control_of(student)
    return Study(
        run,
        (
            SeedRun(seed, True, alone, RunFolder(parent / ALONE)),
            SeedRun(seed, False, student, RunFolder(parent / DISTILLED)),
        ),
    )


def _check_hold_out(student: ResolvedRecipe, teacher: ResolvedRecipe) -> None:
    """Raise UserError if the teacher would train on images that the student holds out.

    The run of the student would refuse such a teacher, after the training of both.
    """
    own, other = student.recipe.data.holdout, teacher.recipe.data.holdout
    if own > 0 and own != other:
        raise UserError(
            f"the teacher's recipe {teacher.name} has data.holdout = {other:g}, the student's "
            f"{own:g}: the teacher would train on images that the student holds out.\n"
            f"Type --teacher-set data.holdout={own:g}."
        )


def check(study: Study) -> None:
    """Raise UserError if a run of the study can be neither begun nor resumed in its folder."""
    if study.teacher is not None:
        resolved, folder = study.teacher
        run_folder.check_subfolder(folder.path)
        if folder.is_run:
            run_folder.check_role(folder, "teacher")
            check_runs_match.check_same(folder, resolved.recipe)
        else:
            run_folder.check_out(folder, resume=True)
    train_over_seeds.check(study.students)


def finished_runs(study: Study) -> list[RunFolder]:
    """Return the folders of the study's runs, and of its teachers if they were trained before."""
    first = next(each for each in study.students if not each.is_control)
    teachers = first.folder.result()["teacher"]["runs"]
    return [*(RunFolder(Path(path)) for path in teachers), *(s.folder for s in study.students)]


def names_teachers(overrides: Sequence[str], teachers: Sequence[str]) -> bool:
    """Whether trained teachers are named, by the option --teacher or by --set teacher.runs."""
    keys = (override.partition("=")[0].strip() for override in overrides)
    return bool(teachers) or "teacher.runs" in keys
