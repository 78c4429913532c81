"""A sweep file: what it may say, every fault of it at once, and what a trial becomes."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from distill.recipe import compare_recipes
from distill.recipe.recipes import RecipeError
from distill.sweep import sweep_file
from distill.sweep.sweep_schema import Constraint, Space, Study, SweepFile
from distill.sweep.worker import with_cached_logits
from students.widest_designs import widest_designs

REPO = Path(__file__).parents[2]
ROWS = json.loads((REPO / "tests" / "students" / "architectures.json").read_text())["rows"]
ALONE = ["loss.kd=false", "loss.hard.weight=1"]
LR = {"log": [0.01, 0.5]}


DOCUMENT = (REPO / "docs" / "sweeps.md").read_text()


def made(**tables: Any) -> sweep_file.Sweep:
    values = {"recipe": "tiny", "set": ALONE, "study": {"trials": 4}, "space": {"optim.lr": LR}}
    return sweep_file.validate(values | tables, "mine", "mine.toml")


def refused(**tables: Any) -> list[str]:
    with pytest.raises(UserError) as raised:
        made(**tables)
    return str(raised.value).splitlines()


def test_file_and_command_options_are_combined(tmp_path: Path) -> None:
    path = tmp_path / "lr.toml"
    path.write_text(
        'recipe = "tiny"\nset = ["loss.kd=false"]\n[study]\ntrials = 3\n[space]\n'
        'optim.lr = { log = [0.01, 0.5] }\n"student.width" = { integer = [2, 8] }\n'
    )
    sweep = sweep_file.load(path, ["loss.hard.weight=1"], trials=7)
    assert (sweep.name, sweep.n_trials, sweep.metric) == ("lr", 7, "top1/val")
    recipe = sweep.trial_recipe({"optim.lr": 0.25, "student.width": 6}).recipe
    assert recipe.student is not None
    assert (recipe.optim.lr, recipe.student.width, recipe.loss.hard.weight) == (0.25, 6, 1)


@pytest.mark.parametrize(
    "name", ["x/../../../escaped", "/tmp/x", "..", ".", "a/b", "a\\b", "a\0b", "a" * 201]
)
def test_study_name_is_one_file_name(name: str) -> None:
    """It names the folder of the runs."""
    [_, line] = refused(study={"trials": 4, "name": name})
    assert line.startswith("  study.name = ") and "allowed: the name of one folder" in line


@pytest.mark.parametrize("name", ["..a", "lr sweep", "a" * 200, "é" * 100])
def test_any_other_study_name_is_accepted(name: str) -> None:
    assert made(study={"trials": 4, "name": name}).name == name


def test_every_fault_at_once() -> None:
    """Of the tables, and of the keys of those spaces that can be read."""
    lines = refused(
        study={"trials": 0, "sampler": "tpee", "colour": 1},
        space={
            "optim.lr": {"log": [0.5]},
            "train.epochs": {"integer": [9, 3]},
            "x": {},
            "optim": {"lrr": {"log": [0.1, 0.5]}, "momentum": [0.8, 0.9]},
            "loss.kd.temperature": {"choice": []},
        },
        constraint={"parameters": "many"},
    )
    assert lines[0] == "10 faults in mine.toml"
    text = "\n".join(lines)
    for found in (
        "study.trials = 0 is refused; allowed: a whole number (at least 1, at most 100_000)",
        'study.sampler = "tpee" is refused; allowed: "tpe" or "random"',
        "study.colour is not a key; allowed: name, trials",
        "space.train.epochs = {integer = [9, 3]}; allowed: the smaller first, then the larger",
        "space.x = {}; allowed: one of grid, choice, log, uniform, integer",
        'constraint.parameters = "many" is refused; allowed: a whole number',
        "space.optim.momentum = [0.8, 0.9] is not a space; allowed: a table of one of grid, choice",
        "space.loss.kd.temperature.choice = [] is refused; allowed: a list of at least 1",
        "space.optim.lrr: optim.lrr is not a key of a recipe; did you mean optim.lr?",
    ):
        assert found in text, text


def test_keys_and_values_are_checked_by_the_recipe() -> None:
    lines = refused(
        space={
            "optim.lrr": LR,
            "optim.momentum": {"uniform": [0.5, 1.0]},
            "optim.name": {"choice": ["sgd", "sdg"]},
            "train.precision": {"choice": ["fp32", "bf16"]},
            "size": {"grid": [{"student": {"width": 2}}, {"student": {"width": 0}}]},
            "student.width": {"integer": [2, 8]},
        },
        study={"trials": 2, "metric": "top1/test"},
    )
    text = "\n".join(lines)
    for found in (
        "space.optim.lrr: optim.lrr is not a key of a recipe; did you mean optim.lr?",
        "space.optim.momentum: optim.momentum = 1.0 is out of range; allowed: a number",
        'space.optim.name: optim.name = "sdg" is unknown',
        "space.train.precision: a process computes in one precision only",
        "space.size: student.width = 0 is out of range",
        "space.student.width and space.size both set student.width",
        'study.metric = "top1/test" is unknown; allowed: top1/val, top1/val_ema',
    ):
        assert text.count(found) == 1, (found, text)
    assert lines[0] == "7 faults in mine.toml"


def test_thousands_of_unknown_keys_are_refused_quickly() -> None:
    begun = time.process_time()
    lines = refused(space={f"optim.lrr{i}": LR for i in range(3_000)}, study={"trials": 2})
    assert time.process_time() - begun < 5
    assert lines[0].startswith("3000 faults")


def test_a_grid_is_not_trained_twice() -> None:
    grid = {"student.width": {"grid": [2, 4]}, "optim.lr": {"grid": [0.1, 0.2, 0.3]}}
    assert made(space=grid, study={"trials": 6}).n_trials == 6
    text = "\n".join(refused(space=grid, study={"trials": 7}))
    assert "study.trials = 7 is more than the 6 of the grid" in text
    assert "add train.seed to the space" in text


AVERAGED = [*ALONE, "ema.decay=0.9"]
EMA = {"choice": [False, {"decay": 0.9}]}


@pytest.mark.parametrize(
    ("tables", "values", "metric", "both"),
    [
        ({}, {}, "top1/val", False),
        ({"set": AVERAGED}, {}, "top1/val_ema", False),
        ({"set": AVERAGED, "study": {"trials": 2, "metric": "nll/val"}}, {}, "nll/val", True),
        ({"set": AVERAGED, "study": {"trials": 2, "metric": "nll/val_ema"}}, {}, None, False),
        ({"space": {"ema": EMA, "optim.lr": LR}}, {"ema": "decay 0.9"}, "top1/val", True),
    ],
)
def test_a_trial_measures_what_it_is_judged_by(
    tables: dict[str, Any], values: dict[str, Any], metric: str | None, both: bool
) -> None:
    """The network's own weights too, if they are the metric and an average exists."""
    sweep = made(**tables)
    assert sweep.metric == (metric or "nll/val_ema")
    recipe = sweep.trial_recipe({"optim.lr": 0.1} | values).recipe
    assert recipe.train.validate_both is both
    assert not sweep.base.recipe.train.validate_both, "a storage that is there knows this recipe"


@pytest.mark.parametrize(
    ("tables", "found"),
    [
        ({"set": [*ALONE, "data.holdout=0"]}, "data.holdout = 0: trials need held-out"),
        ({"set": []}, "tiny needs a teacher, the same for all trials; name it: --teacher"),
        ({"study": {"trials": 2, "metric": "nll/val_ema"}}, "needs [ema], and the recipe has none"),
        (
            {"set": AVERAGED, "space": {"ema": EMA}},
            'study.metric = "top1/val_ema" needs [ema], and space.ema turns it off in some '
            'trials; type metric = "top1/val" in [study]',
        ),
        ({"study": {}}, "study.trials is missing; only a sweep of grids"),
        ({"space": {}}, "space: nothing is varied; allowed: a table of keys"),
        (
            {"set": [*ALONE, "train.minutes=1"], "study": {"trials": 2, "pruner": "hyperband"}},
            'study.pruner = "hyperband" counts epochs',
        ),
    ],
)
def test_recipe_must_suit_a_sweep(tables: dict[str, Any], found: str) -> None:
    assert any(found in line for line in refused(**tables)), refused(**tables)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.toml cannot be read: No such file"):
        sweep_file.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("recipe =")
    with pytest.raises(UserError, match="bad.toml is not TOML: Invalid value"):
        sweep_file.load(tmp_path / "bad.toml")


def test_grids_are_crossed_and_end_by_themselves() -> None:
    size = {"grid": [{"student": {"blocks": 1, "width": 4}}, {"student": {"blocks": 2}}]}
    sweep = made(space={"size": size, "optim.lr": {"grid": [0.1, 0.2, 0.3]}}, study={})
    assert sweep.n_trials == 6
    assert sweep.cells[0] == {"size": "blocks 1, width 4", "optim.lr": "0.1"}
    assert len({tuple(cell.values()) for cell in sweep.cells}) == 6
    student = sweep.trial_recipe({"size": "blocks 2", "optim.lr": "0.3"}).recipe.student
    assert student is not None
    assert (student.blocks, student.width) == (2, 4)  # the recipe's own width


def test_a_table_as_an_option_may_be_absent() -> None:
    sweep = made(space={"augment.crop": {"choice": [False, {"padding": 2}]}})
    assert sweep.trial_recipe({"augment.crop": "false"}).recipe.augment.crop is None
    crop = sweep.trial_recipe({"augment.crop": "padding 2"}).recipe.augment.crop
    assert crop is not None
    assert crop.padding == 2


def test_the_constraint_is_the_recipes_own_budget() -> None:
    """`parameters < n`, in the closed form, before anything is built."""
    sweep = made(space={"student.width": {"integer": [1, 9]}}, constraint={"parameters": 1454})
    with pytest.raises(RecipeError, match="1 too many for fewer than 1,454"):
        sweep.trial_recipe({"student.width": 4})
    assert sweep.trial_recipe({"student.width": 3}).recipe.student is not None


def test_trials_with_same_images_share_cached_logits() -> None:
    with_teacher = [*ALONE[1:], "teacher.runs=['t']"]
    sweep, note = with_cached_logits(made(set=with_teacher))
    assert sweep.base.recipe.cache is not None
    assert "cached by the first trials and read by the others" in note
    assert sweep.trial_recipe({"optim.lr": 0.1}).recipe.cache is not None
    for space, found in (
        ({"mix.cutmix.prob": {"uniform": [0.1, 0.9]}}, "mix.cutmix.prob varies"),
        ({"loss.at.weight": {"uniform": [0.1, 0.9]}}, "every trial runs the teacher"),
    ):
        sweep, note = with_cached_logits(made(set=with_teacher, space=space))
        assert sweep.base.recipe.cache is None
        assert found in note
    assert with_cached_logits(made())[1] == "no trial has a teacher"
    narrow = made(
        set=with_teacher, constraint={"parameters": 500}
    )  # fewer than the recipe's own student
    sweep, note = with_cached_logits(narrow)
    assert "cached by the first trials" in note and sweep.base.recipe.cache is not None


def test_the_shipped_sweeps_can_be_read() -> None:
    files = sorted((REPO / "recipes" / "sweeps").glob("*.toml"))
    assert len(files) >= 2
    for file in files:
        sweep = sweep_file.load(file, ["teacher.runs=['t']"])
        assert sweep.n_trials > 0


def test_table_8_has_widest_network_of_each_depth() -> None:
    sweep = sweep_file.load(REPO / "recipes" / "sweeps" / "report_table8.toml")
    depths = [
        (row["spec"]["stages"], row["spec"]["blocks"])
        for row in ROWS
        if row["name"].startswith("table8-")
    ]
    widest = [widest_designs(5_000_000, [n], [blocks])[0] for n, blocks in depths]
    assert sweep.n_trials == 22
    for cell, row in zip(sweep.cells, widest, strict=True):
        student = sweep.trial_recipe(cell).recipe.student
        assert student is not None
        found = {name: getattr(student, name) for name in ("stages", "blocks", "width")}
        assert found == {name: row[name] for name in found}
    assert compare_recipes.values(sweep.base.recipe)["train.epochs"] == 50


def test_the_file_in_the_documents_is_taken(tmp_path: Path) -> None:
    indented = re.findall(r"^    (.*)$|^$", DOCUMENT.split("If the file is")[0], re.MULTILINE)
    (tmp_path / "mine.toml").write_text("\n".join(indented))
    planned = sweep_file.load(tmp_path / "mine.toml", ["teacher.runs=['RUN']"], None)
    assert (planned.n_trials, planned.file.constraint.parameters) == (24, 100_000)
    assert {kind for space in planned.file.space.values() for kind in space.model_fields_set} == {
        "log", "uniform", "integer", "choice",
    }  # fmt: skip


def test_keys_in_documents_are_those_of_tables() -> None:
    keys = DOCUMENT.split("## The keys")[1].split("\n- ")[0]
    cells = re.findall(r"^\| (`[\w.*]+`)? ?\| (.*`) \|$", keys, re.MULTILINE)
    documented = {name.strip("`"): set(re.findall(r"`(\w+)`", keys)) for name, keys in cells}
    aliases = {field.alias or name for name, field in SweepFile.model_fields.items()}
    assert documented == {
        "": aliases,
        "study": set(Study.model_fields),
        "constraint": set(Constraint.model_fields),
        "space.*": set(Space.model_fields),
    }


def test_further_faults_of_a_sweep_are_counted() -> None:
    lines = str(sweep_file._sweep_error("a", [f"fault {n}" for n in range(1000)])).splitlines()
    assert lines[0] == "1000 faults in a" and len(lines) == 102
    assert lines[-1] == "  and 900 more"
