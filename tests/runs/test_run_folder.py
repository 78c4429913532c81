"""The files of a run: whole or absent, found again, never overwritten."""

import os
import re
import sys
from pathlib import Path

import pytest

from distill.errors import UserError
from distill.recipe import recipes
from distill.runs import check_runs_match, read_predictions, run_folder
from distill.runs.run_folder import (
    RunFolder,
    check_out,
    check_role,
    newest_runs_in,
    open_finished,
    open_run,
    open_teacher,
    role_begun,
    write_json,
)


def started(path: Path, age_s: float = 0) -> RunFolder:
    run = RunFolder(path)
    run_folder.write_text(run.recipe, "")
    written_at = run.recipe.stat().st_mtime - age_s
    os.utime(run.recipe, (written_at, written_at))
    return run


def test_run_folder_gets_recipe_then_result(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert (run.is_run, run.is_finished) == (False, False)
    started(run.path)
    assert (run.is_run, run.is_finished) == (True, False)
    write_json(run.result_file, {"role": "teacher", "epoch": 3})
    assert (run.is_run, run.is_finished) == (True, True)
    assert run.result() == {"role": "teacher", "epoch": 3}
    assert run.role == "teacher"


def test_looking_creates_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    paths = [run.recipe, run.journal, run.last, run.best, run.evaluation, run.environment]
    assert {path.parent for path in (*paths, run.weights("student"))} == {run.path}
    check_out(run, resume=False)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_has_no_result(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    for ask in (run.result, lambda: run.role, lambda: open_finished(run.path)):
        with pytest.raises(UserError, match=f"run {run.path} is not finished: .* result.json"):
            ask()
    write_json(run.result_file, {})
    assert open_finished(run.path) == run


def test_missing_run_names_existing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in it, beside it, in runs/ and its groups: the likest names first, else the newest."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gone is not a run: .* folder.\nThere are no runs in a"):
        open_run("a/gone")
    started(tmp_path / "a" / "old", age_s=60)
    started(tmp_path / "a" / "new")
    (tmp_path / "a" / "empty").mkdir()
    with pytest.raises(
        UserError, match="contains no recipe.toml.\nGive one of these runs: a/new, a/old.$"
    ):
        open_run("a/empty")
    with pytest.raises(UserError, match="Give one of these runs: a/new, a/old.$"):
        open_run("a")
    started(tmp_path / "runs" / "real" / "kd-0")
    for near in ("kd0", "runs/kd-1"):
        with pytest.raises(UserError, match="Give one of these runs: runs/real/kd-0.$"):
            open_run(near)
    with pytest.raises(UserError, match="Its run is a/old.$"):
        open_run("a/old/student.safetensors")
    assert open_run("a/old") == RunFolder(Path("a/old"))


def test_finished_runs_and_teachers_are_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started(tmp_path / "a" / "unfinished")
    for open_it in (open_finished, open_teacher):
        with pytest.raises(UserError, match="Give one of these runs: a/unfinished.$"):
            open_it("a/gone")
    for role in ("student", "teacher"):
        write_json(started(tmp_path / "a" / role).result_file, {"role": role})
    for open_it, expected in (
        (open_run, {"a/unfinished", "a/student", "a/teacher"}),
        (open_finished, {"a/student", "a/teacher"}),
        (open_teacher, {"a/teacher"}),
    ):
        with pytest.raises(UserError, match="gone is not a run") as error:
            open_it("a/gone")
        listed = str(error.value).rpartition("these runs: ")[2].rstrip(".")
        assert set(listed.split(", ")) == expected


def test_runs_come_newest_first(tmp_path: Path) -> None:
    ages = {"a": 30, "b": 10, "c": 20}
    for name, age_s in ages.items():
        started(tmp_path / name, age_s)
    for name in ("no run", "pipe"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "recipe.toml")
    assert [run.path.name for run in newest_runs_in(tmp_path)] == ["b", "c", "a"]
    assert list(newest_runs_in(tmp_path / "nowhere")) == []


def test_text_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "deep" / "file.txt"
    run_folder.write_text(file, "old 🐈\n")
    assert file.read_bytes() == "old 🐈\n".encode()

    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        run_folder.write_text(file, "new")
    assert file.read_text(encoding="utf-8") == "old 🐈\n"


def test_json_does_not_depend_on_key_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": [2]})
    write_json(tmp_path / "b", {"y": [2], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_default_folder_is_recipe_and_time() -> None:
    path = run_folder.default_path("kd+ema").as_posix()
    assert re.fullmatch(r"runs/kd\+ema-\d{8}-\d{6}", path)


def test_run_is_written_over_only_to_resume_it(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    with pytest.raises(UserError, match=f"{run.path} already contains a run.\nContinue "):
        check_out(run, resume=False)
    check_out(run, resume=True)


LINKS = (
    "running.json", "journal.jsonl", ".lock", "evaluation.npz", "recipe.toml", "last", "last.old",
    "last.new", "best", "epochs", "last/state.pt", "best/epoch-1.safetensors", "epochs/epoch-1.x",
    "report_files", "report_files/figures", "report_files/tables/a.csv", "tensorboard",
    "tensorboard/events",
)  # fmt: skip


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", LINKS)
def test_run_with_a_link_is_refused(tmp_path: Path, name: str, resume: bool) -> None:
    run, target = RunFolder(tmp_path / "run"), tmp_path / "elsewhere"
    target.write_text("mine")
    link = run.path / name
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    with pytest.raises(UserError, match=f"{re.escape(str(link))} is a symbolic link: .*\nPut "):
        check_out(run, resume)
    assert target.read_text() == "mine"


def test_run_with_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "running.json")
    with pytest.raises(UserError, match=r"running.json is a pipe or a device: "):
        check_out(RunFolder(tmp_path), resume=True)


def test_folder_of_a_run_may_be_a_link(tmp_path: Path) -> None:
    run = started(tmp_path / "disk" / "run")
    (run.path / "last").mkdir()
    (tmp_path / "run").symlink_to(run.path)
    check_out(RunFolder(tmp_path / "run"), resume=True)


@pytest.mark.parametrize("name", ["file", "file/run", "file/runs/run"])
def test_run_inside_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for resume in (False, True):
        with pytest.raises(UserError, match=f"{tmp_path / name} cannot .*: {tmp_path}/file is a"):
            check_out(RunFolder(tmp_path / name), resume)


def test_relative_folder_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_out(RunFolder(Path("runs/x")), resume=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="not even root writes in /proc")
def test_run_in_an_unwritable_folder_is_refused() -> None:
    with pytest.raises(UserError, match=r"/proc/a/b cannot .* written in /proc \(.+\)"):
        check_out(RunFolder(Path("/proc/a/b")), resume=False)


def test_an_earlier_trivial_augment_is_not_resumed(tmp_path: Path) -> None:
    recipe = recipes.load("student_alone+trivial_augment").recipe
    folder = RunFolder(tmp_path)
    folder.recipe.write_text(recipes.dumps(recipe))
    check_runs_match.check_same(folder, recipe)
    folder.recipe.write_text(recipes.dumps(recipe).replace("before_crop = true\n", ""))
    with pytest.raises(UserError, match=r"cannot be resumed: it began with an earlier version"):
        check_runs_match.check_same(folder, recipe)


@pytest.mark.parametrize("name", ["recipe.toml", "student.safetensors", "evaluation.npz"])
def test_a_run_with_a_pipe_is_not_read(tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path / "run")
    if name == "recipe.toml":
        run.path.mkdir()
    else:
        started(run.path)
    os.mkfifo(run.path / name)
    with pytest.raises(UserError, match=f"run/{name} is a pipe or a device: a run has only files"):
        open_run(run.path)
    if name == "recipe.toml":
        with pytest.raises(UserError, match="recipe.toml cannot be read as a recipe: it is not"):
            recipes.read(run.recipe)
    if name == "evaluation.npz":
        with pytest.raises(UserError, match="as predictions: it is not a regular file"):
            read_predictions.read_if_present(run.evaluation)


WRITTEN = (
    "last/mine", "last.old/mine", "last.new/mine", "best/epoch-12.pth", "epochs/mine",
    "environment.json", "result.json", "student.safetensors", "evaluation.npz", "journal.jsonl",
    "running.json",
)  # fmt: skip


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_files_of_the_user_are_not_replaced(tmp_path: Path, name: str, resume: bool) -> None:
    """A folder without recipe.toml has no run: what is there is the user's."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    found = name.split("/")[0]
    with pytest.raises(UserError, match=f"has no run .* but {found}, which a run would replace"):
        check_out(RunFolder(tmp_path), resume)


def test_parent_that_cannot_be_listed_has_no_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(tmp_path / "run")
    assert list(run_folder.runs_in_same_folder(run)) == [run]
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    monkeypatch.setattr(Path, "iterdir", lambda _: 1 / 0)
    assert not list(run_folder.runs_in_same_folder(run))


@pytest.mark.parametrize("name", ["last", "last.old/mine", "last.damaged/a/b", "best", "epochs/x"])
def test_run_inside_saved_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    started(tmp_path / "outer")
    for folder in (tmp_path / "outer" / "mine", tmp_path / "outer" / "tensorboard" / "x"):
        check_out(RunFolder(folder), resume=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "outer" / "last")
    for out in (tmp_path / "outer" / name, Path("outer", name), Path("link")):
        with pytest.raises(UserError, match=r"where the run .*outer saves and deletes its own"):
            check_out(RunFolder(out), resume=False)


@pytest.mark.parametrize("name", ["last/mine", "last.old/mine/recipe.toml", "last.new/.mine/x"])
def test_foreign_file_in_checkpoint_prevents_resume(tmp_path: Path, name: str) -> None:
    run = started(tmp_path / "run")
    for own in ("last/state.pt", "last/progress.json", "last/.state.pt.0123456789ab", "best/mine"):
        (run.path / own).parent.mkdir(exist_ok=True)
        (run.path / own).touch()
    check_out(run, resume=True)
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    (run.path / name).write_text("mine")
    with pytest.raises(UserError, match=r"mine would be deleted with the checkpoint"):
        check_out(run, resume=True)


@pytest.mark.parametrize("name", [".lock", "running.json", ".recipe.toml.0123456789ab", "notes.md"])
def test_run_begins_beside_other_files(tmp_path: Path, name: str) -> None:
    """Those of a start that was killed among them."""
    (tmp_path / name).write_text("{")
    check_out(RunFolder(tmp_path), resume=False)


def test_only_own_partial_files_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [
        ".notes.2024", ".libfoo.so.1", ".recipe.toml.1", ".notes.0123456789ab", ".result.json.bak",
        "recipe.toml.0123456789ab",
    ]  # fmt: skip
    for name in others:
        (tmp_path / name).touch()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    for write in (run_folder.RunFolder(tmp_path).recipe, tmp_path / "result.json"):
        with pytest.raises(KeyboardInterrupt):
            run_folder.write_text(write, "")
    assert len(list(tmp_path.iterdir())) == len(others) + 2
    run_folder.delete_partial_files(RunFolder(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_role_of_a_checkpoint_is_one_of_two(tmp_path: Path) -> None:
    """Another one, which may be as long as the file, is not shown."""
    run = RunFolder(tmp_path)
    for folder in ("last", "last.old"):
        (tmp_path / folder).mkdir()
        write_json(tmp_path / folder / "progress.json", {"role": "x" * 1000})
    assert role_begun(run) is None
    write_json(tmp_path / "last.old" / "progress.json", {"role": "teacher"})
    assert role_begun(run) == "teacher"
    with pytest.raises(UserError, match="is the run of a teacher, and distill trains a student"):
        check_role(run, "student")
