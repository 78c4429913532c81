"""Two machines, that is two network namespaces with a cable between: the run of two processes."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.test_processes import ACCELERATE, ROOT, free_port, losses, run_ranks

HOSTS = {"understudy-a": "10.77.0.1", "understudy-b": "10.77.0.2"}
RUN = [
    "distill", "--recipe", "tiny+cutmix+ema", "--set", "loss.kd=false", "--set",
    "loss.hard.weight=1", "--set", "train.epochs=2",
]  # fmt: skip

pytestmark = [
    pytest.mark.multi,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("ip") is None or os.geteuid() != 0, reason="making hosts needs ip and root"
    ),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def cabled() -> Iterator[None]:
    """Two hosts that reach each other and nothing else."""
    a, b = HOSTS
    for host in HOSTS:
        ip("netns", "add", host)
    try:
        ip("link", "add", "cable", "netns", a, "type", "veth", "peer", "name", "cable", "netns", b)
        for host, address in HOSTS.items():
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "link", "set", "cable", "up")
        yield
    finally:
        for host in HOSTS:
            ip("netns", "del", host)


def test_two_machines_are_two_processes(cabled: None, tmp_path: Path) -> None:
    port = free_port()
    environ = os.environ | {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "cable",
    }  # fmt: skip
    meeting = ["--main_process_ip", HOSTS["understudy-a"], "--main_process_port", port]
    machines = [
        subprocess.Popen(
            [
                "ip", "netns", "exec", host, *map(str, [*ACCELERATE, 2, "--num_machines", 2]),
                "--machine_rank", str(rank), *map(str, meeting), "cli.py", *RUN,
                "--out", str(tmp_path / "machines"),
            ],
            cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True,
        )
        for rank, host in enumerate(HOSTS)
    ]  # fmt: skip
    outputs = [machine.communicate(timeout=200)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    run_ranks(2, "cli.py", *RUN, "--out", tmp_path / "here")
    there, here = (losses(tmp_path / name) for name in ("machines", "here"))
    assert there == pytest.approx(here, abs=1e-5) and len(here) == 20
