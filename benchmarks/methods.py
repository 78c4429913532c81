"""Train the same student with many distillation methods, and without a teacher, on several seeds.

    python -m benchmarks.methods NAME --teacher RUN [--recipes R…] [--seeds S…] [--workers N]
                                      [--with INGREDIENT] [--set KEY=VALUE…]

Runs `python cli.py distill` for every recipe and seed, and for the control of each recipe, into
`runs/NAME/<recipe>-<seed>`. A control is the same recipe without a teacher; recipes that differ
only in the teacher's term share one. `--workers` runs are trained at a time, with one thread each.
A finished run is not repeated. Data and weights have the same seed: runs of one seed see the same
images, and recipes that need only the teacher's logits share the cache.

Then writes `results/NAME.json`: for each recipe the test accuracies, their mean and sample standard
deviation, and the differences to its control, seed by seed. No recipe is left out of the table.
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
from distill.errors import UserError
from distill.files.escape_text import visible
from distill.format import mean_and_std
from distill.recipe import recipe_variants, recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import RunFolder, open_finished, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
METHODS = (
    "kd", "dkd", "dist", "logit_std", "mse", "multi_temperature", "function_matching", "soft_mix",
    "ctkd", "mlkd", "ttm", "wttm",
    "fitnet", "at", "sp", "nst", "fsp", "ab", "ft", "pkt", "rkd", "cc", "vid", "crd", "reviewkd",
)  # fmt: skip
INGREDIENT = "two_cores"
# Overrides of a recipe with this ingredient: fsp's student has the channels of its teacher.
OVERRIDES = {"fsp": ("student.width=32",)}
SHOWN_LINES = 4  # of the output of a run that failed


def command(
    spec: str, recipe: Recipe, seed: int, out: Path, overrides: Sequence[str], teacher: str
) -> list[str]:
    """Return the command of one run, which caches the teacher's logits unless a loss term needs the
    teacher's feature maps.

    `spec`: a recipe's name, path or composition a+b. `overrides`: KEY=VALUE. `teacher`: a run
    folder.
    """
    has_teacher = recipes.has_teacher(recipe)
    sets = [*overrides, f"train.seed={seed}", f"data.seed={seed}"]
    if has_teacher and "live teacher" not in recipes.required_inputs(recipe):
        sets.append("cache={}")
    options = ["--teacher", teacher] if has_teacher else []
    options += [part for override in sets for part in ("--set", override)]
    arguments = ["distill", "--recipe", spec, *options, "--out", str(out), "--resume"]
    return [sys.executable, "cli.py", *arguments]


def control(recipe: Recipe, folder: Path) -> Path:
    """Write the control of a recipe, the recipe without its teacher, into `folder`.

    Returns the path of the file, which is named by the fingerprint of the control.
    """
    no_teacher = recipe_variants.control_recipe(recipe).model_copy(
        update={"teacher": None, "about": recipes.About()}
    )
    path = folder / f"alone-{recipe_fingerprint(no_teacher)[:8]}.toml"
    write_text(path, recipes.dumps(no_teacher))
    return path


def train(line: Sequence[str], out: Path) -> None:
    """Run a training command with one thread; append its output to a .log file beside `out`.

    `out`: the run folder. Raises UserError, with the end of the output, if the command fails.
    """
    one_thread = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".log")
    with file.open("a") as log:
        begin = log.tell()
        done = subprocess.run(
            line, cwd=ROOT, env=os.environ | one_thread, stdout=log, stderr=log, check=False
        )
    if done.returncode:
        with file.open(errors="replace") as log:
            log.seek(begin)
            end = log.read().strip().splitlines()[-SHOWN_LINES:]
        raise UserError(
            f"The run {out} failed with exit code {done.returncode}; {file} ends with\n"
            + "\n".join(f"  {visible(each)}" for each in end)
        )


def table(runs: dict[str, list[RunFolder]], controls: dict[str, str]) -> dict[str, Any]:
    """Return the accuracies of each recipe, and their differences to its control's.

    `runs`: by name of the recipe or control, in the order of the seeds. `controls`: the name of
    each recipe's control.
    """
    rows = {}
    for name, folders in runs.items():
        values = [top1(run) for run in folders]
        elapsed_s = [run.result()["elapsed_s"] for run in folders]
        row: dict[str, Any] = {"top1": summary(values), "elapsed_s": summary(elapsed_s)}
        if name in controls:
            control_values = [top1(run) for run in runs[controls[name]]]
            differences = [a - b for a, b in zip(values, control_values, strict=True)]
            row |= {"control": controls[name], "difference": summary(differences)}
        rows[name] = row
    return rows


def markdown(rows: dict[str, Any]) -> str:
    """Return the rows of `table` as a Markdown table, the best recipe first."""
    lines = [
        "| recipe | top-1, test | above its control | minutes |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["top1"]["mean"]):
        difference = f"{percent(row['difference'])} points" if "difference" in row else "a control"
        minutes = row["elapsed_s"]["mean"] / 60
        lines.append(f"| `{name}` | {percent(row['top1'])} % | {difference} | {minutes:.1f} |")
    return "\n".join(lines)


def percent(values: dict[str, Any]) -> str:
    """Format the mean and standard deviation of accuracies in percent, such as `71.46 ± 0.60`."""
    return mean_and_std(values["mean"], values["std"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--recipes", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--with", dest="ingredient", default=INGREDIENT)
    parser.add_argument("--set", dest="overrides", nargs="*", default=[])
    given = parser.parse_args(arguments)
    folder = ROOT / "runs" / given.name
    try:
        runs, controls = trained(given, folder)
    except UserError as fault:
        parser.error(str(fault))
    rows = table(runs, controls)
    content = {
        "command": f"python -m benchmarks.methods {' '.join(sys.argv[1:])}",
        "table": rows,
        "teacher": figures(RunFolder(Path(given.teacher))),
        "each": [figures(run) for folders in runs.values() for run in folders],
        "environment": environment(next(iter(runs.values()))[0]),
    }
    write_json(RESULTS / f"{given.name}.json", content)
    print(markdown(rows))


def trained(
    given: argparse.Namespace, folder: Path
) -> tuple[dict[str, list[RunFolder]], dict[str, str]]:
    """Train every recipe and control with every seed, into `folder`.

    Returns the runs by name of the recipe or control, and the name of each recipe's control.
    """
    folder.mkdir(parents=True, exist_ok=True)
    planned: dict[str, tuple[str, Recipe, Sequence[str]]] = {}
    controls = {}
    for name in given.recipes:
        spec = f"{name}+{given.ingredient}"
        own = OVERRIDES.get(name, ()) if given.ingredient == INGREDIENT else ()
        overrides = (*own, *given.overrides)
        recipe = recipes.load(spec, overrides).recipe
        control_path = control(recipe, folder)
        planned[control_path.stem] = (str(control_path), recipes.read(control_path), ())
        planned[name] = (spec, recipe, overrides)
        controls[name] = control_path.stem
    outs = {name: [folder / f"{name}-{seed}" for seed in given.seeds] for name in planned}
    with ThreadPoolExecutor(given.workers) as pool:
        futures = [
            pool.submit(train, command(spec, recipe, seed, out, overrides, given.teacher), out)
            for name, (spec, recipe, overrides) in planned.items()
            for seed, out in zip(given.seeds, outs[name], strict=True)
        ]
        for future in futures:
            future.result()
    return {
        name: [open_finished(out) for out in folders] for name, folders in outs.items()
    }, controls


if __name__ == "__main__":
    main()
