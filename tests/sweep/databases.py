"""A PostgreSQL of a test's own: Debian's programs, loopback, a free port, gone at the end."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
PASSWORD = "p4ss-w0rd"
USER = "postgres"  # Debian's; the server refuses to be root's


def absent() -> str:
    """Why there can be none here; empty where there can."""
    if PROGRAMS:
        return ""
    return "there is no /usr/lib/postgresql/*/bin/initdb: apt install postgresql"


@contextmanager
def postgresql(place: Path) -> Iterator[str]:
    """Its address, password included. Not durable: a test has nothing to lose."""
    programs, home, secret = PROGRAMS[-1].parent, place / "postgresql", place / "secret"
    home.mkdir()
    secret.write_text(PASSWORD)
    how: dict[str, Any] = {"cwd": "/"}
    if os.getuid() == 0:
        how |= {"user": USER, "group": USER, "extra_groups": []}
        for path in (home, secret):
            shutil.chown(path, USER)
        for folder in (place, *place.parents):  # pytest keeps its folders to their owner
            if folder.owner() == "root" and not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o011)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = [programs / "initdb", "-D", home / "data", "-U", "sweeper", "-A", "scram-sha-256"]
    made += ["--no-sync", f"--pwfile={secret}"]
    subprocess.run(made, check=True, capture_output=True, timeout=60, **how)
    settings = ["-c", "listen_addresses=127.0.0.1", "-k", home, "-c", "fsync=off"]
    server = [programs / "postgres", "-D", home / "data", "-p", str(port), *settings]
    with (place / "log").open("w") as log:
        running = subprocess.Popen(server, stdout=log, stderr=log, **how)
    try:
        _await(programs / "pg_isready", port)
        yield f"postgresql://sweeper:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        running.send_signal(signal.SIGQUIT)  # at once, whoever is connected
        running.wait(20)


def _await(asks: Path, port: int) -> None:
    for _ in range(100):
        question = [asks, "-h", "127.0.0.1", "-p", str(port)]
        if subprocess.run(question, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise TimeoutError("PostgreSQL does not accept connections")
