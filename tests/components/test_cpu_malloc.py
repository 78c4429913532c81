"""Freed memory is reused: a step after the first touches no new page."""

import subprocess
import sys
from pathlib import Path

import pytest

from distill.components import cpu_malloc

FAULTS_OF_A_STEP = """
import resource, sys, torch
from distill.components.cpu_malloc import keep_freed_memory

if sys.argv[1] == "reuse":
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


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is meant")
def test_a_step_takes_no_new_pages() -> None:
    usual = faults("unchanged")
    if usual < 1000:
        pytest.skip("this kernel gives memory in huge pages, or this libc keeps it by itself")
    assert faults("reuse") < usual / 8


FLAGS_OF_A_TENSOR = """
import pathlib, torch
from distill.components.cpu_malloc import keep_freed_memory

keep_freed_memory()
address = torch.ones(2**24).data_ptr()  # 64 MiB
inside = False
for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
    first, dash, rest = line.split()[0].partition("-")
    if dash:
        inside = int(first, 16) <= address < int(rest, 16)
    if inside and line.startswith("VmFlags:"):
        print(line)
"""


@pytest.mark.long
@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists()
    or cpu_malloc.OVERCOMMIT.read_text().strip() == cpu_malloc.STRICT,
    reason="this kernel has no huge pages, or address space counts as memory",
)
def test_large_tensors_lie_in_huge_pages() -> None:
    command = [sys.executable, "-c", FLAGS_OF_A_TENSOR]
    flags = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "hg" in flags  # proc_pid_smaps(5): advised to use huge pages


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is meant")
def test_limited_address_space_changes_nothing() -> None:
    limited = (
        "import resource, torch; from distill.components.cpu_malloc import keep_freed_memory;"
        "resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31));"
        "assert keep_freed_memory(); torch.ones(2**24)"
    )
    subprocess.run([sys.executable, "-c", limited], check=True)


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cpu_malloc.keep_freed_memory() is False
