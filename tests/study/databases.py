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

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
PASSWORD = "p4ss-w0rd"


def absent() -> str:
    """Why there can be none here; empty where there can."""
    if not PROGRAMS:
        return (
            "no PostgreSQL: there is no /usr/lib/postgresql/*/bin/initdb (apt install postgresql)"
        )
    if os.getuid() == 0 and shutil.which("runuser") is None:
        return "PostgreSQL refuses to run as root, and there is no runuser"
    return ""


@contextmanager
def postgresql(place: Path) -> Iterator[str]:
    """Its address, password included. Not durable: a test has nothing to lose."""
    bin_, home = PROGRAMS[-1].parent, place / "postgresql"
    home.mkdir()
    (place / "secret").write_text(PASSWORD)
    run = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if run:
        for folder in (home, place / "secret"):
            shutil.chown(folder, "postgres")
        for folder in home.parents:  # pytest keeps its folders to their owner
            if folder.owner() == "root" and not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o011)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = home / "data"
    made = [bin_ / "initdb", "-D", files, "-U", "sweeper", "-A", "scram-sha-256", "--no-sync"]
    _done([*run, *made, f"--pwfile={place / 'secret'}"])
    settings = ["-c", "listen_addresses=127.0.0.1", "-k", str(home), "-c", "fsync=off"]
    server = [*run, str(bin_ / "postgres"), "-D", str(files), "-p", str(port), *settings]
    with (place / "log").open("w") as log:  # runuser becomes the server: its process is ours
        running = subprocess.Popen(server, stdout=log, stderr=log, cwd="/")
    try:
        _await(bin_ / "pg_isready", port)
        yield f"postgresql://sweeper:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        running.send_signal(signal.SIGQUIT)  # at once, whoever is connected
        running.wait(20)


def _await(asks: Path, port: int) -> None:
    for _ in range(100):
        asked = subprocess.run([asks, "-h", "127.0.0.1", "-p", str(port)], capture_output=True)
        if asked.returncode == 0:
            return
        time.sleep(0.1)
    raise TimeoutError("PostgreSQL does not answer")


def _done(command: list[object]) -> None:
    words = [str(word) for word in command]
    subprocess.run(words, check=True, capture_output=True, cwd="/", timeout=60)
