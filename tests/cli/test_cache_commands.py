"""`cache info`, `verify` and `drop`: the cached teacher logits."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from distill.training import build
from tests.cli.command_line import CommandResult, RunCli, assert_refused, unfolded

pytestmark = pytest.mark.long


@pytest.fixture
def cached_run(run_cli: RunCli, teacher: Path) -> CommandResult:
    """A run of two epochs that cached its teacher's logits."""
    result = run_cli(
        *("distill", "--recipe", "tiny+cached_targets", "--teacher", teacher),
        *("--set", "train.epochs=2", "--out", "first"),
    )
    assert result.code == 0, result.err
    return result


def cache_entries(run_cli: RunCli) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = json.loads(run_cli("cache", "info", "--json").out)
    return listed


def test_empty_cache_is_an_empty_table(run_cli: RunCli) -> None:
    assert cache_entries(run_cli) == []
    for verb in ("info", "verify"):
        result = run_cli("cache", verb)
        assert (result.code, result.out.split(" in ")[0]) == (0, "no logits are cached")


@pytest.mark.parametrize("command", ["info", "verify", "drop --all"])
def test_private_cache_of_another_is_noted(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "targets")
    (tmp_path / "targets").mkdir()
    result = run_cli("cache", *command.split())
    assert result.code == 0
    assert f"{tmp_path / 'targets'} may not be read by this user" in unfolded(result.err)


def test_cache_info_lists_entries(
    cached_run: CommandResult, run_cli: RunCli, teacher: Path
) -> None:
    (row,) = cache_entries(run_cli)
    assert row["teacher"] == [str(teacher)]
    assert (row["views"], row["data"]) == (2, "synthetic")
    assert row["bytes"] > 2 * 2 * 10 * 320  # type: ignore[operator]  # two views of float16
    table = run_cli("cache", "info").out
    assert str(row["key"])[:12] in table
    assert f"{row['bytes'] / 1e3:.1f} kB" in table  # type: ignore[operator]
    assert row["seed"] == 0
    assert "crop padding 4" in " ".join(table.split())


def test_head_counts_cached_views(
    cached_run: CommandResult, run_cli: RunCli, teacher: Path
) -> None:
    command = ("distill", "--recipe", "tiny+cached_targets", "--teacher", teacher)
    assert "0 of 2 views of the teacher's logits are cached" in unfolded(cached_run.err)
    again = run_cli(*command, "--set", "train.epochs=3", "--out", "again")
    assert "2 of 3 views of the teacher's logits are cached" in unfolded(again.err)
    for key, why in (
        ("data.seed=7", "data.seed"),
        ("augment.flip=false", "augmentation, mixing or resolution"),
    ):
        other = run_cli(*command, "--set", "train.epochs=1", "--set", key, "--out", key)
        assert f"the most similar cached logits differ in {why}:" in unfolded(other.err)


def test_cache_verify_compares_with_the_teacher(cached_run: CommandResult, run_cli: RunCli) -> None:
    result = run_cli("cache", "verify")
    assert result.code == 0, result.err
    assert re.search(
        r"^[0-9a-f]{12}  2 views; logits of 512 samples in 2 views recomputed; sound$",
        result.out,
        re.M,
    )


def test_cache_verify_builds_no_student(
    cached_run: CommandResult, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe of an entry that another user wrote may describe a student of any size."""
    monkeypatch.setattr(build, "build_network", lambda *_: pytest.fail("was built"))
    assert "logits of 512 samples in 2 views recomputed; sound" in run_cli("cache", "verify").out


def test_cache_verify_finds_damage_and_foreign_logits(
    cached_run: CommandResult, run_cli: RunCli, tmp_path: Path
) -> None:
    first, second = sorted((tmp_path / "cache" / "targets").rglob("view-*.npz"))
    with np.load(second) as cached:
        np.savez(second, array=cached["array"][::-1])  # another sample's logits
    first.write_bytes(first.read_bytes()[:-40])
    result = run_cli("cache", "verify")
    assert result.code == 1
    key = first.parent.name[:12]
    assert (
        f"{key}  2 views; damaged: 0; the teacher now computes other logits for: 1; " in result.out
    )
    assert f"type python cli.py cache drop {key}" in result.err


def test_logits_that_no_longer_match_are_recomputed(
    cached_run: CommandResult, run_cli: RunCli, teacher: Path, tmp_path: Path
) -> None:
    for view in (tmp_path / "cache" / "targets").rglob("view-*.npz"):
        with np.load(view) as cached:
            np.savez(view, array=cached["array"][::-1])
    command = ("distill", "--recipe", "tiny+cached_targets", "--teacher", teacher)
    again = run_cli(*command, "--set", "train.epochs=2", "--out", "again")
    assert "the cached logits differ from the teacher's current logits" in unfolded(again.err)
    weights = [Path(run, "student.safetensors").read_bytes() for run in ("first", "again")]
    assert weights[0] == weights[1]
    assert run_cli("cache", "verify").code == 0, "they were written anew"


def test_cache_verify_without_its_teacher(
    cached_run: CommandResult, run_cli: RunCli, teacher: Path
) -> None:
    (row,) = cache_entries(run_cli)
    about = Path(str(row["path"]), "about.json")
    assert str(teacher) in about.read_text()
    about.write_text(about.read_text().replace(str(teacher), str(teacher.with_name("gone"))))
    result = run_cli("cache", "verify")
    assert result.code == 0
    assert "2 views; the teacher could not be run: " in unfolded(result.out)
    assert "is not a run: there is no such folder" in unfolded(result.out)
    assert unfolded(result.out).endswith("; readable, not compared with the teacher")
    about.write_text("{")
    assert "has no readable about.json; readable, not compared" in unfolded(
        run_cli("cache", "verify").out
    )


def test_foreign_files_in_the_cache_are_skipped(
    cached_run: CommandResult, run_cli: RunCli, teacher: Path
) -> None:
    (row,) = cache_entries(run_cli)
    path = Path(str(row["path"]))
    (path / "view-xx.npz").write_text("no view")
    (path.parent / "strange").mkdir()
    (path / "about.json").write_text("{")
    assert [each["views"] for each in cache_entries(run_cli)] == [2]
    Path(path, "view-00000.npz").write_text("damaged")
    again = run_cli(
        *("distill", "--recipe", "tiny+cached_targets", "--teacher", teacher),
        *("--set", "train.epochs=2", "--out", "again"),
    )
    assert "1 of 2 views of the teacher's logits are cached" in unfolded(again.err)
    assert "1 of the cached views is damaged: computed and cached again" in unfolded(again.err)
    (again_row,) = cache_entries(run_cli)
    assert again_row["teacher"] == [str(teacher)], "it says again what it holds"
    run_cli("cache", "drop", "--all")
    assert (path.parent / "strange").exists()


def test_cache_drop_deletes_entries(cached_run: CommandResult, run_cli: RunCli) -> None:
    (row,) = cache_entries(run_cli)
    assert_refused(run_cli("cache", "drop"), "no KEY was given", "cache info")
    assert_refused(run_cli("cache", "drop", "ab", "--all"), "KEY and --all exclude each other")
    assert_refused(run_cli("cache", "drop", "zz"), "no key in", "begins with 'zz'", "cache info")
    assert cache_entries(run_cli) == [row]
    result = run_cli("cache", "drop", str(row["key"])[:8])
    assert re.search(r"^1 dropped, \d+\.\d kB freed$", result.out, re.M)
    assert cache_entries(run_cli) == []
    assert "0 dropped" in run_cli("cache", "drop", "--all").out
