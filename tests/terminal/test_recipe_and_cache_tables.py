"""Tables on a narrow and a wide terminal; a printed recipe is still a recipe."""

from io import StringIO

import pytest
from rich.console import Console, RenderableType

from distill.data.sources import load_data_set
from distill.errors import UserError
from distill.recipe import recipes
from distill.terminal.recipe_and_cache_tables import (
    _operations,
    fact_lines,
    recipe_origins,
    recipe_table,
)

SHIPPED = recipes.shipped()
INGREDIENTS = [name for name, path, _ in SHIPPED if path.parent.name == "ingredients"]
ALONE = [name for name, path, _ in SHIPPED if path.parent.name == "recipes"]
PUBLISHED = [name for name, path, _ in SHIPPED if path.parent.name == "published"]
REPORTS = [name for name, path, _ in SHIPPED if path.parent.name == "reports"]


def printed(what: RenderableType, width: int, *, soft_wrap: bool = False) -> list[str]:
    out = StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(what, soft_wrap=soft_wrap, highlight=False)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_password_in_source_of_data_is_hidden() -> None:
    source = "https://user:hunter2@example.org/images?key=hunter3"
    resolved = recipes.load("tiny", [f"data.source={source}"])
    text = recipe_origins(resolved).plain
    assert 'source = "https://***:***@example.org/images?key=***"' in text
    with pytest.raises(UserError, match=r"data source 'https://\*\*\*:\*\*\*@example") as caught:
        load_data_set.check(source)
    assert "hunter" not in text + str(caught.value)


@pytest.mark.parametrize("width", [80, 120])
def test_the_listing_fits_and_loses_nothing(width: int) -> None:
    lines = printed(recipe_table(SHIPPED), width)
    words = " ".join(lines).split()
    assert max(map(len, lines)) <= width
    assert not any("…" in word for word in words)
    for _, _, about in SHIPPED:
        assert set(about.claim.split()) <= set(words)
        shown = "–" if about.accuracy == "not yet run" else about.accuracy
        assert set(shown.split()) <= set(words)
    assert "not yet run" not in " ".join(words)


@pytest.mark.parametrize("width", [80, 120])
def test_ingredients_stand_under_their_own_heading(width: int) -> None:
    names = [line.split("  ")[0] for line in printed(recipe_table(SHIPPED), width)]
    names = [name for name in names if name and not name.startswith("─")]
    assert len(ALONE) > 0 and len(INGREDIENTS) > 0 and len(REPORTS) > 0
    sections = {"ingredients": INGREDIENTS, "published": PUBLISHED, "reports": REPORTS}
    assert all(sections.values())
    below = [line for heading, rows in sections.items() for line in (heading, *rows)]
    assert names == ["recipe", *ALONE, *below]


SPECS = [*ALONE, *(f"kd+{name}" for name in INGREDIENTS), "kd_cutmix+quickstart"]


@pytest.mark.parametrize("spec", SPECS)
def test_a_printed_recipe_is_a_recipe(spec: str) -> None:
    resolved = recipes.load(spec, ["data.source='a = \"b\" # [c] \\ 🐈'"])
    lines = printed(recipe_origins(resolved), 40, soft_wrap=True)
    assert recipes.loads("\n".join(lines), spec) == resolved.recipe


def test_each_value_is_followed_by_who_set_it() -> None:
    resolved = recipes.load("kd_cutmix+quickstart", ["optim.lr=0.3"])
    table, origins = "", {}
    for line in printed(recipe_origins(resolved), 40, soft_wrap=True):
        if line.startswith("["):
            table = line.strip("[]")
        elif line:
            value, _, origin = line.rpartition("  # ")
            origins[f"{table}.{value.split(' = ')[0]}"] = origin
    assert origins == {key: origin for key, origin in resolved.origins.items() if key in origins}
    assert origins.keys() == resolved.origins.keys()
    assert origins["optim.lr"] == "--set"
    assert origins["loss.kd.temperature"] == "recipes/kd_cutmix.toml"
    assert origins["data.source"] == "recipes/ingredients/quickstart.toml"
    assert origins["train.seed"] == "default"


def test_facts_are_one_a_line_however_long() -> None:
    facts = {
        "parameters": 4_697_162,
        "top1": 0.94817,
        "within_budget": False,
        "fingerprint": "0123456789abcdef" * 4,
        "class_names": ["cat", "dog"],
        "faults": [],
    }
    assert printed(fact_lines(facts), 40, soft_wrap=True) == [
        "parameters     4,697,162",
        "top1           0.9482",
        "within_budget  no",
        "fingerprint    " + "0123456789abcdef" * 4,
        "class_names    cat, dog",
        "faults         –",
    ]


def test_cache_shows_augmentation_without_python_syntax() -> None:
    pipeline = "Pipeline(crop=Crop(padding=4), flip=Flip(prob=0.5, alternate=False), erase=None)"
    assert _operations(pipeline) == "crop padding 4; flip prob 0.5"
    assert _operations("other") == "other"


def test_switches_that_are_off_are_not_shown() -> None:
    shown = _operations
    assert shown("Pipeline(flip=Flip(prob=0.5, alternate=False))") == "flip prob 0.5"
    assert shown("Pipeline(flip=Flip(alternate=True, prob=1.0))") == "flip alternate True, prob 1.0"
    assert shown("Pipeline(a=A(off=False, n=2), b=B(off=False))") == "a n 2; b"
