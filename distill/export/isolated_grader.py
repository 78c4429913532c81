"""Check a course submission in a separate process that cannot import this project.

The generated file contains names from a run's files, which are not trusted, so it is never imported
into this process.
"""

import os
import subprocess
import sys
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from distill.data.image_set import CHANNELS
from distill.errors import Failure
from distill.files.escape_text import visible

# The only environment variables that the process gets: those that torch needs to load …
ENVIRONMENT = (
    "PATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SYSTEMROOT",
    "TMPDIR",
    "TEMP",
    "TMP",
)
THREADS = ("OMP_", "MKL_", "KMP_", "DNNL_", "ONEDNN_")  # … and prefixes of those on its threads

# The program of the process. It first writes its number of parameters, int64. For each request it
# reads N and S, int64, and N images of S x S pixels, and writes the number of classes, int64, and N
# rows of logits. All numbers are little-endian; images and logits are float32. N = 0 ends the
# process.
PROGRAM = """
import os, sys
for name in ("distill", "networks", "students", "teachers", "cli"):
    sys.modules[name] = None
output = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
import numpy, torch
folder, code, weights, channels = sys.argv[1:]
module = {"__name__": "project1_model"}
with open(os.path.join(folder, code), encoding="utf-8") as file:
    exec(compile(file.read(), code, "exec"), module)
model = module["project1_model"]()
state = torch.load(os.path.join(folder, weights), weights_only=True, map_location="cpu")
model.load_state_dict(state, strict=True)
model.eval()
def integer():
    return int.from_bytes(sys.stdin.buffer.read(8), "little")
def reply(number, content=b""):
    output.write(number.to_bytes(8, "little") + content)
    output.flush()
reply(sum(p.numel() for p in model.parameters()))
while n := integer():
    side = integer()
    shape = (-1, int(channels), side, side)
    content = sys.stdin.buffer.read(4 * n * shape[1] * shape[2] * shape[3])
    images = torch.from_numpy(numpy.frombuffer(content, "<f4").reshape(shape).copy())
    with torch.no_grad():
        logits = model(images)
    reply(logits.shape[1], logits.numpy().astype("<f4").tobytes())
"""


class Grader:
    """Runs the network of a course submission in a separate process, as the course's grader would.

    `folder` contains the files `code` (Python) and `weights`. Call the object with normalised
    images float32 [B, 3, S, S]; it returns logits [B, C]. Both raise Failure if the code fails or
    the process ends. The process is stopped when the object is deleted.
    """

    def __init__(self, folder: Path, code: str, weights: str) -> None:
        self._code = code
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
        arguments = [str(folder.absolute()), code, weights, str(CHANNELS)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=folder,
            env=_environment(),
        )
        weakref.finalize(self, _end, self._process, self._errors)
        self.n_parameters = self._integer()

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits [B, C] of one batch, on the CPU."""
        n, content = len(images), images.detach().cpu().numpy().astype("<f4").tobytes()
        assert self._process.stdin is not None
        try:
            head = n.to_bytes(8, "little") + images.shape[-1].to_bytes(8, "little")
            self._process.stdin.write(head + content)
            self._process.stdin.flush()
        except OSError as fault:
            raise self._failure() from fault
        n_classes = self._integer()
        logits = np.frombuffer(self._read(4 * n * n_classes), "<f4").reshape(n, n_classes)
        return torch.from_numpy(logits.copy())

    def _integer(self) -> int:
        return int.from_bytes(self._read(8), "little")

    def _read(self, n_bytes: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(n_bytes)
        if len(content) < n_bytes:
            raise self._failure()
        return content

    def _failure(self) -> Failure:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="backslashreplace").strip().splitlines()
        why = visible(lines[-1]) if lines else "no message"
        return Failure(
            f"{self._code} fails in a separate process, exit code {code}: {why}. Its files were "
            "deleted.\nThis is an error of this program; try another --format."
        )


def _end(process: "subprocess.Popen[bytes]", errors: IO[bytes]) -> None:
    process.kill()
    process.wait()
    errors.close()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with suppress(OSError):  # unsent data to a process that has ended
            stream.close()


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name.startswith(THREADS)
    }
