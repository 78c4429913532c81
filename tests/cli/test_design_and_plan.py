"""`design` and `plan`: networks of a budget, recipes that fit into minutes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.recipe import recipes
from distill.recipe.count_parameters import design_of
from distill.time_plan import time_plan
from distill.time_plan.shipped_candidates import Candidate, training
from tests.cli.command_line import REPO, RunCli, assert_refused


@pytest.mark.long
def test_widest_designs_are_listed_as_json_and_drawn(run_cli: RunCli, tmp_path: Path) -> None:
    result = run_cli(
        "design", "--stages", "3", "--blocks", "1-2", "--json", "--plot", tmp_path / "p.svg"
    )
    rows = json.loads(result.out)
    assert [(row["stages"], row["blocks"], row["width"]) for row in rows] == [
        (3, 1, 129),
        (3, 2, 85),
    ]
    assert "3 stages" in (tmp_path / "p.svg").read_text()
    at_most = run_cli("design", "--max-params", rows[0]["parameters"], "--stages", 3, "--blocks", 1,
                   "--rules", "nyu2025", "--json")  # fmt: skip
    assert json.loads(at_most.out)[0]["width"] == 129
    assert "85" in run_cli("design", "--stages", 3).out
    command = ("design", "--stages", 3, "--blocks", "0-1", "--asymmetric")
    pooled = run_cli(*command, "--downsample", "pool", "--json")
    assert {"stages": 3, "blocks": [1, 0, 1], "width": 110} in [
        {key: row[key] for key in ("stages", "blocks", "width")} for row in json.loads(pooled.out)
    ]
    assert_refused(
        run_cli("design", "--blocks", "0-1"), "--blocks 0-1 is not a range of numbers of at least 1"
    )


@pytest.fixture
def planned_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan chooses from one recipe, seconds of a small network."""
    sets = ("student.width=4", "train.epochs=2", "data.train_images=1000")
    small = training("student", "student_alone+two_cores", sets)
    about = recipes.About(measured_accuracy=41.5, seeds=2)
    monkeypatch.setattr(time_plan, "candidates", lambda: iter([Candidate(about, small, None)]))


@pytest.mark.long
def test_a_plan_as_a_table_and_as_json(run_cli: RunCli, planned_recipe: None) -> None:
    result = run_cli("plan", "--minutes", 100)
    assert result.code == 0 and result.err == ""
    assert "1 recipe fits into 100 minutes on" in result.out
    assert "41.50 %" in result.out and "2 seeds" in result.out
    command = "python cli.py distill --recipe student_alone+two_cores --set student.width=4"
    assert f"  {command} --set train.epochs=2 --set data.train_images=1000\n" in result.out
    found = json.loads(run_cli("plan", "--minutes", 100, "--json").out)
    assert found.keys() == {
        "minutes", "rules", "data", "device", "processor_share", "best", "quickest", "recipes",
        "against_the_rules", "measured_s", "published", "fills_minutes", "broken_rules",
    }  # fmt: skip
    (row,) = found["recipes"]
    assert row.keys() == {
        "recipe", "role", "accuracy", "seeds", "fits", "minutes", "low", "high", "is_timed",
        "teacher", "training", "commands",
    }  # fmt: skip
    assert row["training"].keys() == {
        "recipe", "overrides", "network", "parameters", "flop", "minutes", "low", "high",
        "is_timed", "steps",
    }  # fmt: skip
    assert found["best"] == found["quickest"] == row["recipe"] == "student_alone+two_cores"
    assert row["is_timed"] and row["training"]["steps"] >= 3
    assert 0 < row["low"] < row["minutes"] < row["high"] < 5
    assert (row["accuracy"], row["seeds"], row["teacher"]) == (41.5, 2, None)


@pytest.mark.long
def test_plan_without_a_fit_names_the_quickest(
    run_cli: RunCli, planned_recipe: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_plan, "FORWARD_SHARE", 1e6)  # hours of validation
    result = run_cli("plan", "--minutes", 1)
    assert result.code == 0
    assert "Nothing fits into 1 minute on" in result.out
    assert "The quickest is student_alone+two_cores: about" in result.out


def test_help_of_plan_says_how_long_it_takes(run_cli: RunCli) -> None:
    words = " ".join(run_cli("plan", "--help").out.split())
    assert "which takes about a minute, or longer if other programs are running" in words


def test_plan_refuses_wrong_requests(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(
        run_cli("plan", "--rules", "nyu1999"), "--rules nyu1999 is unknown; allowed: nyu2022"
    )
    assert_refused(run_cli("plan", "--data", "nowhere"), "data source 'nowhere' is neither")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert_refused(run_cli("plan"), "plan measures one process")


@pytest.mark.slow
def test_plan_of_every_recipe_takes_less_than_minute() -> None:
    began_at = time.monotonic()
    made = subprocess.run(
        [sys.executable, "cli.py", "plan", "--json"], cwd=REPO, capture_output=True, check=True
    )
    assert time.monotonic() - began_at < 60
    assert len(json.loads(made.stdout)["recipes"]) > 20


@pytest.mark.parametrize("recipe", ["fast_2022_kd", "fast_2022_alone"])
def test_recipes_for_the_rules_of_2022_follow_them(recipe: str, run_cli: RunCli) -> None:
    checked = run_cli("design", "--rules", "nyu2022", "--check", recipe)
    assert checked.code == 0
    assert "follows the rules of NYU ECE-GY 7123, 2022: 4,903,242 parameters" in checked.out


def test_design_checks_a_recipe_against_rules(run_cli: RunCli) -> None:
    legal = run_cli("design", "--rules", "nyu2022", "--check", "nyu2022_n3_b2_c85")
    assert legal.out == (
        "nyu2022_n3_b2_c85 follows the rules of NYU ECE-GY 7123, 2022: 4,895,755 parameters\n"
    )
    over = run_cli("design", "--rules", "nyu2022", "--check", "nyu2023_og_64")
    assert over.code == 1
    assert "the input layer's filters are F_1 wide: they are 7 wide, and F_1 is 3" in over.err
    assert "fewer than 5,000,000 parameters: it has 5,000,266" in over.err
    as_json = run_cli("design", "--rules", "nyu2022", "--check", "nyu2023_og_64", "--json")
    values = json.loads(as_json.out)
    assert as_json.code == 1 and values["keeps"] is False
    assert (values["parameters"], len(values["broken"])) == (
        5_000_266,
        len(over.err.splitlines()) - 1,
    )
    legal = run_cli("design", "--rules", "nyu2022", "--check", "nyu2022_n3_b2_c85", "--json")
    assert legal.code == 0 and json.loads(legal.out)["broken"] == []


def test_design_checks_a_run_and_changed_keys(run_cli: RunCli, tmp_path: Path) -> None:
    made = recipes.load("nyu2022_n3_b2_c85").recipe
    (tmp_path / "recipe.toml").write_text(recipes.dumps(made))
    command = ("design", "--rules", "nyu2022", "--check", tmp_path)
    legal = run_cli(*command)
    assert legal.code == 0
    assert f"{tmp_path} follows the rules of NYU ECE-GY 7123, 2022: 4,895,755" in legal.out
    wide = run_cli(*command, "--set", "student.width=90")
    assert wide.code == 1 and "fewer than 5,000,000 parameters: it has 5," in wide.err
    assert_refused(run_cli("design", "--set", "student.width=90"), "--set changes the recipe of")


def test_designs_name_their_rules_and_a_command(run_cli: RunCli) -> None:
    shown = run_cli("design", "--rules", "nyu2025", "--stages", "3", "--blocks", "1-2")
    assert "Rules nyu2025: at most 5,000,000 parameters.\n" in shown.err
    (line,) = [line for line in shown.err.splitlines() if "python cli.py" in line]
    command = line.partition(": ")[2]
    assert command == (
        "python cli.py distill --recipe student_alone --set student.stages=3 "
        "--set student.blocks=2 --set student.width=85"
    )
    sets = command.split(" --set ")[1:]
    assert design_of("student_alone", sets)[0].parameters == 4_895_755


@pytest.mark.parametrize("typed", ["5M", "0", "-3", "1e6"])
def test_budget_is_a_whole_number(run_cli: RunCli, typed: str) -> None:
    result = run_cli("design", "--max-params", typed)
    assert_refused(result, f"--max-params {typed} is not a whole number", "--max-params 5000000.")


def test_design_refuses_wrong_requests(run_cli: RunCli) -> None:
    assert_refused(
        run_cli("design", "--check", "kd"), "Type it with --rules nyu2022 or --rules nyu2025."
    )
    assert_refused(
        run_cli("design", "--rules", "nyu2025", "--max-params", 6_000_000),
        "more than the rules of NYU, 2025",
        "allow: at most 5,000,000.",
    )
    assert_refused(
        run_cli("design", "--rules", "nyu2022", "--check", "kd", "--plot", "a.svg"),
        "--check and --plot exclude each other",
    )
    assert_refused(
        run_cli("design", "--max-params", 9), "has fewer than 9 parameters", "larger --max-params"
    )
    assert_refused(
        run_cli("design", "--stages", "5-2"),
        "--stages 5-2 is not a range of numbers of at least 1",
    )
