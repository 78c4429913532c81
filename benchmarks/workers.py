"""How many trials an hour two workers of a sweep do beside one: `python -m benchmarks.workers`.

The same sweep, without pruning, is worked on by one process and by two, on SQLite or the --storage
that is given; each worker computes with one thread. Rounds go there and back, so that a slow minute
falls on both; medians count. An hour's trials are the sweep's number over the time from its first
trial's beginning to its last one's end: what a worker takes to start is left out, and its waiting
for the other at the end is not. Writes `results/sweep_workers.json`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from distill.runs.run_folder import write_json
from distill.training.environment import source_hash

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "sweep_workers.json"
WORKERS = (1, 2)
# A student of 78,042 parameters on drawn pictures: seconds a trial on one core, most of it steps.
SWEEP = """
recipe = "student_alone+two_cores"
set = ["data.source=synthetic", "data.holdout=0.1", "data.train_images=2000", "train.epochs=2",
       "optim.warmup_epochs=0", "train.log_every=1000"]
[study]
name = "{name}"
trials = {trials}
sampler = "random"
pruner = "none"
[space]
optim.lr = {{ log = [0.02, 0.5] }}
"""


def measured(n_workers: int, trials: int, name: str, storage: str | None) -> float:
    """Trials an hour of so many workers on a fresh sweep."""
    with tempfile.TemporaryDirectory() as folder:
        out, file = Path(folder) / "out", Path(folder) / "sweep.toml"
        file.write_text(SWEEP.format(name=name, trials=trials))
        command = [sys.executable, str(ROOT / "cli.py"), "sweep", str(file), "--out", str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if storage is not None:
            environment["UNDERSTUDY_STORAGE"] = storage
        running = [
            subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            for _ in range(n_workers)
        ]
        for each in running:
            said = each.communicate()[1]
            if each.returncode:
                raise SystemExit(said.decode())
        return hourly(json.loads((out / "sweep.json").read_text())["trials"], n_workers)


def hourly(rows: Sequence[dict[str, Any]], n_workers: int) -> float:
    """Trials an hour, from the first one's beginning to the last one's end.

    Raises SystemExit where a worker had none, which measures something else.
    """
    took_part = set(chain.from_iterable(row["workers"] for row in rows))
    if len(took_part) != n_workers:
        raise SystemExit(f"{len(took_part)} of {n_workers} workers had a trial; type --trials more")
    began = min(datetime.fromisoformat(row["began"]) for row in rows)
    ended = max(datetime.fromisoformat(row["ended"]) for row in rows)
    return 3600 * len(rows) / (ended - began).total_seconds()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=12, help="of each sweep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--storage", help="an address; without it SQLite")
    asked = parser.parse_args(arguments)
    found: dict[int, list[float]] = {n: [] for n in WORKERS}
    for number in range(asked.rounds):
        for n in WORKERS if number % 2 == 0 else WORKERS[::-1]:
            name = f"workers-{os.getpid()}-{number}-{n}"
            found[n].append(measured(n, asked.trials, name, asked.storage))
            print(f"round {number + 1}, {n} workers: {found[n][-1]:.0f} trials an hour")
    one, two = (median(found[n]) for n in WORKERS)
    print(f"two workers do {two / one:.2f} times as many")
    write_json(
        RESULT,
        {
            "claim": "Two workers of a sweep on two cores do 1.7 times the trials of one",
            "ratio": two / one,
            "trials_per_hour": {str(n): values for n, values in found.items()},
            "trials": asked.trials,
            "storage": "SQLite" if asked.storage is None else asked.storage.split(":")[0],
            "sweep": SWEEP.strip(),
            "hardware": {"cores": os.cpu_count(), "processor": platform.processor()},
            "source": source_hash(),
        },
    )


if __name__ == "__main__":
    main()
