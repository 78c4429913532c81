"""Whole sweeps from the command line: their files, and what survives a signal or a kill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

import cli
from distill.evaluation import final_test
from distill.events import Event, Step
from distill.recipe import recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.runs import read_predictions
from distill.runs.journal import read
from distill.runs.run_folder import RunFolder
from distill.sweep import sweep_file
from distill.sweep import worker as sweep_worker
from distill.sweep.assign_trials import WORKER, Trials
from distill.sweep.storage import Storage, url_of
from distill.teacher import selection
from tests.sweep import databases

pytestmark = pytest.mark.long

REPO = Path(__file__).parents[2]
SMALL = (
    "data.train_images=64", "data.holdout=0.01", "train.batch_size=32", "train.log_every=1",
)  # fmt: skip
ALONE = ("loss.kd=false", "loss.hard.weight=1")
RunCli = Callable[..., tuple[int, str, str]]


def written(
    place: Path, *settings: str, trials: int, space: str, study: str = "", limit: int = 5000
) -> Path:
    """A sweep file of `tiny`."""
    path = place / "mine.toml"
    chosen = json.dumps([*SMALL, *settings])
    path.write_text(
        f'recipe = "tiny"\nset = {chosen}\n[study]\ntrials = {trials}\n{study}\n'
        f"[constraint]\nparameters = {limit}\n[space]\n{space}\n"
    )
    return path


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCli:
    """`python cli.py …` in this process."""
    monkeypatch.setenv("COLUMNS", "100")

    def knock(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cli.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return (ended.value.code, *capsys.readouterr())

    return knock


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


def test_sweep_leaves_runs_recipe_and_page(run_cli: RunCli, place: Path) -> None:
    space = "optim.lr = { log = [0.001, 0.5] }\nstudent.width = { grid = [3, 9] }"
    file = written(place, *ALONE, "train.epochs=2", trials=4, space=space, study="pruner='none'")
    code, out, err = run_cli("sweep", file, "--out", place / "out", "--json")
    summary = json.loads(out)
    assert code == 0, err
    assert summary["counts"] == {"complete": 2, "pruned": 0, "infeasible": 2, "diverged": 0}
    assert [row["state"] for row in summary["trials"]] == ["complete", "infeasible"] * 2
    assert "266 too many" not in err and "too many for fewer than 5,000" in err
    for row in summary["trials"]:
        if row["state"] == "infeasible":
            assert row["run"] is None and not (place / "out" / f"trial-{row['trial']:04}").exists()
            continue
        run = RunFolder(Path(row["run"]))
        assert run.result()["metrics"]["top1/val"] == row["value"]
        assert recipes.read(run.recipe).optim.lr == row["values"]["optim.lr"]
        assert list(row["epochs"]) == ["1", "2"]
    best = summary["best"]
    assert best["value"] == max(
        row["value"] for row in summary["trials"] if row["value"] is not None
    )
    made = recipes.load(str(place / "out" / "best.toml"))
    assert recipe_fingerprint(made.recipe) == recipe_fingerprint(
        recipes.read(RunFolder(Path(best["run"])).recipe)
    )
    assert f"trial {best['trial']}, top1/val = {best['value']:.4f}" in made.recipe.about.claim
    page = (place / "out" / "sweep.html").read_text()
    assert page.count("<svg") == 2 and "History" in page and "Parallel" in page
    assert "src=" not in page and "://" not in page


def complete(place: Path) -> tuple[Path, Path]:
    """The runs of the best trial and of the other one."""
    summary = json.loads((place / "out" / "sweep.json").read_text())
    [other] = [
        row for row in summary["trials"] if row["run"] and row["trial"] != summary["best"]["trial"]
    ]
    return Path(summary["best"]["run"]), Path(other["run"])


def test_best_trial_alone_is_measured_on_test_split(place: Path) -> None:
    summary = json.loads((place / "out" / "sweep.json").read_text())
    best, other = map(RunFolder, complete(place))
    metrics = best.result()["metrics"]
    tested = {name: value for name, value in metrics.items() if name.endswith("/test")}
    assert list(tested) == ["ece/test", "nll/test", "top1/test"] and tested == summary["test"]
    assert "is_tested" not in best.result() and best.evaluation.exists()
    known = read_predictions.read_if_present(best.evaluation)
    assert known is not None and known.is_correct.mean() == pytest.approx(tested["top1/test"])
    assert known.val_logits is not None

    assert other.result()["is_tested"] is False and not other.evaluation.exists()
    assert not [name for name in other.result()["metrics"] if name.endswith("/test")]
    [end] = [row for row in read(other.journal) if row["event"] == "end"]
    assert not [name for name in end["metrics"] if name.endswith("/test")]
    page = (place / "out" / "sweep.html").read_text()
    assert "measured once" in page and f"{tested['top1/test']:.4f}" in page


def test_trial_without_test_figures_is_refused_when_needed(run_cli: RunCli, place: Path) -> None:
    best, other = complete(place)
    code, out, err = run_cli("runs", place / "out", "--json")
    listed = {row["path"]: row for row in json.loads(out)}
    assert code == 0 and listed[str(other)]["state"] == "finished"
    assert listed[str(other)]["top1_test"] is None and listed[str(best)]["top1_test"] is not None
    for command in (
        ["compare", best, other],
        ["export", other, "-f", "onnx", "--out", place / "x"],
    ):
        code, _, err = run_cli(*command)
        assert code == 2 and f"run {other} is a trial of a sweep, which was not measured on" in err
        assert err.endswith(f"as a run: python cli.py distill --recipe {other}/recipe.toml\n")
    code, _, err = run_cli("report", other, "--out", place / "report")
    assert code == 0, err
    assert "only the best trial is tested" in (place / "report/report.html").read_text()


def test_typed_again_measures_no_trial_again(
    run_cli: RunCli, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_test, "measure_on_test", lambda *_: pytest.fail("measured twice"))
    code, out, err = run_cli("sweep", place / "mine.toml", "--out", place / "out")
    assert code == 0, err
    best = json.loads((place / "out" / "sweep.json").read_text())["best"]["trial"]
    assert f"trial {best}, the best, on the test split: top1/test 0." in out


def swap_recipe(best: Path, other: Path) -> None:
    shutil.rmtree(best)
    shutil.copytree(other, best)


def change_value(best: Path, other: Path) -> None:
    change_result(best, "metrics", "top1/val", 0.987)


def change_test_split(best: Path, other: Path) -> None:
    change_result(best, "data", "test_fingerprint", "another")


def change_recipe(best: Path, other: Path) -> None:
    shutil.copy(other / "recipe.toml", best / "recipe.toml")


def swap_result(best: Path, other: Path) -> None:
    value = json.loads((best / "result.json").read_text())["metrics"]["top1/val"]
    shutil.copy(other / "result.json", best / "result.json")
    change_result(best, "metrics", "top1/val", value)


def delete_recipe(best: Path, other: Path) -> None:
    (best / "recipe.toml").unlink()


def damage_result(best: Path, other: Path) -> None:
    change_result(best, "metrics", "top1/val", "x")


def change_result(run: Path, table: str, key: str, value: object) -> None:
    path = run / "result.json"
    result = json.loads(path.read_text())
    result[table][key] = value
    path.write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swap_recipe, "its recipe is not that of the trial"),
        (change_recipe, "its recipe is not that of the trial"),
        (swap_result, r"has another run's result\.json: it is not of its recipe"),
        (delete_recipe, "is not on this machine"),
        (change_value, r"its top1/val is 0\.987, and the storage has 0\.\d+"),
        (change_test_split, "has another test split than the sweep"),
        (damage_result, r"result\.json is damaged"),
    ],
)
def test_figures_of_another_run_are_refused(
    run_cli: RunCli, place: Path, tmp_path: Path, change: Callable[[Path, Path], None], reason: str
) -> None:
    """Also if that run has figures of the test split."""
    shutil.copytree(place / "out", tmp_path / "out")
    best, other = (tmp_path / "out" / run.name for run in complete(place))
    change_result(other, "metrics", "top1/test", 0.99)
    change(best, other)
    arguments = (place / "mine.toml", "--out", tmp_path / "out", "--json")
    code, out, err = run_cli("sweep", *arguments)
    assert code == 0, err
    assert json.loads(out)["test"] is None and "0.99" not in out
    assert re.search(rf"note: .*{best}.*{reason}.*is not measured on the test split", err), err
    assert "the best, measured once" not in (tmp_path / "out" / "sweep.html").read_text()


@pytest.mark.parametrize("damaged", [False, True])
def test_finished_run_of_another_recipe_is_no_trial(
    run_cli: RunCli, place: Path, tmp_path: Path, damaged: bool
) -> None:
    run = tmp_path / "out" / "trial-0000"
    shutil.copytree(complete(place)[1], run)
    if damaged:
        (run / "recipe.toml").write_text("train.epochs = -1\n")
    before = (run / "result.json").read_bytes()
    file = written(tmp_path, *ALONE, trials=1, space="optim.lr = { choice = [0.07] }")
    code, _, err = run_cli("sweep", file, "--out", tmp_path / "out")
    expected = "recipe.toml" if damaged else "cannot be resumed: the recipe is not the one it began"
    assert code == 2 and f"{run}" in err and expected in err
    assert not (tmp_path / "out" / "sweep.json").exists()
    assert (run / "result.json").read_bytes() == before


def test_trials_are_compared_by_one_metric(run_cli: RunCli, tmp_path: Path) -> None:
    space = "ema = { grid = [false, { decay = 0.9 }] }"
    file = written(tmp_path, *ALONE, trials=2, space=space, study="pruner='none'")
    code, out, err = run_cli("sweep", file, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    for row in json.loads(out)["trials"]:
        metrics = RunFolder(Path(row["run"])).result()["metrics"]
        assert row["value"] == metrics["top1/val"] and list(row["epochs"]) == ["1"]
        assert ("top1/val_ema" in metrics) == (row["values"]["ema"] != "false")


def test_typed_again_it_has_nothing_to_do(run_cli: RunCli, place: Path) -> None:
    before = (place / "out" / "sweep.json").read_bytes()
    code, out, err = run_cli("sweep", place / "mine.toml", "--out", place / "out")
    assert code == 0
    assert "4 trials, 0 left" in err
    assert "4 trials: 2 complete, 2 infeasible" in out
    assert (place / "out" / "sweep.json").read_bytes() == before


def test_signal_saves_trial_for_next_worker(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = "optim.lr = { log = [0.001, 0.5] }"
    file = written(tmp_path, *ALONE, "train.epochs=2", trials=2, space=space)
    judge = sweep_worker.PruningCallback.__call__

    def stop_at_rung(self: sweep_worker.PruningCallback, event: Event) -> None:
        judge(self, event)
        if isinstance(event, Step) and event.step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_worker.PruningCallback, "__call__", stop_at_rung)
        code, _, err = run_cli("sweep", file, "--out", tmp_path / "out")
    assert code == 143
    assert "another worker can continue its trial. Type the same command again" in err
    code, out, err = run_cli("sweep", file, "--out", tmp_path / "out")
    assert code == 0, err
    assert "1 resumed after a worker died" in out
    starts = [row["first_step"] for row in read(tmp_path / "out/trial-0000/journal.jsonl")
              if row["event"] == "start"]  # fmt: skip
    assert starts == [0, 3]


def test_teacher_runs_once_for_all_trials(
    run_cli: RunCli, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    space = "loss.kd.temperature = { uniform = [1.0, 6.0] }"
    file = written(tmp_path, "train.epochs=1", trials=2, space=space)
    code, _, err = run_cli("sweep", file, "--teacher", tmp_path, "--out", tmp_path / "out")
    assert code == 2 and f"{tmp_path} is not a run" in err
    assert not (tmp_path / "out" / "sweep.db").exists(), "the right one may be named then"
    code, _, err = run_cli("sweep", file, "--teacher", teacher, "--out", tmp_path / "out")
    assert code == 0, err
    assert "note: the teacher's logits are cached by the first trials and read" in err
    assert "0 of 1 view of the teacher's logits is cached" in err
    assert "1 of 1 view of the teacher's logits is cached" in err


def test_impossible_sweeps_are_refused(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, *ALONE, trials=2, space="student.width = { integer = [20, 30] }")
    code, _, err = run_cli("sweep", file, "--out", tmp_path / "out")
    assert code == 1
    assert "no trial was trained to its end, so there is no best one" in err
    assert "too many for fewer than 5,000" in err
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run_cli("sweep", file, "--out", tmp_path / "out")
    assert (code, err) == (2, "a sweep's worker is one process; type the same command once for "
                              "each worker.\n")  # fmt: skip


# Several workers


def worker(file: Path, out: Path, **environment: str) -> "subprocess.Popen[str]":
    """`python cli.py sweep` for real."""
    return subprocess.Popen(
        [sys.executable, str(REPO / "cli.py"), "sweep", str(file), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def until(found: Callable[[], Any], within_s: float = 60) -> Any:
    """What `found` gives as soon as it gives something."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    if why := databases.absent():
        pytest.skip(why)
    with databases.postgresql(tmp_path) as address:
        yield address


@pytest.mark.multi
def test_killed_worker_loses_and_repeats_no_trial(url: str, tmp_path: Path) -> None:
    """On PostgreSQL. The trial of the dead goes on from its last checkpoint."""
    out, n = tmp_path / "out", 3
    file = written(
        tmp_path, *ALONE, "train.epochs=40", trials=n, study="heartbeat_s = 1\npruner = 'none'",
        space="optim.lr = { log = [0.001, 0.5] }",
    )  # fmt: skip
    planned = sweep_file.load(file)
    inputs = selection.check_teachers(planned.base.recipe)  # before: it takes longer than a trial
    two = [worker(file, out, UNDERSTUDY_STORAGE=url) for _ in range(2)]
    until(lambda: list(out.glob("trial-000[01]/last")))
    trials = sweep_worker.open_trials(planned, Storage(url_of(url, out), 1), out, inputs)

    def of_the_first() -> FrozenTrial | None:
        """What the first worker is in the middle of."""
        return next(
            (
                each
                for each in trials.counted_attempts().values()
                if each.state == TrialState.RUNNING
                and f"-{two[0].pid}-" in each.user_attrs.get(WORKER, "")
                and max(each.intermediate_values, default=0) in range(3, 30)
            ),
            None,
        )

    orphan = until(of_the_first)
    two[0].kill()
    two[0].wait(10)
    output, _ = two[1].communicate(timeout=90)
    assert two[1].returncode == 0, output
    check(trials, orphan, n)
    for each in [output, *(p.read_text(errors="replace") for p in out.rglob("*") if p.is_file())]:
        assert databases.PASSWORD not in each


def check(trials: Trials, orphan: FrozenTrial, n: int) -> None:
    """Each trial once; the orphan's values, and its epochs, are those of one run."""
    counting, attempts = trials.counted_attempts(), trials.attempts()
    assert sorted(counting) == list(range(n))
    assert all(each.state == TrialState.COMPLETE for each in counting.values())
    number = orphan.user_attrs["trial"]
    workers = [sum(WORKER in a.user_attrs for a in attempts[k]) for k in range(n)]
    assert workers == [1 + (k == number) for k in range(n)]
    rows_left = {a.state for k in range(n) for a in attempts[k]}
    assert rows_left == {TrialState.COMPLETE, TrialState.FAIL}
    assert counting[number].params == orphan.params
    rows = read(trials.folder(number).journal)
    assert [row["epoch"] for row in rows if row["event"] == "epoch"] == list(range(1, 41))
    starts = [row["first_epoch"] for row in rows if row["event"] == "start"]
    assert len(starts) == 2 and starts[1] > 1
    assert len({trials.folder(k).result()["weights"] for k in range(n)}) == n
