"""Every shipped recipe runs: two steps at batch 4, on procedural images, in small."""

from pathlib import Path

import pytest

from distill import recipe as recipes
from distill.events import TOTAL, Step, loss_name
from tests.runs import train

ROOT = Path(__file__).parents[2]
WHOLE = sorted([*(ROOT / "recipes").glob("*.toml"), *(ROOT / "recipes/reports").glob("*.toml")])
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
TEACHER = ["teacher.network=wrn", "teacher.depth=10", "teacher.widen=1"]


def in_small(spec: str, teacher: Path) -> list[str]:
    """Overrides that make a recipe a matter of a second and leave what it teaches as it is."""
    recipe = recipes.load(spec).recipe
    if recipe.student is None:
        return [*SMALL, *TEACHER]
    more = [f"teacher.runs=['{teacher}']"] if recipes.is_taught(recipe) else []
    if recipe.student.projector_width:
        more.append("student.projector_width=64")  # of the tests' teacher
    return [*SMALL, *STUDENT, *more]


@pytest.fixture(autouse=True)
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 images of which 2 in 20 are held out make 4 steps; two are enough."""
    from distill.data.loader import Loader

    begin = Loader.__init__

    def short(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        begin(self, *args, **kwargs)
        self.steps_per_epoch = 2

    monkeypatch.setattr(Loader, "__init__", short)


def ran(spec: str, teacher: Path, out: Path) -> list[Step]:
    recipe = recipes.load(spec).recipe
    role = "student" if recipe.student else "teacher"
    _, events = train(out, *in_small(spec, teacher), recipe=spec, role=role)
    return [event for event in events if isinstance(event, Step)]


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_a_recipe_runs_two_steps(path: Path, teacher: Path, tmp_path: Path) -> None:
    steps = ran(path.stem, teacher, tmp_path / "run")
    assert [step.step for step in steps] == [1, 2]
    terms = recipes.load(path.stem).recipe.loss.terms()
    logged = {loss_name(name) for name in [*terms, TOTAL]}
    assert logged >= {key for key in steps[0].metrics if key.startswith("loss/")}
    assert set.union(*(set(step.metrics) for step in steps)) >= logged


@pytest.mark.parametrize("path", INGREDIENTS, ids=lambda path: path.stem)
def test_an_ingredient_runs_two_steps_composed_with_kd(
    path: Path, teacher: Path, tmp_path: Path
) -> None:
    assert len(ran(f"kd+{path.stem}", teacher, tmp_path / "run")) == 2


def test_what_was_run_is_what_is_shipped() -> None:
    names = {path.stem for path in [*WHOLE, *INGREDIENTS]}
    assert names == {name for name, _, _ in recipes.shipped()}
    assert len(names) == len(WHOLE) + len(INGREDIENTS) >= 36
    print(f"{len(WHOLE)} recipes and {len(INGREDIENTS)} ingredients")
