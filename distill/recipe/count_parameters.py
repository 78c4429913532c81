"""Count the parameters and MACs of the networks that a recipe describes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from distill.errors import UserError
from distill.recipe import describe_network
from distill.recipe.check_recipe_role import check_student
from distill.recipe.recipes import load_over_budget
from distill.recipe.schema import DEFAULT_SIZE, Recipe, Student, Teacher
from students.design import Design

# Builds a recipe's network and returns its `parameters`, `trainable` and `macs`.
CountBuilt = Callable[[Recipe, Literal["student", "teacher"]], Mapping[str, int]]


def count_networks(
    spec: str, overrides: Sequence[str] = (), count_built: CountBuilt | None = None
) -> dict[str, Any]:
    """Count the parameters and MACs of a recipe's networks for 10 classes.

    The MACs are those of images of `data.size`, 32 pixels if it is absent. The student may exceed
    its parameter budget. The teacher is counted too, under `teacher`, `teacher_parameters` …; a
    recipe may have a teacher without a student. `count_built` counts networks without a closed form
    by building them: those of timm and of the user's own code; without it such a teacher is left
    out. Raises RecipeError if the recipe has another fault, or nothing to count, UserError if a
    network cannot be built.
    """
    resolved = load_over_budget(spec, overrides)
    size = resolved.recipe.data.image_size
    student, teacher = resolved.recipe.student, resolved.recipe.teacher
    of_teacher = {} if teacher is None else _count_network(resolved.recipe, teacher, count_built)
    counted: dict[str, Any] = {"recipe": resolved.name}
    if size != DEFAULT_SIZE:
        counted["image_size"] = size
    if student is not None or not of_teacher:
        counted |= _counted_student(resolved.recipe, check_student(resolved), count_built)
    if teacher is not None and of_teacher:
        counted["teacher"] = describe_network.summary(teacher, size=size)
    return counted | {f"teacher_{name}": n for name, n in of_teacher.items()}


def _count_network(
    recipe: Recipe, table: Student | Teacher, count_built: CountBuilt | None
) -> Mapping[str, int]:
    """Return `parameters`, `trainable` and `macs` of a table's network; empty if only building it
    shows them and there is no `count_built`.
    """
    described = describe_network.describe(table, size=recipe.data.image_size)
    if described is not None:
        return {name: getattr(described, name) for name in ("parameters", "trainable", "macs")}
    role: Literal["student", "teacher"] = "student" if isinstance(table, Student) else "teacher"
    return {} if count_built is None else count_built(recipe, role)


def _counted_student(
    recipe: Recipe, student: Student, count_built: CountBuilt | None
) -> dict[str, Any]:
    counts = _count_network(recipe, student, count_built)
    if not counts:
        raise UserError(f"{student.network} is counted when it is built; type distill to build it.")
    return {
        "network": describe_network.summary(student, size=recipe.data.image_size),
        **counts,
        "max_params": student.max_params,
        "within_budget": counts["parameters"] < student.max_params,
    }


def design_of(spec: str, overrides: Sequence[str] = ()) -> tuple[Design, str]:
    """Return the student's design for 10 classes, and the name of its activation.

    The student may exceed its parameter budget. Raises RecipeError if the recipe has another fault,
    or no student, and UserError if the student is not a residual network.
    """
    resolved = load_over_budget(spec, overrides)
    student, size = check_student(resolved), resolved.recipe.data.image_size
    if not describe_network.is_described_by_design(student):
        raise UserError(
            f"the student is {student.network}: it cannot be checked, because the rules are for "
            "residual networks that a recipe describes by stages, blocks and width.\n"
            "Type params to count its parameters, or give a recipe with "
            'student.network = "resnet".'
        )
    return Design.of(**student.spec(), image_size=size), student.activation
