"""`evaluate`, `params`, `recipes` and `report`: output as tables, JSON and pages."""

import json
import re
import shutil
from pathlib import Path

import pytest

from distill.recipe import recipes
from distill.runs.run_folder import RunFolder
from tests.cli.command_line import RunCli, assert_refused


def test_evaluate_needs_a_finished_run(run_cli: RunCli, tmp_path: Path) -> None:
    assert_refused(
        run_cli("evaluate", tmp_path / "none"), f"{tmp_path / 'none'} is not a run", lines=2
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").touch()
    result = run_cli("evaluate", tmp_path / "run")
    assert_refused(
        result, f"run {tmp_path / 'run'} is not finished: it has no result.json", lines=2
    )


@pytest.mark.long
def test_evaluate_json_matches_the_run(run_cli: RunCli, distilled) -> None:
    folder, _ = distilled
    result = run_cli("evaluate", folder.path, "--json")
    values, saved = json.loads(result.out), folder.result()
    assert result.code == 0
    assert {"top1", "nll", "ece", "n"} <= values.keys()
    assert values["n"] == 2000
    assert values["parameters"] == saved["parameters"]
    assert values["top1"] == saved["metrics"]["top1/test"]


@pytest.mark.long
def test_evaluate_prints_accuracy_and_each_class(run_cli: RunCli, distilled) -> None:
    folder, _ = distilled
    result = run_cli("evaluate", folder.path)
    top1 = folder.result()["metrics"]["top1/test"]
    interval = r"\[[\d.]+, [\d.]+\] %"
    assert re.search(rf"^accuracy +{100 * top1:.2f} % +{interval} *$", result.out, re.M)
    for name in folder.result()["class_names"]:
        assert re.search(rf"^{name} +200 ", result.out, re.M), name


def test_evaluate_refuses_before_it_measures(run_cli: RunCli, distilled, tmp_path: Path) -> None:
    run = distilled[0].path
    result = run_cli("evaluate", run, "--against", tmp_path / "none")
    assert_refused(result, f"{tmp_path / 'none'} is not a run", lines=2)
    for views in (1, 3, 7):
        assert_refused(
            run_cli("evaluate", run, "--views", views),
            f"--views {views} is not supported; "
            "allowed: 2 (each image and its mirror image, as --mirror) or 6",
            lines=2,
        )
    result = run_cli("evaluate", run, "--robustness-images", 10)
    assert_refused(result, "--robustness-images 10", "type --robustness with it", lines=1)


def test_params_as_json(run_cli: RunCli) -> None:
    result = run_cli("params", "--recipe", "kd", "--json")
    counted = json.loads(result.out)
    assert result.code == 0
    assert counted["parameters"] == 4_697_162  # reference count of [4, 4, 3] 64-128-256
    assert counted["macs"] == 798_689_792
    assert counted["trainable"] == counted["parameters"]
    whole, part = (
        json.loads(run_cli("params", "--recipe", "kd", *more, "--json").out)
        for more in ([], ["-s", "student.stem_frozen=true"])
    )
    assert part == whole | {"trainable": whole["parameters"] - 3 * 9 * 64}
    assert counted["max_params"] == 5_000_000
    assert counted["within_budget"] is True


def test_params_reports_what_is_over_budget(run_cli: RunCli) -> None:
    result = run_cli("params", "-r", "kd", "-s", "student.width=128", "--json")
    assert result.code == 0
    assert json.loads(result.out)["within_budget"] is False
    result = run_cli("params", "-r", "kd", "-s", "student.width=128")
    assert re.search(
        r"^parameters +18,765,962\ntrainable +18,765,962\nmacs +3,191,215,104$",
        result.out,
        re.MULTILINE,
    )
    assert re.search(r"^within_budget +no$", result.out, re.MULTILINE)


def test_a_printed_recipe_is_a_recipe(run_cli: RunCli, tmp_path: Path) -> None:
    spec = "kd_cutmix+quickstart"
    result = run_cli("recipes", spec, "--set", "data.source=🐈 \\ 'x'")
    (tmp_path / "again.toml").write_text(result.out, encoding="utf-8")
    again = recipes.load(str(tmp_path / "again.toml")).recipe
    assert again == recipes.load(spec, ["data.source=🐈 \\ 'x'"]).recipe
    assert run_cli("recipes", tmp_path / "again.toml").code == 0


def test_the_listing_names_every_recipe(run_cli: RunCli) -> None:
    result = run_cli("recipes")
    first_words = [line.split(" ")[0] for line in result.out.splitlines()]
    assert result.code == 0
    for name, _, _ in recipes.shipped():
        assert first_words.count(name) == 1, name


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["nowhere"], "nowhere is not a run: there is no such folder"),
        (["STUDENT", "TEACHER"], "a report of 2 runs belongs to none of their folders"),
        (["UNSAVED", "--test-curve"], "without --set train.keep_epochs=0"),
    ],
)
def test_report_refuses_wrong_requests(
    run_cli: RunCli,
    distilled: tuple[RunFolder, object],
    teacher: Path,
    arguments: list[str],
    found: str,
    tmp_path: Path,
) -> None:
    unsaved = shutil.copytree(distilled[0].path, tmp_path / "unsaved")
    shutil.rmtree(unsaved / "epochs")
    runs = {"STUDENT": str(distilled[0].path), "TEACHER": str(teacher), "UNSAVED": str(unsaved)}
    assert_refused(run_cli("report", *(runs.get(word, word) for word in arguments)), found, lines=2)


@pytest.mark.long
def test_a_report_of_one_run_and_of_two(
    run_cli: RunCli, distilled: tuple[RunFolder, object], teacher: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two.html"
    result = run_cli(
        "report", distilled[0].path, distilled[0].path, "--out", one
    )  # the same run twice
    assert (result.code, result.out) == (0, f"{one / 'report.html'}\n")
    assert "A student, ResNet" in (one / "report.html").read_text()
    result = run_cli("report", distilled[0].path, teacher, "--out", two)
    assert (result.code, result.out) == (0, f"{two}\n")
    assert "2 runs in 2 groups" in two.read_text()
    assert (tmp_path / "two_files" / "tables" / "groups.tex").exists()
