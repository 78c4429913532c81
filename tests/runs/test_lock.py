"""A run folder is locked while a process trains in it."""

import json
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from threading import Timer

import pytest
from filelock import FileLock

from distill.errors import UserError
from distill.runs import lock

HOLD = """
import sys, time
from pathlib import Path
from distill.runs import lock
with lock.lock_run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holding(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


@pytest.mark.long
def test_second_is_refused_naming_the_first(tmp_path: Path) -> None:
    child = holding(tmp_path / "run")
    try:
        with pytest.raises(UserError) as refused, lock.lock_run_folder(tmp_path / "run"):
            pass
    finally:
        child.kill()
        child.wait()
    first, second = str(refused.value).splitlines()
    assert first.startswith(
        f"{tmp_path / 'run'} is in use: process {child.pid} on {socket.gethostname()}, since "
    )
    assert second == "Wait for it or stop it there, or choose another --out."


@pytest.mark.long
def test_killed_process_leaves_a_name_without_lock(tmp_path: Path) -> None:
    child = holding(tmp_path / "run")
    child.send_signal(signal.SIGKILL)
    child.wait()
    with lock.lock_run_folder(tmp_path / "run") as killed:
        assert killed is not None and killed.process == child.pid
    with lock.lock_run_folder(tmp_path / "run") as killed:
        assert killed is None


@pytest.mark.parametrize("text", ["", "{", '{"host": "h", "pro', "\0" * 70])
def test_record_of_killed_writer_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "running.json").write_text(text)
    with lock.lock_run_folder(tmp_path) as killed:
        assert killed is None
        assert json.loads((tmp_path / "running.json").read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize(
    "text", ["mine", "[]", "{}", '{"host": 1}', '{"host": "localhost", "port": 80}', "\0" * 5000]
)
def test_record_of_the_user_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "running.json").write_text(text)
    with (
        pytest.raises(UserError, match=r"running\.json .* not written by this program"),
        lock.lock_run_folder(tmp_path),
    ):
        pass
    assert (tmp_path / "running.json").read_text() == text


def test_record_changed_while_locked_is_kept(tmp_path: Path) -> None:
    with lock.lock_run_folder(tmp_path):
        (tmp_path / "running.json").write_text("mine")
    assert (tmp_path / "running.json").read_text() == "mine"


def test_what_was_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), lock.lock_run_folder(tmp_path / "run"):
        raise ValueError("refused")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["running.json", ".lock"])
def test_links_are_not_followed(tmp_path: Path, name: str) -> None:
    """A link made after the folder was checked: its target stays unchanged."""
    target, folder = tmp_path / "elsewhere", tmp_path / "run"
    target.write_text('{"host": "h", "process": 1, "since": "s"}')
    folder.mkdir()
    (folder / name).symlink_to(target)
    before = target.read_text()
    with pytest.raises((UserError, OSError), match="symbolic link"), lock.lock_run_folder(folder):
        pass
    if name == ".lock":
        (folder / "running.json").write_text(before)
        assert lock.read_holder(folder) == (lock.LockHolder("h", 1, "s"), True)
    assert target.read_text() == before


def test_other_hard_links_are_unchanged(tmp_path: Path) -> None:
    """Hard links, as `cp -l` makes them."""
    folder, record = tmp_path / "run", '{"host": "h", "process": 1, "since": "s"}'
    folder.mkdir()
    for name, text in (("running.json", record), (".lock", "")):
        (tmp_path / name).write_text(text)
        (folder / name).hardlink_to(tmp_path / name)
    with lock.lock_run_folder(folder) as killed:
        assert killed == lock.LockHolder("h", 1, "s")
        assert json.loads((folder / "running.json").read_text())["host"] == socket.gethostname()
    assert (tmp_path / "running.json").read_text() == record


@pytest.mark.parametrize("is_linked", [True, False])
def test_lock_that_would_empty_file_is_refused(tmp_path: Path, is_linked: bool) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    if is_linked:
        (tmp_path / "run" / ".lock").hardlink_to(tmp_path / "mine")
    else:
        (tmp_path / "run" / ".lock").write_text("mine")
    with (
        pytest.raises(UserError, match=r"run/.lock is not empty, .*\nDelete it, or choose another"),
        lock.lock_run_folder(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "run" / ".lock").read_text() == "mine"


def test_reading_empties_no_file(tmp_path: Path) -> None:
    """A folder may have a .lock and a running.json of its user's."""
    (tmp_path / ".lock").write_text("mine")
    (tmp_path / "running.json").write_text('{"host": "h", "process": 1, "since": "s"}')
    assert lock.read_holder(tmp_path)[1] is False
    assert (tmp_path / ".lock").read_text() == "mine"


@pytest.mark.parametrize("reads", [False, True])
def test_lock_held_briefly_is_tried_again(tmp_path: Path, reads: bool) -> None:
    """Another process that lists runs holds a lock for microseconds."""
    (tmp_path / "running.json").write_text('{"host": "h", "process": 1, "since": "s"}')
    other = FileLock(tmp_path / ".lock", thread_local=False)
    other.acquire()
    timer = Timer(lock.READ_S / 3, partial(other.release, force=True))
    timer.start()
    if reads:
        assert lock.read_holder(tmp_path) == (lock.LockHolder("h", 1, "s"), False)
    else:
        with lock.lock_run_folder(tmp_path) as killed:
            assert killed == lock.LockHolder("h", 1, "s")
    timer.join()
