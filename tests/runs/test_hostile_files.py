"""Every reader of a run's JSON files, given values of other types: UserError or nothing."""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from distill.report import run_report
from distill.runs import run_folder
from distill.runs.compare_two_runs import compare
from distill.runs.journal import line
from distill.runs.list_runs import list_runs
from distill.runs.run_folder import RunFolder
from distill.runs.teacher_student_summary import closing_rows
from tests.runs import records
from tests.runs.test_compare_two_runs import ANSWERS_A, ANSWERS_B, finished

VALUES: list[Any] = [
    None, True, -1, 0, 2**62, 1e308, float("inf"), float("nan"), "", "x" * 9000, "\0", "[bold]",
    [], [None], {}, {"": None}, [[[[]]]], "9999-12-31", "2026-01-31T12:00:00Z",
]  # fmt: skip
SURROUNDINGS = {
    "command": ["cli.py", "distill"], "python": "3.11", "packages": {"torch": "2"}, "threads": 2,
    "recipe_origins": {"optim.lr": "--set"}, "source": "ab", "cuda": None,
}  # fmt: skip


def changed(value: Any, chance: random.Random) -> Any:
    """The value with one part, at any depth, replaced by a hostile one or left out."""
    if not value or not isinstance(value, dict) or chance.random() < 0.1:
        return chance.choice(VALUES)
    key = chance.choice(sorted(value))
    if chance.random() < 0.2:
        return {name: each for name, each in value.items() if name != key}
    return value | {key: changed(value[key], chance)}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    a, b = finished(tmp_path / "a", ANSWERS_A), finished(tmp_path / "b", ANSWERS_B)
    run_folder.write_json(a.environment, SURROUNDINGS)
    a.journal.write_text("".join(line(event) + "\n" for event in records.events()))
    return a, b


@pytest.mark.long
def test_hostile_values_give_messages(runs: tuple[RunFolder, RunFolder]) -> None:
    a, b = runs
    chance = random.Random(0)
    readers: list[Callable[[], Any]] = [
        lambda: closing_rows(a), lambda: compare(a.path, b.path),
        lambda: run_report.page(run_report.read(a), ()), lambda: closing_rows(b),
    ]  # fmt: skip
    sound = {path: path.read_text() for path in (a.result_file, a.environment, a.journal)}
    n_refused = 0
    for _ in range(100):
        path = chance.choice(list(sound))
        rows = [json.loads(each) for each in sound[path].splitlines()] if path == a.journal else []
        content = rows or [json.loads(sound[path])]
        at = chance.randrange(len(content))
        content[at] = changed(content[at], chance)
        path.write_text("".join(json.dumps(each) + "\n" for each in content))
        assert len(list_runs(a.path.parent)) == 2
        for read in readers:
            n_refused += 1
            with suppress(UserError):
                read()
                n_refused -= 1
        path.write_text(sound[path])
    assert n_refused > 30
