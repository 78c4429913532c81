"""A PostgreSQL of a test's own: Debian's programs, loopback, a free port, gone at the end."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
PASSWORD = "p4ss-w0rd"


def absent() -> str:
    """Why there can be none here; empty where there can."""
    if not PROGRAMS:
        return "no PostgreSQL: neither /usr/lib/postgresql/*/bin/initdb (apt install postgresql)"
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
    settings = f"-c listen_addresses=127.0.0.1 -p {port} -k {home} -c fsync=off"
    control = [*run, bin_ / "pg_ctl", "-D", files, "-w", "-l", home / "log"]
    _done([*control, "-o", settings, "start"])
    try:
        yield f"postgresql://sweeper:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        _done([*control, "-m", "immediate", "stop"])


def _done(command: list[object]) -> None:
    words = [str(word) for word in command]
    subprocess.run(words, check=True, capture_output=True, cwd="/", timeout=60)
