"""Freed memory is kept: a step after the first touches no new page."""

import subprocess
import sys

import pytest

from distill.engine import allocator

FAULTS_OF_A_STEP = """
import resource, sys, torch
from distill.engine.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
convolution = torch.nn.Conv2d(16, 16, 3, padding=1)
def step():
    with torch.no_grad():
        maps = torch.ones(64, 16, 64, 64)  # 16.8 MB
        for _ in range(4):
            maps = convolution(maps)
for _ in range(6):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", FAULTS_OF_A_STEP, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is meant")
def test_a_step_takes_no_new_pages() -> None:
    usual = faults("as it is")
    if usual < 1000:
        pytest.skip("this kernel gives memory in huge pages, or this libc keeps it by itself")
    assert faults("kept") < usual / 8


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert allocator.keep_freed_memory() is False
