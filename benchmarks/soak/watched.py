"""Detect whether an attack runs code or changes files outside the attacked folder."""

import hashlib
import os
import stat
from pathlib import Path

SECRET = "content of a file that no command was asked to read"


class Neighbour:
    """A folder beside the attacked one, which no command may change.

    Hostile links point to its files. `mark` is the path of a file that hostile code would create in
    it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder / "mark"
        self._write()

    def change(self) -> str:
        """Return how the folder changed since the last call; empty if it did not. Restores it."""
        if self.mark.exists():
            self.mark.unlink()
            return "code ran: the mark is there"
        if tree_digest(self.folder) != self._digest:
            self._write()
            return "a file outside the folder was written or deleted"
        return ""

    def _write(self) -> None:
        """Write the folder's files, and store their digest."""
        (self.folder / "epochs").mkdir(parents=True, exist_ok=True)
        for name in ("file", "epochs/epoch-1.safetensors", "epochs/epoch-9.safetensors"):
            (self.folder / name).write_text(f"{SECRET}\n")
        self._digest = tree_digest(self.folder)


def tree_digest(root: Path) -> str:
    """Return the sha256, hex, of the paths, types and contents of everything below a folder."""
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
