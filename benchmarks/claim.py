"""A claim from finished runs: `python -m benchmarks.claim NAME --claim "…" --runs R… --control C…`.

Writes `results/NAME.json`: the test accuracy of the runs and of their controls, n, mean and sample
standard deviation of each and of the difference of the pairs, in the order given. A pair must share
seeds and data and be each other's control; nothing is chosen, every run that is named counts.
"""

import argparse
import json
import statistics
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.events import measure_name
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder, open_finished, write_json

RESULTS = Path(__file__).resolve().parents[1] / "results"


def claim(text: str, runs: Sequence[RunFolder], controls: Sequence[RunFolder]) -> dict[str, Any]:
    """What is written. Raises UserError where the runs are not pairs."""
    check_pairs(runs, controls)
    differences = [top1(a) - top1(b) for a, b in zip(runs, controls, strict=True)]
    teachers = {path for run in runs for path in run.result()["teacher"]["runs"]}
    return {
        "claim": text,
        "measure": measure_name("top1", "test"),
        "runs": summary([top1(run) for run in runs]),
        "control": summary([top1(run) for run in controls]),
        "difference": summary(differences),
        "teacher": [figures(RunFolder(Path(path))) for path in sorted(teachers)],
        "each": [figures(run) for run in [*runs, *controls]],
        "environment": environment(runs[0]),
        "recipe": resolved(runs[0]),
    }


def summary(values: Sequence[float]) -> dict[str, Any]:
    """n, mean and sample standard deviation; the values themselves."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {
        "n": len(values),
        "mean": statistics.mean(values),
        "std": spread,
        "values": list(values),
    }


def top1(run: RunFolder) -> float:
    """The share of the test split that the kept weights get right."""
    share: float = run.result()["metrics"][measure_name("top1", "test")]
    return share


def figures(run: RunFolder) -> dict[str, Any]:
    """One run in a few lines."""
    result = run.result()
    keys = ("network", "parameters", "epoch", "epochs", "metrics", "elapsed_s", "device", "weights")
    return {
        "run": run.path.name,
        "seeds": seeds(run),
        "source": environment(run)["source"],
        "data": result["data"] | {"source": Path(result["data"]["source"]).name},
    } | {key: result[key] for key in keys}


def resolved(run: RunFolder) -> dict[str, Any]:
    """The recipe of a run, folders by their names alone."""
    recipe = recipes.read(run.recipe)
    recipe = recipes.with_source(recipe, Path(recipe.data.source).name)
    if recipe.teacher is not None:
        recipe = recipes.with_teacher(recipe, [Path(path).name for path in recipe.teacher.runs])
    values: dict[str, Any] = tomllib.loads(recipes.dumps(recipe))
    del values["about"]
    return values


def environment(run: RunFolder) -> dict[str, Any]:
    """Hardware, versions and source hash, without the paths of the command."""
    known: dict[str, Any] = json.loads(run.environment.read_text())
    return {key: value for key, value in known.items() if key != "command"}


def check_pairs(runs: Sequence[RunFolder], controls: Sequence[RunFolder]) -> None:
    """Every run and its control share seeds, images and student; no run counts twice.

    Raises UserError with every fault.
    """
    if len(runs) != len(controls):
        raise UserError(
            f"{len(runs)} runs and {len(controls)} controls make no pairs; give as many."
        )
    every = [*runs, *controls]
    faults = []
    for what, values in {
        "weights": [run.result()["weights"] for run in every],
        "seeds of the runs": [seeds(run) for run in runs],
    }.items():
        if len({str(value) for value in values}) < len(values):
            faults.append(f"the {what} are not all different: a repeated run is no evidence")
    for what in ("data", "teacher"):
        known = {r.result()[what]["fingerprint"] for r in (every if what == "data" else runs)}
        if len(known) > 1:
            faults.append(
                f"the runs differ in their {what}: fingerprints {', '.join(sorted(known))}"
            )
    for a, b in zip(runs, controls, strict=True):
        wanted = alone(recipes.control_recipe(recipes.read(a.recipe)))
        differ = recipes.differences(wanted, alone(recipes.read(b.recipe)))
        faults += [f"{b.path} is not the control of {a.path}: {key}" for key in differ]
    if faults:
        raise UserError("no claim can be made of these runs:\n  " + "\n  ".join(faults))


def seeds(run: RunFolder) -> dict[str, int]:
    """Of the weights and of the data."""
    recipe = recipes.read(run.recipe)
    return {"train": recipe.train.seed, "data": recipe.data.seed}


def alone(recipe: recipes.Recipe) -> recipes.Recipe:
    """The recipe without the teacher, which a control has no use for."""
    return recipe.model_copy(update={"teacher": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claim", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--claim", required=True)
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--control", nargs="+", required=True)
    given = parser.parse_args(arguments)
    try:
        made = claim(
            given.claim,
            *([open_finished(Path(p)) for p in ps] for ps in (given.runs, given.control)),
        )
    except UserError as fault:
        parser.error(str(fault))
    write_json(RESULTS / f"{given.name}.json", made)
    for key in ("runs", "control", "difference"):
        n, mean, spread = (made[key][name] for name in ("n", "mean", "std"))
        print(f"{key:<11} {mean:.2%} ± {spread or 0:.2%} (n = {n})")


if __name__ == "__main__":
    main()
