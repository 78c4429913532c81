"""Every shipped recipe runs: two steps at batch 4, on procedural images, in small."""

import math
from pathlib import Path

import pytest

from distill.events import TOTAL
from distill.recipe import recipes
from distill.training.loop import step
from tests.make_runs import prepared

ROOT = Path(__file__).parents[2]
WHOLE = sorted(
    path
    for folder in ("recipes", "recipes/published", "recipes/reports")
    for path in (ROOT / folder).glob("*.toml")
)
INGREDIENTS = sorted((ROOT / "recipes/ingredients").glob("*.toml"))
SMALL = [
    "data.source=synthetic",
    "data.train_images=20",
    "train.epochs=1",
    "train.batch_size=4",
    "train.log_every=1",
    "optim.warmup_epochs=0",
]
STUDENT = ["student.blocks=1", "student.width=4"]
CONSTANT = ["optim.schedule=constant", "optim.milestones=[]"]  # one epoch has no milestones
WRN = ["teacher.network=wrn", "teacher.depth=10", "teacher.widen=1"]
RESNET = ["teacher.blocks=1", "teacher.width=4"]


def in_small(spec: str, teacher: Path) -> list[str]:
    """Overrides that shorten a recipe to a second and leave its method unchanged."""
    recipe = recipes.load(spec).recipe
    shared = [*SMALL, *(CONSTANT if recipe.optim.milestones else [])]
    if recipe.student is None:
        is_resnet = recipe.teacher is not None and recipe.teacher.network == "resnet"
        return [*shared, *(RESNET if is_resnet else WRN)]
    more = [f"teacher.runs=['{teacher}']"] if recipes.has_teacher(recipe) else []
    if recipe.student.projector_width:
        more.append("student.projector_width=64")  # of the tests' teacher
    if recipe.loss.fsp:
        more.append("student.width=16")  # channels of the tests' teacher
    student = STUDENT if recipe.student.network == "resnet" else ["student.network=resnet8"]
    return [*shared, *student, *more]


def ran(spec: str, teacher: Path) -> list[tuple[float, dict[str, float]]]:
    """The share of the training that is done, and the losses, of two steps at batch 4."""
    role = "student" if recipes.load(spec).recipe.student else "teacher"
    run = prepared(*in_small(spec, teacher), recipe=spec, role=role)
    assert run.loader.batch_size == 4
    return [
        (k / run.total_steps, {name: value.item() for name, value in step(run, k).items()})
        for k in (0, 1)
    ]


@pytest.mark.long
@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_a_recipe_runs_two_steps(path: Path, teacher: Path) -> None:
    for done, losses in ran(path.stem, teacher):
        assert set(losses) == {*terms_on(path.stem, done), TOTAL}
        assert all(map(math.isfinite, losses.values()))


def terms_on(spec: str, done: float) -> set[str]:
    """The terms that are on when this share of the training is done."""
    terms = recipes.load(spec).recipe.loss.terms().items()
    return {name for name, term in terms if term.when.begin <= done < term.when.end}


@pytest.mark.long
@pytest.mark.parametrize("path", INGREDIENTS, ids=lambda path: path.stem)
def test_an_ingredient_runs_two_steps_composed_with_kd(path: Path, teacher: Path) -> None:
    spec = f"kd+{path.stem}"
    terms = recipes.load(spec).recipe.loss.terms().keys()
    assert "hard" in terms and len(terms) >= 2
    for done, losses in ran(spec, teacher):
        assert set(losses) == {*terms_on(spec, done), TOTAL}


def test_what_was_run_is_what_is_shipped() -> None:
    names = {path.stem for path in [*WHOLE, *INGREDIENTS]}
    assert names == {name for name, _, _ in recipes.shipped()}
    assert len(names) == len(WHOLE) + len(INGREDIENTS) >= 36
    print(f"{len(WHOLE)} recipes and {len(INGREDIENTS)} ingredients")
