"""The same student under many methods, some seeds each, and beside no teacher.

    python -m benchmarks.methods NAME --teacher RUN [--recipes R…] [--seeds S…] [--workers N]
                                      [--with INGREDIENT] [--set KEY=VALUE…]

Runs `python cli.py distill` for every recipe and seed, `--workers` at a time with one thread each,
into `runs/NAME/<recipe>-<seed>`; a finished run is not repeated. Data and weights are drawn from
the same seed, so that runs of one seed see the same images, and recipes that may share stored
targets do (`CACHED`). Then writes `results/NAME.json`: of each recipe the test accuracies, their
mean and sample standard deviation, and the differences to the first recipe's, seed by seed.
Nothing is chosen: every recipe that is named is in the table.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.claim import RESULTS, environment, figures, summary, top1
from distill import recipe as recipes
from distill.errors import UserError
from distill.run_folder import RunFolder, finished, write_json

ROOT = Path(__file__).resolve().parents[1]
ALONE = "student_alone"
METHODS = (
    ALONE, "kd", "dkd", "dist", "logit_std", "mse", "multi_temperature", "soft_mix",
    "function_matching", "fitnet", "at", "sp", "nst", "pkt", "rkd", "vid", "crd", "reviewkd",
    "simkd",
)  # fmt: skip


def command(spec: str, seed: int, out: Path, overrides: Sequence[str], teacher: str) -> list[str]:
    """One run, as a person would type it; its teacher's answers stored where they may be."""
    recipe = recipes.load(spec, overrides).recipe
    seeds = [f"train.seed={seed}", f"data.seed={seed}"]
    if recipes.is_taught(recipe) and "live teacher" not in recipes.needs(recipe):
        seeds.append("cache={}")
    asked = ["--teacher", teacher] if recipes.is_taught(recipe) else []
    sets = [part for each in [*overrides, *seeds] for part in ("--set", each)]
    typed = ["cli.py", "distill", "--recipe", spec, *asked, *sets, "--out", str(out), "--resume"]
    return [sys.executable, *typed]


def train(line: Sequence[str], out: Path) -> None:
    """Run to the end on one core; what it prints goes beside the run."""
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("w") as log:
        done = subprocess.run(
            line, cwd=ROOT, env=os.environ | quiet, stdout=log, stderr=log, check=False
        )
    if done.returncode:
        raise UserError(f"{out} ended with {done.returncode}; read {out.with_suffix('.log')}")


def table(runs: dict[str, list[RunFolder]]) -> dict[str, Any]:
    """Of each recipe the accuracies, and the differences to the first recipe's."""
    alone = [top1(run) for run in next(iter(runs.values()))]
    rows = {}
    for name, folders in runs.items():
        values = [top1(run) for run in folders]
        gains = [value - without for value, without in zip(values, alone, strict=True)]
        spent_s = [run.result()["elapsed_s"] for run in folders]
        rows[name] = {
            "top1": summary(values),
            "difference": summary(gains),
            "elapsed_s": summary(spent_s),
        }
    return rows


def markdown(rows: dict[str, Any]) -> str:
    """The table for a page, best first."""
    lines = [
        "| recipe | top-1, test | beside no teacher | minutes |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["top1"]["mean"]):
        score, gain = (f"{100 * row[key]['mean']:.2f} ± {100 * (row[key]['std'] or 0):.2f}"
                       for key in ("top1", "difference"))  # fmt: skip
        minutes = row["elapsed_s"]["mean"] / 60
        lines.append(f"| `{name}` | {score} % | {gain} | {minutes:.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--recipes", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--with", dest="ingredient", default="two_cores")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[])
    given = parser.parse_args(arguments)
    outs = {
        name: [ROOT / "runs" / given.name / f"{name}-{seed}" for seed in given.seeds]
        for name in given.recipes
    }
    try:
        with ThreadPoolExecutor(given.workers) as pool:
            waiting = []
            for name, folders in outs.items():
                spec = f"{name}+{given.ingredient}"
                for seed, out in zip(given.seeds, folders, strict=True):
                    line = command(spec, seed, out, given.overrides, given.teacher)
                    waiting.append(pool.submit(train, line, out))
            for each in waiting:
                each.result()
        runs = {name: [finished(out) for out in folders] for name, folders in outs.items()}
    except UserError as fault:
        parser.error(str(fault))
    rows = table(runs)
    teacher = RunFolder(Path(given.teacher))
    made = {
        "command": f"python -m benchmarks.methods {' '.join(sys.argv[1:])}",
        "table": rows,
        "teacher": figures(teacher),
        "each": [figures(run) for folders in runs.values() for run in folders],
        "environment": environment(next(iter(runs.values()))[0]),
    }
    write_json(RESULTS / f"{given.name}.json", made)
    print(markdown(rows))


if __name__ == "__main__":
    main()
