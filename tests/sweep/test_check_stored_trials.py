"""A sweep's storage as others may have changed it: one message, and nothing is trained."""

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from distill.recipe.recipes import ResolvedRecipe
from distill.runs.run_folder import RunFolder, write_json
from distill.sweep import worker
from distill.sweep.sweep_summary import summary
from tests.sweep.test_assign_trials import opened

SPACE: dict[str, Any] = {
    "optim.lr": {"log": [0.01, 0.5]},
    "student.width": {"choice": [4, 6]},
    "train.batch_size": {"integer": [30, 60]},
}
STUDY = {"trials": 3, "heartbeat_s": 1, "pruner": "none"}
WIDE = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.01, "high": 500.0, "log": true}}'  # noqa: E501
OTHER = '{"name": "CategoricalDistribution", "attributes": {"choices": ["12", "6"]}}'
WAITING = (
    "DELETE FROM trial_values WHERE trial_id = 2",
    "UPDATE trials SET state = 'WAITING', datetime_start = NULL, datetime_complete = NULL "
    "WHERE trial_id = 2",
)


def attribute(key: str, value: str) -> tuple[str, ...]:
    """Set an attribute of the second attempt to a JSON text."""
    return (
        f"DELETE FROM trial_user_attributes WHERE key = '{key}' AND trial_id = 2",
        "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
        f"VALUES (2, '{key}', '{value}')",
    )


def system_attribute(key: str, value: str) -> str:
    return (
        "INSERT INTO trial_system_attributes (trial_id, key, value_json) "
        f"VALUES (2, '{key}', '{value}')"
    )


def parameter(name: str, **columns: str) -> str:
    """Change the second attempt's value of a key."""
    changes = ", ".join(f"{column} = {value}" for column, value in columns.items())
    return f"UPDATE trial_params SET {changes} WHERE trial_id = 2 AND param_name = '{name}'"


CHANGES: dict[str, tuple[tuple[str, ...], str]] = {
    "value above the space": (
        (*WAITING, parameter("optim.lr", param_value="300.0", distribution_json=f"'{WIDE}'")),
        r"attempt 1: optim\.lr is not of this sweep's space",
    ),
    "value above its own range": (
        (parameter("optim.lr", param_value="300.0"),),
        r"attempt 1: optim\.lr = 300\.0 is not in the space",
    ),
    "value that is not a number": ((parameter("optim.lr", param_value="'NaN'"),), "damaged"),
    "value that is text": ((parameter("optim.lr", param_value="'abc'"),), "damaged"),
    "value that is bytes": ((parameter("optim.lr", param_value="x'00ff'"),), "damaged"),
    "value without a fraction": (
        (parameter("train.batch_size", param_value="7"),),
        r"train\.batch_size = 7 is not in the space",
    ),
    "option of another space": (
        (*WAITING, parameter("student.width", distribution_json=f"'{OTHER}'")),
        r"attempt 1: student\.width is not of this sweep's space",
    ),
    "option beyond the last": ((parameter("student.width", param_value="7"),), "damaged"),
    "unknown distribution": (
        (parameter("optim.lr", distribution_json='\'{"name": "x", "attributes": {}}\''),),
        "damaged",
    ),
    "distribution that is no JSON": ((parameter("optim.lr", distribution_json="'{'"),), "damaged"),
    "key outside the space": (
        (parameter("optim.lr", param_name="'data.source'"),),
        r"attempt 1: data\.source is not of this sweep's space",
    ),
    "complete trial without values": (
        ("DELETE FROM trial_params WHERE trial_id = 2",),
        r"attempt 1: it is complete without optim\.lr, student\.width, train\.batch_size",
    ),
    "no number": (
        ("DELETE FROM trial_user_attributes WHERE key = 'trial' AND trial_id = 2",),
        "attempt 1: it has no 'trial'",
    ),
    "number of another folder": (attribute("trial", '"../../x"'), "attempt 1: 'trial': "),
    "number that is a list": (attribute("trial", "[1]"), "attempt 1: 'trial': "),
    "negative number": (attribute("trial", "-5"), "attempt 1: 'trial': "),
    "number with a fraction": (attribute("trial", "1.5"), "attempt 1: 'trial': "),
    "number that is true": (attribute("trial", "true"), "attempt 1: 'trial': "),
    "huge number": (attribute("trial", "100000"), "attempt 1: 'trial': "),
    "attribute that is no JSON": (attribute("trial", "{"), "damaged"),
    "reported values in a list": (attribute("told", "[1]"), "attempt 1: 'told': "),
    "reported values of no epoch": (attribute("told", '{"x": 0.5}'), r"attempt 1: 'told\.x"),
    "reported values out of range": (
        attribute("told", '{"1": 7.5}'),
        "attempt 1: top1/val = 7.5 cannot have been measured",
    ),
    "run that is a number": (attribute("run", "5"), "attempt 1: 'run': "),
    "worker that is a number": (attribute("worker", "5"), "attempt 1: 'worker': "),
    "reason that is a number": (attribute("infeasible", "5"), "attempt 1: 'infeasible': "),
    "draws that are text": (attribute("redrawn", '"x"'), "attempt 1: 'redrawn': "),
    "constraint of the sampler": (
        (system_attribute("constraints", '"x"'),),
        "attempt 1: a sweep sets no 'constraints'",
    ),
    "fixed values": (
        (system_attribute("fixed_params", "[1]"),),
        "attempt 1: a sweep sets no 'fixed_params'",
    ),
    "rung that is text": (
        (system_attribute("completed_rung_0", '"x"'),),
        "attempt 1: completed_rung_0 is not a number",
    ),
    "unknown state": (("UPDATE trials SET state = 'XX' WHERE trial_id = 2",), "damaged"),
    "date that is none": (
        ("UPDATE trials SET datetime_start = 'garbage' WHERE trial_id = 2",),
        "damaged",
    ),
    "attempt without a number": (("UPDATE trials SET number = NULL WHERE trial_id = 2",), "damage"),
    "two attempts of one number": (
        ("UPDATE trials SET number = 0 WHERE trial_id = 2",),
        "2 attempts with the number 0",
    ),
    "infinite accuracy": (
        ("UPDATE trial_values SET value = NULL, value_type = 'INF_POS' WHERE trial_id = 2",),
        "attempt 1: top1/val = inf cannot have been measured",
    ),
    "accuracy of 750 %": (
        ("UPDATE trial_values SET value = 7.5 WHERE trial_id = 2",),
        "attempt 1: top1/val = 7.5 cannot have been measured",
    ),
    "accuracy that is text": (
        ("UPDATE trial_values SET value = 'abc' WHERE trial_id = 2",),
        "damaged",
    ),
    "complete trial without accuracy": (
        ("DELETE FROM trial_values WHERE trial_id = 2",),
        "attempt 1: it is complete without a value",
    ),
    "epoch below one": (
        (
            "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, "
            "intermediate_value_type) VALUES (2, -3, 0.5, 'FINITE')",
        ),
        "attempt 1: it has a value after epoch -3",
    ),
    "definition that is a number": (
        ("UPDATE study_user_attributes SET value_json = '5' WHERE key = 'definition'",),
        r"damaged: its definition is not text\.",
    ),
    "definition that is no JSON": (
        ("UPDATE study_user_attributes SET value_json = '{' WHERE key = 'definition'",),
        "damaged",
    ),
    "other direction": (
        ("UPDATE study_directions SET direction = 'MINIMIZE'",),
        "damaged: the study does not maximize",
    ),
    "no direction": (("DELETE FROM study_directions",), "damaged"),
    "unknown direction": (("UPDATE study_directions SET direction = 'UP'",), "damaged"),
    "two directions": (
        (
            "INSERT INTO study_directions (direction, study_id, objective) "
            "VALUES ('MAXIMIZE', 1, 1)",
        ),
        "damaged",
    ),
    "unknown revision": (
        ("UPDATE alembic_version SET version_num = 'zzz'",),
        "another version of optuna: ",
    ),
    "two revisions": (("INSERT INTO alembic_version VALUES ('zzz')",), "damaged"),
    "heartbeat that is none": (
        (
            *WAITING,
            "UPDATE trials SET state = 'RUNNING' WHERE trial_id = 2",
            "INSERT INTO trial_heartbeats (trial_id, heartbeat) VALUES (2, 'garbage') "
            "ON CONFLICT DO UPDATE SET heartbeat = 'garbage'",
        ),
        "damaged",
    ),
    "missing column": (("ALTER TABLE trials DROP COLUMN number",), "damaged"),
    "endless view": (
        (
            "ALTER TABLE trials RENAME TO others",
            "CREATE VIEW trials AS WITH RECURSIVE t (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t)"
            " SELECT n AS trial_id, n AS number, 1 AS study_id, 'COMPLETE' AS state, "
            "NULL AS datetime_start, NULL AS datetime_complete FROM t",
        ),
        "damaged: its view 'trials' is none of a sweep's",
    ),
    "trigger": (
        (
            "CREATE TRIGGER t AFTER INSERT ON trial_heartbeats BEGIN "
            "UPDATE trial_params SET param_value = 0.3; END",
        ),
        "damaged: its trigger 't' is none of a sweep's",
    ),
    "generated column": (
        ("ALTER TABLE trials ADD COLUMN x AS (hex(zeroblob(1000)))",),
        "damaged: its table 'trials' is none of a sweep's",
    ),
    "conflict clause": (
        ("CREATE TABLE x (a INTEGER NOT NULL ON CONFLICT IGNORE)",),
        "damaged: its table 'x' is none of a sweep's",
    ),
    "computed default": (
        ("CREATE TABLE x (a DEFAULT (hex(zeroblob(1000))))",),
        "damaged: its table 'x' is none of a sweep's",
    ),
    "computed index": (
        ("CREATE INDEX x ON trials (hex(state))",),
        "damaged: its index 'x' is none of a sweep's",
    ),
    "virtual table": (
        ("CREATE VIRTUAL TABLE x USING fts5 (a)",),
        "damaged: its table 'x' is none of a sweep's",
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of three complete trials."""
    place = tmp_path_factory.mktemp("sweeps") / "finished"
    worker.work(opened(place, study=STUDY, space=SPACE), train, lambda text: None)
    return place


def train(resolved: ResolvedRecipe, folder: RunFolder, read: worker.Reader) -> None:
    write_json(folder.result_file, {"metrics": {"top1/val": 0.5}})


def go_on(place: Path) -> dict[str, Any]:
    trials = opened(place, study=STUDY, space=SPACE)
    worker.work(trials, lambda *_: pytest.fail("a trial was trained"), lambda text: None)
    return summary(trials)


@pytest.mark.long
def test_unchanged_storage_is_continued(finished: Path) -> None:
    assert go_on(finished)["counts"]["complete"] == 3


@pytest.mark.long
@pytest.mark.parametrize("name", CHANGES)
def test_changed_storage_is_one_message(finished: Path, tmp_path: Path, name: str) -> None:
    statements, message = CHANGES[name]
    shutil.copytree(finished, tmp_path / "copy")
    with sqlite3.connect(tmp_path / "copy" / "sweep.db") as rows:
        changed = [rows.execute(statement).rowcount for statement in statements]
    assert changed[-1]
    with pytest.raises(UserError, match=message) as fault:
        go_on(tmp_path / "copy")
    place, advice = str(tmp_path / "copy" / "sweep.db"), "choose another --out"
    assert place in str(fault.value) and advice in str(fault.value)
    assert len(str(fault.value)) < 500


@pytest.mark.parametrize("content", [b"SQLite format 3\0" + bytes(4000), b"text" * 1000])
def test_file_that_is_no_database_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sweep.db").write_bytes(content)
    with pytest.raises(UserError, match=r"sweep\.db is damaged: .*\n.*--out"):
        go_on(tmp_path)


def test_truncated_database_is_one_message(finished: Path, tmp_path: Path) -> None:
    content = (finished / "sweep.db").read_bytes()
    (tmp_path / "sweep.db").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"sweep\.db is damaged: .*\n.*--out"):
        go_on(tmp_path)


def test_damaged_pages_are_one_message(finished: Path, tmp_path: Path) -> None:
    content = bytearray((finished / "sweep.db").read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    (tmp_path / "sweep.db").write_bytes(content)
    with pytest.raises(UserError, match=r"sweep\.db is damaged: .*\n.*--out"):
        go_on(tmp_path)


def test_control_characters_of_a_version_are_escaped(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    with sqlite3.connect(tmp_path / "copy" / "sweep.db") as rows:
        rows.execute("UPDATE version_info SET library_version = ?", ("\x1b[31m99",))
        rows.execute("UPDATE alembic_version SET version_num = 'zzz'")
    with pytest.raises(UserError, match="of another version of optuna: ") as fault:
        go_on(tmp_path / "copy")
    assert "\x1b" not in str(fault.value)


def test_attributes_of_later_versions_are_accepted(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    with sqlite3.connect(tmp_path / "copy" / "sweep.db") as rows:
        for statement in attribute("later", json.dumps({"a": 1})):
            rows.execute(statement)
    assert go_on(tmp_path / "copy")["counts"]["complete"] == 3
