"""A result.json that contradicts its recipe or its journal is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from distill.runs import check_result, check_runs_match, read_run_folder
from distill.runs.run_folder import RunFolder, write_json
from distill.runs.teacher_student_summary import summary_row

OLD_RUN = Path(__file__).parents[1] / "cli" / "old_runs" / "student"


def changed(folder: Path, changes: dict[str, Any]) -> RunFolder:
    """A copy of a finished run with other values in result.json; `teacher.top1` is in a table."""
    shutil.copytree(OLD_RUN, folder)
    run = RunFolder(folder)
    result = json.loads(run.result_file.read_text())
    for key, value in changes.items():
        table, _, name = key.rpartition(".")
        (result[table] if table else result)[name] = value
    write_json(run.result_file, result)
    return run


def test_unchanged_run_is_accepted(tmp_path: Path) -> None:
    run = changed(tmp_path / "run", {})
    check_runs_match.check_recipe_of_result(run)
    assert read_run_folder.read(run).parameters == 1454


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"parameters": 7}, "recipe.toml: it has 7 parameters instead of 1,454"),
        ({"network": "x\x1b"}, r"recipe.toml: its network is x\x1b instead of ResNet [1, 1] 4-8"),
        ({"epochs": 900}, "recipe.toml: it has 900 epochs instead of 3"),
        ({"epoch": 4}, "recipe.toml: its best epoch is 4 of 3"),
        (
            {"epoch": 0},
            "recipe.toml: its best epoch is 0, which only a run that was finished early",
        ),
        ({"total_s": 1.0}, "its time is 1.0 s in all, and 8.1 s of training"),
        (
            {
                "finished_early": {
                    "epochs": 1,
                    "planned_epochs": 3,
                    "steps": 99,
                    "planned_steps": 30,
                },
                "epoch": 2,
            },
            "it was finished early after 99 of 30 planned steps; its best epoch is 2; it was "
            "finished after 1",
        ),
        ({"parameters": 7, "epochs": 9}, "instead of 1,454; it has 9 epochs instead of 3"),
    ],
)
def test_figures_that_contradict_the_recipe(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    run = changed(tmp_path / "run", changes)
    for read in (read_run_folder.read, lambda run: summary_row("student", run)):
        with pytest.raises(UserError) as caught:
            read(run)
        assert f"result.json contradicts {fault}" in str(caught.value) or fault in str(caught.value)
        assert "\nRestore the file, or train that run again in another --out." in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"teacher.top1": 0.99}, "journal.jsonl: the teacher's top1 is 0.99 instead of 0.095"),
        ({"teacher.top1": None}, "the teacher's top1 is missing instead of 0.095"),
        ({"device": "H200"}, "journal.jsonl: device is H200 instead of cpu"),
        ({"processes": 64}, "journal.jsonl: processes is 64 instead of 1"),
        ({"recipe": "kd_cutmix"}, "journal.jsonl: recipe is kd_cutmix instead of tiny"),
        ({"elapsed_s": 0.001}, "journal.jsonl: elapsed_s is 0.001 instead of 8.127138825002476"),
        ({"data.train_images": 10**12}, "train_images is 1000000000000 instead of 320"),
        ({"epoch": 2}, "top1/val_ema of epoch 2 is 0.12 instead of 0."),
        ({"metrics.top1/val_ema": 0.13}, "top1/val_ema of epoch 1 is 0.13 instead of 0.12"),
        ({"metrics.nll/test": float("nan")}, "nll/test is nan instead of 2.32"),
    ],
)
def test_figures_that_contradict_the_journal(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_run_folder.read(changed(tmp_path / "run", changes))
    assert fault in str(caught.value)


def test_journal_without_end_or_start(tmp_path: Path) -> None:
    run = changed(tmp_path / "run", {"metrics.top1/val_ema": 0.13})
    lines = run.journal.read_text().splitlines(keepends=True)
    run.journal.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"top1/val_ema of epoch 1 is 0.13 instead of 0.12\.\n"):
        read_run_folder.read(run)
    run.journal.write_text("".join(lines[1:]))
    with pytest.raises(UserError, match=r"journal.jsonl has no start event, .*\nRestore it, or"):
        read_run_folder.read(run)
    run.journal.unlink()
    assert read_run_folder.read(run).val_metric("top1") == 0.13


def test_calibration_error_is_that_of_predictions(tmp_path: Path) -> None:
    run = changed(tmp_path / "run", {})
    result = json.loads(run.result_file.read_text())
    result["metrics"]["ece/test"] = 0.001
    write_json(run.result_file, result)
    run.journal.unlink()  # it is compared first
    with pytest.raises(UserError, match=r"ece/test = 0.10 %, but the predictions in .* 3.17 %"):
        read_run_folder.read(run)


def test_names_without_fingerprint_need_old_result(tmp_path: Path) -> None:
    run = changed(tmp_path / "run", {})
    result = json.loads(run.result_file.read_text())
    del result["data"]["class_names_fingerprint"]
    write_json(run.result_file, result)
    with pytest.raises(UserError, match="class_names have no class_names_fingerprint"):
        run.result()
    del result["evaluation"]
    write_json(run.result_file, result)
    assert len(run.result()["class_names"]) == 10


@pytest.mark.parametrize(("parameters", "is_possible"), [(1454, True), (10**7, False)])
def test_size_of_own_network_fits_weights(
    tmp_path: Path, parameters: int, is_possible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_result.describe_network, "describe", lambda *_: None)
    monkeypatch.setattr(check_result.describe_network, "summary", lambda *_: "ResNet [1, 1] 4-8")
    run = changed(tmp_path / "run", {"parameters": parameters})
    if is_possible:
        check_runs_match.check_recipe_of_result(run)
    else:
        with pytest.raises(UserError, match="parameters, which student.safetensors is too small"):
            check_runs_match.check_recipe_of_result(run)


@pytest.mark.parametrize(("parameters", "is_possible"), [(1454, True), (100, False)])
def test_size_of_timm_network_is_that_of_weights(
    tmp_path: Path, parameters: int, is_possible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_result.describe_network, "describe", lambda *_: None)
    monkeypatch.setattr(check_result.describe_network, "summary", lambda *_: "timm/x")
    run = changed(tmp_path / "run", {"parameters": parameters, "network": "timm/x"})
    if is_possible:
        check_runs_match.check_recipe_of_result(run)
    else:
        with pytest.raises(UserError, match="100 parameters, which student.safetensors is too la"):
            check_runs_match.check_recipe_of_result(run)


def test_number_of_teachers_is_bounded(tmp_path: Path) -> None:
    runs = [f"runs/{i}" for i in range(1_001)]
    with pytest.raises(UserError, match=r"result.json is damaged: .*teacher\.runs"):
        changed(tmp_path / "run", {"teacher.runs": runs}).result()
