"""Choose the stages that loss terms on feature maps read, if the recipe does not name them.

The defaults of `loss_schema.py` are for two networks of three stages. For other numbers the stages
are paired from the last one, since the last maps of both networks are the ones that the classifiers
read: a student of three stages and a teacher of four are paired 0-1, 1-2 and 2-3.
"""

from typing import Any

from distill.errors import UserError
from distill.recipe.describe_network import describe
from distill.recipe.loss_schema import STAGES, Term
from distill.recipe.schema import Recipe, Student, Teacher

PREFIX = "stages."
LAST = len(STAGES) - 1
KEYS = ("student_tap", "teacher_tap", "student_taps", "teacher_taps")


def with_paired_stages(
    recipe: Recipe, teacher: Student | Teacher | None, earlier: Recipe | None = None
) -> Recipe:
    """Return the recipe with the stages that its loss terms read from both networks.

    Terms whose feature maps were given in a file or by --set stay unchanged, and all terms if the
    number of stages of a network is only known when it is built. `teacher`: the table of the
    teacher's network; None if there is no single one. `earlier`: the recipe of the run that is
    resumed, whose maps are read again.
    """
    of_student, of_teacher = number_of_stages(recipe.student), number_of_stages(teacher)
    chosen = {}
    for name, term in recipe.loss.terms().items():
        keys = KEYS & type(term).model_fields.keys()
        if not keys or keys & term.model_fields_set:
            continue
        before = earlier.loss.terms().get(name) if earlier is not None else None
        if before is not None:
            taps = {key: getattr(before, key) for key in keys}
        elif of_student and of_teacher:
            taps = _paired(term, of_student, of_teacher)
        else:
            continue
        chosen[name] = term.model_copy(update=taps)
    return recipe.model_copy(update={"loss": recipe.loss.model_copy(update=chosen)})


def is_chosen_later(term: Term, key: str, tap: str) -> bool:
    """Whether a term's feature map is a default that `with_paired_stages` may replace."""
    return key not in term.model_fields_set and tap in STAGES


def number_of_stages(table: Student | Teacher | None) -> int:
    """Return the number of stages of a network; 0 if it is unknown before it is built."""
    if table is None:
        return 0
    try:
        described = describe(table)
    except UserError:
        return 0  # the rules on the design report it
    return 0 if described is None else sum(tap.startswith(PREFIX) for tap in described.taps)


def _paired(term: Term, of_student: int, of_teacher: int) -> dict[str, Any]:
    """Return a term's keys with feature maps of networks with these numbers of stages."""
    defaults = {key: getattr(term, key) for key in KEYS if getattr(term, key, None) is not None}
    if (tap := defaults.get("student_tap", "")) and tap.startswith(PREFIX):
        student, teacher = _one_stage(int(tap.removeprefix(PREFIX)), of_student, of_teacher)
        return {"student_tap": f"{PREFIX}{student}", "teacher_tap": f"{PREFIX}{teacher}"}
    shared = min(of_student, of_teacher)
    return {
        key: _with_last_stages(defaults[key], number, shared)
        for key, number in (("student_taps", of_student), ("teacher_taps", of_teacher))
        if key in defaults
    }


def _one_stage(default: int, of_student: int, of_teacher: int) -> tuple[int, int]:
    """Return the stages of student and teacher in place of a default stage of three.

    The last one stays the last one, another keeps its number in the student if the teacher has its
    counterpart.
    """
    last = of_student - 1
    student = last if default == LAST else min(max(default, of_student - of_teacher), last)
    return student, student + of_teacher - of_student


def _with_last_stages(taps: tuple[str, ...], number: int, shared: int) -> tuple[str, ...]:
    """Return the maps with the last `shared` of `number` stages in place of the three stages."""
    first = taps.index(STAGES[0])
    stages = (f"{PREFIX}{i}" for i in range(number - shared, number))
    return (*taps[:first], *stages, *taps[first + len(STAGES) :])
