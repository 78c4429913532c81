"""Measure whether several processes train as good a student as one.

    python -m benchmarks.processes --teacher RUN [--seeds S…] [--processes N…] [--set KEY=VALUE…]

Trains the same recipe with each seed and number of processes, through `accelerate launch`, into
`runs/processes/<N>-<seed>`; a finished run is not repeated. The global batches are equal bit for
bit, but batch norm uses the statistics of each process's part of the batch; this benchmark measures
how that affects the accuracy. Writes `results/processes.json`: for each number of processes the
test accuracies with their mean and sample standard deviation, and the differences to one process,
seed by seed, with their interval.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.claim import RESULTS, environment, figures, resolved, top1
from benchmarks.methods import train
from benchmarks.scaling import free_port
from distill.format import mean_and_std
from distill.runs.run_folder import RunFolder, open_finished, write_json
from distill.statistics import mean_and_interval, paired_difference

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "kd_cutmix+two_cores+cached_targets"
# Overrides with which a run takes only a few minutes.
SHORT = ("data.train_images=10000", "train.epochs=8")


def command(
    processes: int, seed: int, out: Path, teacher: str, overrides: Sequence[str]
) -> list[str]:
    """Return the command of one run, with `processes` processes."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "accelerate.commands.launch", "--multi_gpu"]  # needed on CPUs too
        launch += ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    sets = [*SHORT, *overrides, f"train.seed={seed}", f"data.seed={seed}"]
    options = ["--recipe", RECIPE, "--teacher", teacher, "--out", str(out), "--resume"]
    options += [word for override in sets for word in ("--set", override)]
    return [*launch, "cli.py", "distill", *options]


def table(runs: dict[int, list[RunFolder]]) -> dict[str, Any]:
    """Return the accuracies for each number of processes, and the differences to one process.

    `runs`: by number of processes, in the order of the seeds.
    """
    one = [top1(run) for run in runs[1]]
    rows: dict[str, Any] = {}
    for processes, folders in runs.items():
        values = [top1(run) for run in folders]
        row = asdict(mean_and_interval(values)) | {"values": values}
        if processes > 1:
            difference, p = paired_difference(values, one)
            within = abs(difference.mean) <= (mean_and_interval(one).std or 0.0)
            row["difference"] = asdict(difference) | {"p": p, "within_seed_spread": within}
        rows[str(processes)] = row
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--set", dest="overrides", nargs="*", default=[])
    given = parser.parse_args(arguments)
    runs: dict[int, list[RunFolder]] = {n: [] for n in given.processes}
    for seed in given.seeds:
        for n in given.processes:
            out = ROOT / "runs" / "processes" / f"{n}-{seed}"
            train(command(n, seed, out, given.teacher, given.overrides), out)
            runs[n].append(open_finished(out))
            print(f"seed {seed}, {n} processes: {top1(runs[n][-1]):.2%}", flush=True)
    rows = table(runs)
    first = runs[1][0]
    write_json(
        RESULTS / "processes.json",
        {
            "claim": "1, 2 and 4 processes train equally good students",
            "command": f"python -m benchmarks.processes {' '.join(sys.argv[1:])}",
            "processes": rows,
            "teacher": figures(RunFolder(Path(given.teacher))),
            "each": [figures(run) for folders in runs.values() for run in folders],
            "environment": environment(first),
            "recipe": resolved(first),
        },
    )
    for n, row in rows.items():
        print(f"{n} processes: {mean_and_std(row['mean'], row['std'])} %")


if __name__ == "__main__":
    main()
