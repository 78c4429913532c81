"""Successive halving over the legal designs, without training."""

from pathlib import Path

import pytest

from distill.errors import UserError
from distill.recipe import recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.recipe.recipes import ResolvedRecipe
from distill.runs.run_folder import RunFolder, write_json, write_text
from distill.sweep import search_student_design as halving
from distill.sweep import sweep_summary
from distill.sweep.storage import Storage, url_of
from distill.sweep.worker import Reader
from students.design import Design

ALONE = ("loss.kd=false", "loss.hard.weight=1")


def search_of(n: int, **how: int) -> halving.Search:
    designs = tuple({"stages": 1, "blocks": 1, "width": width} for width in range(2, 2 + n))
    options = {"epochs": 27, "n_rungs": 3, "eta": 3, "name": "search-tiny"}
    return halving.Search("tiny", ALONE, designs, 5_000_000, **options | how)


def test_each_rung_trains_a_share_for_longer() -> None:
    nine = search_of(22)
    assert (nine.lengths(), nine.sizes()) == ([3, 9, 27], [22, 8, 3])
    four = search_of(6, epochs=8, eta=2, n_rungs=4)
    assert (four.lengths(), four.sizes()) == ([1, 2, 4, 8], [6, 3, 2, 1])
    assert search_of(4, epochs=2).lengths() == [1, 1, 2]


def test_the_warm_up_keeps_its_share() -> None:
    warm = (*ALONE, "optim.warmup_epochs=3")
    search = halving.Search("tiny", warm, search_of(3).designs, 9_000, 27, 3, 3, "search-tiny")
    rungs = [search.rung(number, search.designs).base.recipe for number in range(3)]
    assert [each.optim.warmup_epochs for each in rungs] == pytest.approx([1 / 3, 1, 3])
    assert [each.train.epochs for each in rungs] == [3, 9, 27]


def test_legal_designs_are_widest_of_each_depth() -> None:
    recipe = recipes.load("tiny", [*ALONE, "student.kernel=5"]).recipe
    designs, too_many = halving.legal_designs(
        recipe, "nyu2022", 60_000, range(1, 4), range(1, 3), asymmetric=False
    )
    assert too_many == 60_000
    assert [(d["stages"], d["blocks"]) for d in designs] == [
        (n, blocks) for n in (1, 2, 3) for blocks in (1, 2)
    ]
    for each in designs:
        wider = each | {"width": each["width"] + 1}
        ours, theirs = (Design.of(**d, kernel=5).parameters for d in (each, wider))
        assert ours < too_many <= theirs


def test_course_rules_are_followed() -> None:
    recipe = recipes.load("tiny", [*ALONE, "student.activation=gelu"]).recipe
    with pytest.raises(UserError, match=r"0 designs .* follow the rules of NYU ECE-GY 7123"):
        halving.legal_designs(recipe, "nyu2022", 60_000, [1, 2], [1, 2], asymmetric=False)
    assert (
        halving.legal_designs(recipe, "nyu2025", 60_000, [1, 2], [1], asymmetric=False)[1] == 60_001
    )
    with pytest.raises(UserError, match=r"^1 design of fewer than 60,001 parameters follows"):
        halving.legal_designs(recipe, "nyu2025", 60_000, [1], [1], asymmetric=False)
    with pytest.raises(UserError, match="has no \\[student\\]"):
        halving.legal_designs(
            recipes.load("teacher_wrn").recipe, "nyu2022", 9, [1, 2], [1, 2], asymmetric=False
        )


@pytest.mark.long
def test_the_best_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of a design is its width here, and the widest is never trained to its end."""
    trained: dict[int, list[int]] = {}
    printed: list[str] = []

    def train(resolved: ResolvedRecipe, folder: RunFolder, read: Reader) -> None:
        recipe = resolved.recipe
        assert recipe.student is not None and recipe.student.width is not None
        assert recipe.train.epochs is not None
        trained.setdefault(recipe.train.epochs, []).append(recipe.student.width)
        write_text(folder.recipe, recipes.dumps(recipe))
        result = {"metrics": {"top1/val": recipe.student.width / 100}}
        write_json(
            folder.result_file,
            result | {"recipe_fingerprint": recipe_fingerprint(recipe)},
        )

    search = search_of(9, epochs=9, eta=3)
    opened = Storage(url_of(None, tmp_path), 20)
    tested: list[Path] = []
    monkeypatch.setattr(sweep_summary, "measure_later", lambda folder: tested.append(folder.path))
    found = halving.search(search, opened, tmp_path, train, printed.append)
    assert tested == [tmp_path / "rung-3" / "trial-0000"], "the designs of no other rung"
    assert trained == {1: list(range(2, 11)), 3: [10, 9, 8], 9: [10]}
    assert found["best"]["values"] == {"design": "stages 1, blocks 1, width 10"}
    assert [len(rung["values"]) for rung in found["rungs"]] == [9, 3, 1]
    assert found["sweep"] == "search-tiny"
    best = recipes.load(str(tmp_path / "best.toml")).recipe
    assert best.student is not None
    assert (best.student.width, best.train.epochs) == (10, 9)
    assert [line for line in printed if line.startswith("rung")] == [
        "rung 1 of 3: 9 designs, 1 epoch each, from scratch",
        "rung 2 of 3: 3 designs, 3 epochs each, from scratch",
        "rung 3 of 3: 1 design, 9 epochs each, from scratch",
    ]
    again = halving.search(search, opened, tmp_path, train, printed.append)
    assert again["best"] == found["best"]
    assert sum(map(len, trained.values())) == 13, "what is done is not repeated"


def test_folder_of_a_rung_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / "search"
    place.mkdir()
    (place / "rung-2").symlink_to(tmp_path / "elsewhere")
    opened = Storage(url_of(None, place), 20)
    with pytest.raises(UserError, match=rf"^{place}/rung-2 is a symbolic link: .*\nDelete "):
        halving.search(search_of(9, epochs=9, eta=3), opened, place, pytest.fail, print)
    assert list((tmp_path / "elsewhere").iterdir()) == []
