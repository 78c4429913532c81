"""Arrays kept between runs: whole or not at all, whoever writes and however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from distill.data import cache

KEY, SHAPE = "targets/abc/view-00000", (2000, 1000)  # 4 MB: a write takes milliseconds
WRITER = """
import sys, numpy as np
from distill.data import cache
print(flush=True)
while True:
    cache.keep(sys.argv[1], np.full((2000, 1000), 7, np.float16))
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


def test_two_writers_and_a_reader_never_meet() -> None:
    writers = [writer(), writer()]
    try:
        while not cache.is_kept(KEY):
            time.sleep(0.01)
        for _ in range(50):
            found = cache.recall(KEY, SHAPE, np.float16)
            assert found is not None
            assert (found == 7).all()
    finally:
        for process in writers:
            end(process)


def test_a_kill_while_writing_leaves_what_was_there() -> None:
    cache.keep(KEY, np.full(SHAPE, 7, np.float16))
    for milliseconds in range(0, 40, 8):
        process = writer()
        time.sleep(milliseconds / 1000)
        end(process)
        found = cache.recall(KEY, SHAPE, np.float16)
        assert found is not None
        assert (found == 7).all()


def test_what_cannot_be_written_is_not_kept(own_cache: Path) -> None:
    (own_cache / "targets").write_text("a file where a folder should be")
    cache.keep(KEY, np.zeros(SHAPE, np.float16))
    assert cache.recall(KEY, SHAPE, np.float16) is None
    assert not cache.is_kept(KEY)


def test_another_kind_is_not_found() -> None:
    cache.keep(KEY, np.zeros((3, 2), np.float16))
    assert cache.recall(KEY, (2, 3), np.float16) is None
    assert cache.recall(KEY, (3, 2), np.float32) is None
    assert cache.recall(KEY, None, np.float16) is not None
