"""Run the code cells of a notebook in a separate process, and collect what they print and draw.

The process has neither this project nor Jupyter.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.errors import Failure
from distill.files.escape_text import visible

# The only environment variables that the process gets: those that torch and matplotlib need to
# load, and prefixes of those on torch's threads.
ENVIRONMENT = ("PATH", "HOME", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP")
THREADS = ("OMP_", "MKL_", "KMP_", "DNNL_", "ONEDNN_")
DPI = 100  # of figures

# It reads the cells as JSON, [[name, source], ...], and writes a line of JSON for each cell.
PROGRAM = """
import base64, contextlib, io, json, os, sys
for name in ("distill", "networks", "students", "teachers", "cli"):
    sys.modules[name] = None
output = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
import matplotlib.pyplot as plt  # reads a matplotlibrc of the working folder
os.chdir(sys.argv[1])
plt.show = lambda: None
space = {"__name__": "__main__"}
for name, source in json.load(sys.stdin):
    text = io.StringIO()
    print("cell", name, file=sys.stderr)
    with contextlib.redirect_stdout(text):
        exec(compile(source, name, "exec"), space)
    pngs = []
    for number in plt.get_fignums():
        file = io.BytesIO()
        plt.figure(number).savefig(file, format="png", metadata={"Software": None})
        pngs.append(base64.b64encode(file.getvalue()).decode())
    plt.close("all")
    output.write(json.dumps([name, text.getvalue(), pngs]) + chr(10))
    output.flush()
"""


@dataclass(frozen=True)
class Outputs:
    """What a cell printed, and the figures that it drew."""

    text: str = ""
    pngs: tuple[str, ...] = ()  # PNG files in base64


def execute(cells: Mapping[str, str], folder: Path) -> dict[str, Outputs]:
    """Run code cells, name to source, in their order in the working folder `folder`.

    Returns the outputs by name. Raises Failure if a cell raises an error.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", PROGRAM, str(folder.resolve())],
        input=json.dumps(list(cells.items())).encode(),
        capture_output=True,
        cwd=sys.prefix,  # not the run's folder, whose matplotlibrc may be a stranger's
        env=_environment(),
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.decode().splitlines()]
    outputs = {name: Outputs(text, tuple(pngs)) for name, text, pngs in lines}
    if done.returncode:
        errors = done.stderr.decode(errors="backslashreplace").strip().splitlines()
        name = next((cell for cell in cells if cell not in outputs), "")
        raise Failure(
            f"The cell {name!r} of the notebook fails, exit code {done.returncode}: "
            f"{visible(errors[-1]) if errors else 'no message'}.\nThe notebook was not written."
        )
    return outputs


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name.startswith(THREADS)
    }
    return kept | {"MPLBACKEND": "Agg", "MATPLOTLIBRC": os.devnull}
