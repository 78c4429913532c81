"""`seeds` and `search`: several runs of a recipe and their controls."""

import json
from pathlib import Path

import pytest

from tests.cli.command_line import ALONE, SMALL, RunCli, assert_refused


@pytest.mark.long
def test_several_seeds_are_trained_once_and_compared(run_cli: RunCli, pets: Path) -> None:
    """The second call trains nothing and says the same."""
    run_cli("train-teacher", "-r", "tiny", *SMALL[2:], *ALONE, "--data", pets, "--out", "t")
    same = ("seeds", *SMALL, "--n", 2, "--teacher", "t", "--data", pets, "--out", "s", "--json")
    first, second = run_cli(*same), run_cli(*same)
    result = json.loads(first.out)
    assert second.out == first.out and "s/seed-1 is finished: nothing to do." in second.err
    assert [Path(row["run"]).name for row in result["runs"]] == [
        "seed-0", "control-0", "seed-1", "control-1",
    ]  # fmt: skip
    results = [json.loads((Path(row["run"]) / "result.json").read_text()) for row in result["runs"]]
    assert [row["top1"] for row in result["runs"]] == [r["metrics"]["top1/test"] for r in results]
    assert results[0]["weights"] != results[2]["weights"]
    assert_refused(
        run_cli(*same, "--set", "optim.lr=0.5"), "the recipe is not the one it began with"
    )


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["search", "--set", "train.epochs=7"], "search sets train.epochs itself"),
        (["search", "--set", "train.epochs=7"], "--epochs N"),
        (["search", "-r", "tiny", "--set", "train.minutes=1"], "does not take train.minutes"),
        (["seeds", "-r", "kd", "--set", "train.seed=3"], "seeds sets train.seed itself"),
    ],
)
def test_keys_that_a_command_sets_are_refused(
    run_cli: RunCli, arguments: list[str], found: str
) -> None:
    assert_refused(run_cli(*arguments), found)


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "..", "a" * 201])
def test_search_name_is_one_file_name(run_cli: RunCli, name: str) -> None:
    """It names the folder of the runs."""
    result = run_cli("search", "-r", "tiny", *ALONE, "--name", name)
    assert_refused(result, "is not the name of one folder", "Type --name NAME")
    assert list(Path().iterdir()) == []
