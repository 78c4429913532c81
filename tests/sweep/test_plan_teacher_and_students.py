"""What a study takes from the text of a recipe."""

import json
import re
from pathlib import Path

import pytest

from distill.errors import UserError
from distill.sweep import plan_teacher_and_students


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("tiny --set teacher.network=gift/nets.py:net", "names code to run: teacher.network=gift"),
        ("tiny --set 'teacher.network = \"gift/nets.py:net\"'", "names code to run"),
        ("tiny 'x", "is not a recipe with options"),
        (" ", "is not a recipe with options"),
    ],
)
def test_text_of_a_recipe_runs_no_code(tmp_path: Path, teacher: str, message: str) -> None:
    path = tmp_path / "gift.toml"
    about = f"[about]\nteacher = {json.dumps(teacher)}\n"
    path.write_text(f'base = "kd"\n{about}')
    with pytest.raises(UserError, match=re.escape(message)):
        plan_teacher_and_students.teacher_recipe(str(path), [])
