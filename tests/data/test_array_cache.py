"""Arrays cached between runs: whole or absent, also after a crash or a concurrent writer."""

import grp
import os
import pwd
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from distill.data import array_cache
from distill.errors import UserError

KEY, SHAPE = "targets/abc/view-00000", (2000, 1000)  # 4 MB: a write takes milliseconds
OTHER_GROUP = 12_345
WRITER = """
import sys, numpy as np
from distill.data import array_cache as cache
print(flush=True)
while True:
    cache.save_cached(sys.argv[1], np.full((2000, 1000), 7, np.float16))
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    return tmp_path


def writer() -> subprocess.Popen[str]:
    """A process that writes the same array again and again."""
    command = [sys.executable, "-c", WRITER, KEY]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # it has begun
    return process


def end(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.long
def test_two_writers_and_a_reader_never_meet() -> None:
    writers = [writer(), writer()]
    try:
        while not array_cache.is_cached(KEY):
            time.sleep(0.01)
        for _ in range(50):
            found = array_cache.load_cached(KEY, SHAPE, np.float16)
            assert found is not None
            assert (found == 7).all()
    finally:
        for process in writers:
            end(process)


@pytest.mark.long
def test_a_kill_while_writing_leaves_what_was_there() -> None:
    array_cache.save_cached(KEY, np.full(SHAPE, 7, np.float16))
    for milliseconds in range(0, 40, 8):
        process = writer()
        time.sleep(milliseconds / 1000)
        end(process)
        found = array_cache.load_cached(KEY, SHAPE, np.float16)
        assert found is not None
        assert (found == 7).all()


def test_unwritable_array_is_not_cached(own_cache: Path) -> None:
    (own_cache / "targets").write_text("a file where a folder should be")
    array_cache.save_cached(KEY, np.zeros(SHAPE, np.float16))
    assert array_cache.load_cached(KEY, SHAPE, np.float16) is None
    assert not array_cache.is_cached(KEY)


def test_another_kind_is_not_found() -> None:
    array_cache.save_cached(KEY, np.zeros((3, 2), np.float16))
    assert array_cache.load_cached(KEY, (2, 3), np.float16) is None
    assert array_cache.load_cached(KEY, (3, 2), np.float32) is None
    assert array_cache.load_cached(KEY, None, np.float16) is not None


@pytest.mark.parametrize(
    ("mode", "found"),
    [
        (0o700, ""),
        (0o755, ""),
        (0o777, "every user may write in it"),
        (0o775, "its group may write in it"),
        (0o1777, ""),
    ],
)
def test_a_folder_that_others_may_write_is_found(tmp_path: Path, mode: int, found: str) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    os.chown(folder, -1, OTHER_GROUP) if os.geteuid() == 0 else None
    folder.chmod(mode)
    if os.geteuid() != 0 and mode == 0o775:  # only root gives a folder to another group
        found = ""
    assert array_cache.writable_by_others(folder) == found


def test_a_folder_of_another_user_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = os.stat_result((stat.S_IFDIR | 0o700, 0, 0, 1, os.geteuid() + 1, 0, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda _: known)
    assert array_cache.writable_by_others(tmp_path) == "it belongs to another user"


def test_group_of_one_user_is_no_other_user(monkeypatch: pytest.MonkeyPatch) -> None:
    user = pwd.struct_passwd(("me", "", 7, 8, "", "", ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: user)
    for members, is_private in (([], True), (["me"], True), (["me", "you"], False)):
        group = grp.struct_group(("me", "", 8, members))
        monkeypatch.setattr(grp, "getgrgid", lambda _, group=group: group)
        assert array_cache._is_private(8) == is_private
    assert not array_cache._is_private(9)


def test_private_folder_of_another_user_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first user of a shared cache may have the umask 077."""
    array_cache.save_verified(KEY, np.zeros((2, 3)))

    def denied(path: Path, **_: object) -> os.stat_result:
        if path.parent.name == "targets":
            raise PermissionError(13, "Permission denied", str(path))
        return os.stat(path)

    monkeypatch.setattr(Path, "stat", denied)
    assert not array_cache.is_cached(KEY)
    assert array_cache.load_cached(KEY, (2, 3), np.float64) is None
    assert array_cache.load_verified(KEY, (2, 3), np.float64) is None
    array_cache.save_cached(KEY, np.ones((2, 3)))
    monkeypatch.undo()


def test_user_without_home_is_told_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("UNDERSTUDY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match="no cache folder: .*\nSet UNDERSTUDY_CACHE to a folder"):
        array_cache.cache_folder()
