"""A claim is made of pairs, and every named run counts."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import claim
from distill.runs.run_folder import RunFolder
from tests.make_runs import train

pytestmark = pytest.mark.slow  # a benchmark's script, not the library


@pytest.fixture(scope="module")
def pair(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    """A distilled student and its control."""
    out = tmp_path_factory.mktemp("pair")
    distilled, _ = train(out / "kd", f"teacher.runs=['{teacher}']")
    control, _ = train(out / "alone", "loss.kd=false", "loss.hard.weight=1.0")
    return distilled, control


def with_top1(run: RunFolder, out: Path, top1: float) -> RunFolder:
    """A copy of a run that measured something else."""
    shutil.copytree(run.path, out)
    result = run.result()
    result["metrics"]["top1/test"] = top1
    result["weights"] = str(out)
    (out / "result.json").write_text(json.dumps(result))
    return RunFolder(out)


def test_mean_spread_and_paired_difference(pair, tmp_path) -> None:
    runs = [with_top1(pair[0], tmp_path / f"r{x}", x) for x in (0.70, 0.74)]
    controls = [with_top1(pair[1], tmp_path / f"c{x}", x) for x in (0.68, 0.70)]
    for run in (runs[1], controls[1]):
        text = run.recipe.read_text()
        run.recipe.write_text(text.replace("seed = 0", "seed = 1"))
    made = claim.claim("it helps", runs, controls)
    assert made["runs"]["n"] == 2
    assert made["runs"]["mean"] == pytest.approx(0.72)
    assert made["runs"]["std"] == pytest.approx(0.02 * 2**0.5)
    assert made["difference"]["mean"] == pytest.approx(0.03)
    assert made["difference"]["std"] == pytest.approx(0.01 * 2**0.5)
    assert len(made["each"]) == 4
    assert made["teacher"][0]["network"] == "WRN-10-1"
    assert made["environment"]["source"] and "command" not in made["environment"]
    assert made["recipe"]["loss"]["kd"]["weight"] == 0.9


def test_what_is_no_pair_is_refused(pair, tmp_path) -> None:
    other, _ = train(tmp_path / "other", "loss.kd=false", "loss.hard.weight=1.0", "train.seed=1")
    with pytest.raises(claim.UserError, match="train.seed: 0 -> 1"):
        claim.claim("", [pair[0]], [other])
    with pytest.raises(claim.UserError, match="the weights are not all different"):
        claim.claim("", [pair[0], pair[0]], [pair[1], pair[1]])
    with pytest.raises(claim.UserError, match="1 runs and 0 controls do not form pairs"):
        claim.claim("", [pair[0]], [])


def test_one_run_has_no_spread() -> None:
    assert claim.summary([0.5]) == {"n": 1, "mean": 0.5, "std": None, "values": [0.5]}
