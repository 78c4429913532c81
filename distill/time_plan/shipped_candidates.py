"""List the shipped recipes that `plan` can propose.

An ingredient (a recipe to be composed with others) is proposed only if the command in its [about]
table has been run on CIFAR-10; so is the control that this table names. A recipe for other images
than CIFAR-10 is not proposed.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from distill.recipe import find_teacher_recipe, recipe_variants, recipes
from distill.recipe.recipes import About, Recipe
from distill.runs.run_folder import Role

VERBS: dict[Role, str] = {"teacher": "train-teacher", "student": "distill"}  # commands of cli.py
CIFAR10 = "cifar10"
PRECISION = "train.precision="
LENGTHS = ("train.epochs=", "train.minutes=")


@dataclass(frozen=True)
class PlannedTraining:
    """A training that the plan may propose.

    `recipe` is loaded from `recipe_spec` (a name or a+b+c) with the --set options `overrides`.
    """

    role: Role
    recipe_spec: str
    overrides: tuple[str, ...]
    recipe: Recipe

    def command(self, data: str | None, *more: str) -> str:
        """Return the shell command that runs this training.

        `data`: the data source, or None for the recipe's. `more`: further words of the command.
        """
        sets = [word for override in self.overrides for word in ("--set", override)]
        source = [] if data is None else ["--data", data]
        words = [
            "python",
            "cli.py",
            VERBS[self.role],
            "--recipe",
            self.recipe_spec,
            *sets,
            *source,
            *more,
        ]
        return shlex.join(words)

    @property
    def in_default_precision(self) -> "PlannedTraining":
        """The same training without an override of `train.precision`."""
        others = tuple(o for o in self.overrides if not o.startswith(PRECISION))
        other = training(self.role, self.recipe_spec, others)
        return other.at_size(self.recipe.data.size)

    def at_size(self, size: int | None) -> "PlannedTraining":
        """The same training on images of `size` x `size` pixels; None for those of the recipe."""
        return replace(self, recipe=recipe_variants.with_data(self.recipe, size=size))

    def lasting(self, minutes: float) -> "PlannedTraining":
        """The same training for so many minutes instead of a number of epochs.

        Raises RecipeError if the recipe needs a number of epochs.
        """
        others = (o for o in self.overrides if not o.startswith(LENGTHS))
        overrides = (*others, f"train.minutes={minutes:g}")
        other = training(self.role, self.recipe_spec, overrides)
        return other.at_size(self.recipe.data.size)


@dataclass(frozen=True)
class Candidate:
    """A recipe that may be proposed: its [about] table, its training and its teacher's training."""

    about: About
    training: PlannedTraining
    teacher: PlannedTraining | None

    def at_size(self, size: int | None) -> "Candidate":
        """The same candidate on images of `size` x `size` pixels; None for those of the recipe."""
        teacher = None if self.teacher is None else self.teacher.at_size(size)
        return replace(self, training=self.training.at_size(size), teacher=teacher)

    @property
    def in_default_precision(self) -> "Candidate":
        """The same candidate without overrides of `train.precision`, teacher included."""
        teacher = None if self.teacher is None else self.teacher.in_default_precision
        return replace(self, training=self.training.in_default_precision, teacher=teacher)

    def commands(self, data: str | None) -> list[str]:
        """Return the shell commands that train first the teacher, if there is one, then the recipe.

        `data`: the data source, or None for the recipe's.
        """
        if self.teacher is None:
            return [self.training.command(data)]
        run = f"runs/{self.training.recipe_spec}-teacher"
        return [
            self.teacher.command(data, "--out", run),
            self.training.command(data, "--teacher", run),
        ]


def training(role: Role, spec: str, overrides: tuple[str, ...]) -> PlannedTraining:
    """Load a recipe for training. Raises RecipeError if it is invalid."""
    return PlannedTraining(role, spec, overrides, recipes.load(spec, overrides).recipe)


def candidates() -> Iterator[Candidate]:
    """Yield every shipped recipe that may be proposed, and the controls that were measured."""
    shipped = recipes.shipped()
    commands = {name: about.command for name, _, about in shipped}
    for _, path, about in shipped:
        if path.parent.name == "ingredients" and about.measured_accuracy is None:
            continue
        own = _training_of_command(about.command)
        if own.recipe.data.source == CIFAR10:
            yield Candidate(about, own, _teacher_of(about, own, commands))
        if about.control is not None:
            measured = About(measured_accuracy=about.control_accuracy, seeds=about.seeds)
            yield Candidate(measured, _training_of_command(about.control), None)


def _teacher_of(
    about: About, student: PlannedTraining, commands: Mapping[str, str]
) -> PlannedTraining | None:
    """Return the training of the teacher that `about` names; None for a recipe without a teacher.

    `commands`: by shipped recipe, the command by which its accuracy was measured. If the teacher is
    one of these recipes, it is trained with this command.
    """
    if student.role == "teacher" or not recipes.has_teacher(student.recipe):
        return None
    is_named = about.teacher not in ("", "none", "that of the recipe")
    spec = about.teacher if is_named else find_teacher_recipe.teacher_for(student.recipe_spec)
    return _training_of_command(commands.get(spec) or f"{VERBS['teacher']} --recipe {spec}")


def _training_of_command(command: str) -> PlannedTraining:
    """Return the training that a command in an [about] table runs: `python cli.py distill …`."""
    words = shlex.split(command)
    pairs = list(pairwise(words))
    role: Role = "teacher" if VERBS["teacher"] in words else "student"
    (spec,) = [value for option, value in pairs if option == "--recipe"]
    return training(role, spec, tuple(value for option, value in pairs if option == "--set"))
