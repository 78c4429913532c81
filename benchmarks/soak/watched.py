"""Detect what an attack does outside its own files."""

import hashlib
import os
import stat
from pathlib import Path

SECRET = "content of a file that no command was asked to read"


class Neighbour:
    """A folder that no command is given: links point to it, and it must never change.

    `mark` is a file in it that an attack's code would write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder / "mark"
        self._write()

    def change(self) -> str:
        """Return what happened to the folder since the last call; empty if nothing did."""
        if self.mark.exists():
            self.mark.unlink()
            return "code ran: the mark is there"
        if tree_digest(self.folder) != self._digest:
            self._write()
            return "a file outside the folder was written or deleted"
        return ""

    def _write(self) -> None:
        """Write its files and store their digest."""
        (self.folder / "epochs").mkdir(parents=True, exist_ok=True)
        for name in ("file", "epochs/epoch-1.safetensors", "epochs/epoch-9.safetensors"):
            (self.folder / name).write_text(f"{SECRET}\n")
        self._digest = tree_digest(self.folder)


def tree_digest(root: Path) -> str:
    """Return the sha256, hex, of path, kind and content of everything below a folder."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        digest.update(
            f"{path.relative_to(root)!s:.500}\0{stat.S_IFMT(mode)}\0".encode(errors="replace")
        )
        if stat.S_ISLNK(mode):
            digest.update(os.fsencode(os.readlink(path)))
        elif stat.S_ISREG(mode):
            digest.update(path.read_bytes())
    return digest.hexdigest()
