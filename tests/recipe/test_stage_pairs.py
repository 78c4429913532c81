"""The stages that terms read by default, for networks of any numbers of stages."""

import pytest

from distill.recipe import recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.recipe.recipes import Recipe
from distill.recipe.schema import Teacher
from distill.recipe.stage_pairs import with_paired_stages

THREE, FOUR = Teacher(network="wrn-16-2"), Teacher(network="vgg13")
SMALL = ("student.network=resnet", "student.stages=2", "student.blocks=1", "student.width=8")


def recipe_of(student: str, spec: str, *overrides: str) -> Recipe:
    networks = SMALL if student == "two stages" else (f"student.network={student}",)
    return recipes.load(spec, [*networks, *overrides]).recipe


def maps(recipe: Recipe, name: str) -> tuple[list[str], list[str]]:
    """The student's maps and the teacher's."""
    term = recipe.loss.terms()[name]
    found = [
        getattr(term, f"{role}_taps", None) or [getattr(term, f"{role}_tap")]
        for role in ("student", "teacher")
    ]
    return list(found[0]), list(found[1])


def stages(*numbers: int) -> list[str]:
    return [f"stages.{number}" for number in numbers]


@pytest.mark.parametrize("spec", ["at", "sp", "nst", "fitnet", "reviewkd", "vid", "ab", "ft"])
def test_three_stages_keep_the_defaults(spec: str) -> None:
    recipe = recipe_of("resnet20", spec)
    paired = with_paired_stages(recipe, THREE)
    assert paired == recipe and recipe_fingerprint(paired) == recipe_fingerprint(recipe)


@pytest.mark.parametrize(
    ("student", "teacher", "of_student", "of_teacher"),
    [
        ("resnet20", FOUR, (0, 1, 2), (1, 2, 3)),
        ("vgg8", THREE, (1, 2, 3), (0, 1, 2)),
        ("vgg8", FOUR, (0, 1, 2, 3), (0, 1, 2, 3)),
        ("two stages", THREE, (0, 1), (1, 2)),
        ("two stages", FOUR, (0, 1), (2, 3)),
    ],
)
def test_stages_are_paired_from_the_last(student, teacher, of_student, of_teacher) -> None:
    def paired(spec: str) -> tuple[list[str], list[str]]:
        return maps(with_paired_stages(recipe_of(student, spec), teacher), spec)

    for spec in ("at", "vid", "ab"):
        assert paired(spec) == (stages(*of_student), stages(*of_teacher))
    expected = [*stages(*of_student), "features"], [*stages(*of_teacher), "features"]
    assert paired("reviewkd") == expected
    for spec in ("sp", "nst", "ft"):
        assert paired(spec) == (stages(of_student[-1]), stages(of_teacher[-1]))
    assert paired("pkt") == (["features"], ["features"])


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ("resnet20", THREE, (1, 1)),
        ("vgg8", FOUR, (1, 1)),  # RepDistiller's hint layer, of four stages too
        ("resnet20", FOUR, (1, 2)),
        ("vgg8", THREE, (1, 0)),
        ("two stages", FOUR, (1, 3)),
    ],
)
def test_fitnet_keeps_its_distance_to_the_last(student, teacher, expected) -> None:
    paired = with_paired_stages(recipe_of(student, "fitnet"), teacher)
    assert maps(paired, "fitnet") == (stages(expected[0]), stages(expected[1]))


def test_given_maps_stay() -> None:
    given = [f'loss.at.{role}_taps=["stages.0","stages.1"]' for role in ("student", "teacher")]
    recipe = recipe_of("resnet20", "at", *given)
    assert with_paired_stages(recipe, FOUR) == recipe


def test_unknown_numbers_of_stages_change_nothing() -> None:
    recipe = recipe_of("resnet20", "at")
    for teacher in (None, Teacher(network="timm/resnet18")):
        assert with_paired_stages(recipe, teacher) == recipe


def test_resumed_run_reads_its_earlier_maps() -> None:
    """A run of an earlier version, which read the first three stages of four."""
    recipe = recipe_of("vgg8", "at")
    earlier = recipes.loads(recipes.dumps(recipe), "recipe.toml")
    assert with_paired_stages(recipe, FOUR, earlier) == recipe
