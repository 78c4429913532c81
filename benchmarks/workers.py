"""Compare the trials per hour of a sweep with one worker and with two.

    python -m benchmarks.workers [--trials N] [--rounds N] [--storage URL]

Runs the same sweep, without pruning, with one process and with two, in SQLite or in the given
--storage; each worker computes with one thread. The order alternates from round to round, so that a
slow minute affects both; the medians are compared. Trials per hour are the number of trials divided
by the time from the start of the first trial to the end of the last one. This includes the time
that one worker waits for the other at the end, but not their start-up. Writes
`results/sweep_workers.json`.
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
# A student of 78,042 parameters on synthetic images: a trial takes seconds on one core.
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
    """Run a new sweep with `n_workers` workers; return the trials per hour.

    `trials`: number of trials. `name`: of the sweep. `storage`: URL of a database; None for SQLite.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, file = Path(folder) / "out", Path(folder) / "sweep.toml"
        file.write_text(SWEEP.format(name=name, trials=trials))
        command = [sys.executable, str(ROOT / "cli.py"), "sweep", str(file), "--out", str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if storage is not None:
            environment["UNDERSTUDY_STORAGE"] = storage
        processes = [
            subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            for _ in range(n_workers)
        ]
        for process in processes:
            stderr = process.communicate()[1]
            if process.returncode:
                raise SystemExit(stderr.decode())
        return hourly(json.loads((out / "sweep.json").read_text())["trials"], n_workers)


def hourly(rows: Sequence[dict[str, Any]], n_workers: int) -> float:
    """Return the trials per hour, from the start of the first trial to the end of the last one.

    `rows`: the trials of sweep.json. Raises SystemExit if a worker had no trial, because fewer
    than `n_workers` workers would then be measured.
    """
    active = set(chain.from_iterable(row["workers"] for row in rows))
    if len(active) != n_workers:
        raise SystemExit(
            f"only {len(active)} of {n_workers} workers had a trial; type --trials with more"
        )
    began = min(datetime.fromisoformat(row["began"]) for row in rows)
    ended = max(datetime.fromisoformat(row["ended"]) for row in rows)
    return 3600 * len(rows) / (ended - began).total_seconds()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=12, help="trials per sweep [12]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--storage", help="the URL of a database [a SQLite file]")
    given = parser.parse_args(arguments)
    per_hour: dict[int, list[float]] = {n: [] for n in WORKERS}
    for number in range(given.rounds):
        for n in WORKERS if number % 2 == 0 else WORKERS[::-1]:
            name = f"workers-{os.getpid()}-{number}-{n}"
            per_hour[n].append(measured(n, given.trials, name, given.storage))
            print(f"round {number + 1}, {n} workers: {per_hour[n][-1]:.0f} trials per hour")
    one, two = (median(per_hour[n]) for n in WORKERS)
    print(f"two workers do {two / one:.2f} times as many trials as one")
    write_json(
        RESULT,
        {
            "claim": "Two workers of a sweep on two cores do 1.7 times the trials of one",
            "ratio": two / one,
            "trials_per_hour": {str(n): values for n, values in per_hour.items()},
            "trials": given.trials,
            "storage": "SQLite" if given.storage is None else given.storage.split(":")[0],
            "sweep": SWEEP.strip(),
            "hardware": {"cores": os.cpu_count(), "processor": platform.processor()},
            "source": source_hash(),
        },
    )


if __name__ == "__main__":
    main()
