"""Assign trials to concurrent workers, in every order that matters, without training."""

import json
import multiprocessing
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from filelock import FileLock
from optuna.trial import TrialState

from distill.errors import Failure, UnsuitableRecipe, UserError
from distill.events import Epoch, Start
from distill.models.out_of_memory import OutOfMemory
from distill.recipe.recipes import ResolvedRecipe
from distill.runs import lock
from distill.runs.run_folder import RunFolder, write_json
from distill.sweep import optuna_space, sweep_file
from distill.sweep import worker as sweep_worker
from distill.sweep.assign_trials import ClaimedTrial, Trials
from distill.sweep.storage import Storage, url_of
from distill.sweep.sweep_summary import summary, write
from distill.sweep.worker import DRAWS
from distill.training.divergence import Diverged
from distill.training.environment import describe

ALONE = ["loss.kd=false", "loss.hard.weight=1"]
VALUES: dict[str, Any] = {
    "recipe": "tiny",
    "set": ALONE,
    "study": {"trials": 6, "heartbeat_s": 1},
    "space": {"optim.lr": {"log": [0.01, 0.5]}, "student.width": {"grid": [2, 4]}},
}


def opened(place: Path, **tables: Any) -> Trials:
    planned = sweep_file.validate(VALUES | tables, "mine", "mine.toml")
    return sweep_worker.open_trials(planned, Storage(url_of(None, place), 1), place)


def drawn(taken: ClaimedTrial | None, trials: Trials) -> dict[str, Any]:
    """What a trial tries, written down."""
    assert taken is not None
    known = trials.storage.rows.get_trial(taken.row)
    values = optuna_space.draw_values(taken.trial.study, known, trials.sweep.file)
    optuna_space.store_values(taken.trial, taken.row, trials.sweep.file, values)
    return values


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[Trials]:
    yield opened(tmp_path)


@pytest.mark.long
def test_every_requested_trial_is_claimed_once(trials: Trials) -> None:
    taken = [trials.claim(f"worker {n % 2}") for n in range(6)]
    assert [each.number for each in taken if each] == [0, 1, 2, 3, 4, 5]
    assert trials.claim("worker 0") is None
    assert trials.n_open() == 6


@pytest.mark.long
def test_concurrent_workers_claim_distinct_trials(tmp_path: Path) -> None:
    """On SQLite, whose transactions begin too late to tell."""
    taken: list[int] = []

    def worker(name: str) -> None:
        trials = opened(tmp_path, study=VALUES["study"] | {"trials": 12})
        while each := trials.claim(name):
            taken.append(each.number)

    opened(tmp_path, study=VALUES["study"] | {"trials": 12})
    with ThreadPoolExecutor() as pool:
        list(pool.map(worker, ["a", "b", "c", "d"]))
    assert sorted(taken) == list(range(12))


@pytest.mark.long
def test_grid_goes_round_and_rest_is_drawn(trials: Trials) -> None:
    found = []
    while taken := trials.claim("w"):
        found.append(drawn(taken, trials))
    assert [each["student.width"] for each in found] == ["2", "4"] * 3
    rates = [each["optim.lr"] for each in found]
    assert len(set(rates)) == 6
    assert all(0.01 <= rate <= 0.5 for rate in rates)


@pytest.mark.long
def test_trial_values_do_not_depend_on_worker(tmp_path: Path) -> None:
    """Two workers of one seed do not draw the same values; two sweeps of one seed do."""
    a, b = opened(tmp_path / "a"), opened(tmp_path / "b")
    for trials in (a, b):
        trials.claim("w")  # the first is unchanged: the second of `b` does not know its values
    found = [drawn(t.claim("w"), t) for t in (a, b)]
    assert found[0] == found[1]


@pytest.mark.long
def test_sampler_uses_values_of_earlier_trials(tmp_path: Path) -> None:
    """The first five are drawn at random, the others come closer to the best rate."""

    def rates_of(sampler: str) -> list[float]:
        trials = opened(
            tmp_path / sampler,
            study={"trials": 16, "pruner": "none", "startup_trials": 5, "sampler": sampler},
            space={"optim.lr": {"uniform": [0.01, 1.0]}},
        )
        rates = list[float]()

        def train(resolved: ResolvedRecipe, folder: RunFolder, read: sweep_worker.Reader) -> None:
            rates.append(resolved.recipe.optim.lr)
            write_json(folder.result_file, {"metrics": {"top1/val": 1 - abs(rates[-1] - 0.3)}})

        sweep_worker.work(trials, train, lambda line: None)
        return rates

    tpe, random = rates_of("tpe"), rates_of("random")
    assert tpe[:5] == random[:5]
    away = [sum(abs(rate - 0.3) for rate in rates[8:]) for rates in (tpe, random)]
    assert away[0] < away[1] / 2


@pytest.mark.long
def test_killed_trial_is_repeated_with_its_values(trials: Trials) -> None:
    mine = trials.claim("gone")
    assert mine is not None
    values = drawn(mine, trials)
    mine.trial.report(0.3, 1)
    trials.release("gone")
    again = trials.claim("other")
    assert again is not None
    assert again.number == mine.number == 0
    assert again.row != mine.row
    assert drawn(again, trials) == values
    assert trials.storage.rows.get_trial(again.row).intermediate_values == {1: 0.3}
    trials.release("other")
    third = trials.claim("third")
    assert third is not None
    assert trials.storage.rows.get_trial(third.row).intermediate_values == {1: 0.3}
    assert drawn(third, trials) == values


@pytest.mark.long
def test_trial_added_concurrently_is_not_a_duplicate(trials: Trials) -> None:
    """It has no values: the successor of the one that was tried must have that one's."""
    trials._add_attempts()
    for attempt in trials.study.get_trials():
        trials.study.add_trial(attempt)
    mine = trials.claim("gone")
    assert mine is not None
    values = drawn(mine, trials)
    mine.trial.report(0.3, 1)
    trials.release("gone")
    again = trials.claim("other")
    assert again is not None and again.number == mine.number
    assert (
        trials.storage.rows.get_trial(again.row).params
        == trials.storage.rows.get_trial(mine.row).params
    )
    assert drawn(again, trials) == values


@pytest.mark.long
def test_a_row_that_ended_meanwhile_is_not_taken(trials: Trials) -> None:
    trials._add_attempts()
    row = trials.storage.id_of(trials.study, trials.counted_attempts()[0])
    assert trials.storage.end(row, TrialState.FAIL)
    assert not trials.storage.take(row)


@pytest.mark.long
def test_resumed_trial_stays_on_its_rungs(
    tmp_path: Path,
) -> None:
    """By its value after three epochs, where its bracket looks first; not by the last, 0.4."""
    study = {"trials": 3, "pruner": "hyperband"}
    trials = opened(tmp_path, set=[*ALONE, "train.epochs=9"], study=study)
    mine = trials.claim("gone")
    assert mine is not None
    for epoch in (1, 2, 3, 4):
        mine.trial.report(0.1 * epoch, epoch)
    trials.release("gone")
    again = trials.claim("other")
    assert again is not None
    marks = trials.storage.rows.get_trial(again.row).system_attrs
    assert marks == {"completed_rung_0": pytest.approx(0.3)}


def test_longest_trial_is_known_where_table_sets_epochs() -> None:
    sizes = [{"train.epochs": 3, "student.width": 2}, {"train.epochs": 27, "student.width": 4}]
    planned = sweep_file.validate(
        VALUES | {"study": {"pruner": "hyperband"}, "space": {"size": {"grid": sizes}}}, "a", "a"
    )
    pruner: Any = optuna_space.pruner(planned)
    assert pruner._max_resource == 27


@pytest.mark.long
def test_worker_presumed_dead_loses_its_trial(trials: Trials) -> None:
    mine = trials.claim("slow")
    assert mine is not None
    trials.release("slow")
    theirs = trials.claim("other")
    assert theirs is not None
    judge = sweep_worker.PruningCallback(mine, "top1/val")
    with pytest.raises(sweep_worker.TrialLost):
        judge(Epoch(1, 4, {"top1/val": 0.2}, True, 1.0, 1.0))
    assert not trials.storage.end(mine.row, TrialState.COMPLETE, 0.9)
    assert trials.storage.end(theirs.row, TrialState.COMPLETE, 0.4)
    assert trials.counted_attempts()[0].value == 0.4


@pytest.mark.long
def test_concurrent_second_attempt_never_counts(trials: Trials) -> None:
    mine = trials.claim("gone")
    assert mine is not None
    trials.release("gone")
    trials._add_attempts()
    seen = trials.attempts()[0]
    trials.study.add_trial(seen[-1])  # what another worker does that looked before that
    assert [len(attempts) for attempts in trials.attempts().values()] == [3, 1, 1, 1, 1, 1]
    taken = [trials.claim("w") for _ in range(7)]
    assert [each.number for each in taken if each] == [0, 1, 2, 3, 4, 5]
    states = [attempt.state for attempt in trials.attempts()[0]]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.FAIL]


@pytest.mark.long
def test_dead_worker_here_is_recognized_by_lock(trials: Trials) -> None:
    context = multiprocessing.get_context("spawn")
    dying = context.Process(target=_die_with_a_trial, args=(trials.parent,))
    dying.start()
    dying.join(60)
    assert dying.exitcode == 9
    assert trials.counted_attempts()[0].state == TrialState.RUNNING
    trials.release_dead()
    again = trials.claim("w")
    assert again is not None
    assert again.number == 0


def _die_with_a_trial(place: Path) -> None:
    import os

    trials = opened(place)
    with trials.working("doomed"):
        trials.claim("doomed")
        os._exit(9)


@pytest.mark.long
def test_dead_worker_elsewhere_is_recognized_by_silence(trials: Trials) -> None:
    mine = trials.claim("far away")
    assert mine is not None
    trials.release_dead()
    assert trials.counted_attempts()[0].state == TrialState.RUNNING
    with sqlite3.connect(trials.parent / "sweep.db") as rows:
        rows.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-4 seconds')")
    trials.release_dead()
    assert 0 not in trials.counted_attempts()


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM trial_heartbeats",
        "UPDATE trial_heartbeats SET heartbeat = '9999-12-31 23:59:59'",
        "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '+9 seconds')",
    ],
)
def test_running_trial_without_heartbeat_fails(trials: Trials, change: str) -> None:
    """Of another program's file: workers would wait for it for good."""
    mine = trials.claim("unknown")
    assert mine is not None
    with sqlite3.connect(trials.parent / "sweep.db") as rows:
        rows.execute(change)
    assert trials.release_dead() == [0]
    assert trials.release_dead() == []
    assert trials.counted_attempts()[0].state == TrialState.RUNNING
    with sqlite3.connect(trials.parent / "sweep.db") as rows:
        rows.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-4 seconds')")
    trials.release_dead()
    assert 0 not in trials.counted_attempts()


@pytest.mark.long
def test_running_trial_without_a_heartbeat_is_noted(trials: Trials) -> None:
    claimed = [trials.claim("unknown") for _ in range(6)]
    assert all(claimed)
    with sqlite3.connect(trials.parent / "sweep.db") as rows:
        rows.execute("UPDATE trials SET state = 'PRUNED' WHERE number != 4")
        rows.execute("DELETE FROM trial_heartbeats")
    notes: list[str] = []

    def stop(resolved: ResolvedRecipe, folder: RunFolder, read: sweep_worker.Reader) -> None:
        raise UserError("trained")

    with pytest.raises(UserError, match="trained"):
        sweep_worker.work(trials, stop, notes.append)
    assert [note for note in notes if note.startswith("note: ")] == [
        "note: trial 4 is stored as running, without a heartbeat of a worker: unless one follows "
        "within 3 s, it is trained again"
    ]


@pytest.mark.long
def test_who_lives_is_heard_of(trials: Trials) -> None:
    mine = trials.claim("w")
    assert mine is not None
    with sqlite3.connect(trials.parent / "sweep.db") as rows:
        rows.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-9 seconds')")
        with trials.storage.heartbeat(mine.row):
            import time

            rows.commit()
            time.sleep(1.5)
    trials.release_dead()
    assert trials.counted_attempts()[0].state == TrialState.RUNNING


@pytest.mark.long
def test_folder_in_use_is_not_claimed(trials: Trials) -> None:
    with lock.lock_run_folder(trials.folder(0).path):
        taken = trials.claim("w")
    assert taken is not None
    assert taken.number == 1


@pytest.mark.long
def test_clean_end_gives_back_and_leaves_no_lock(trials: Trials) -> None:
    with trials.working("w"):
        assert trials.claim("w")
    assert not (trials.parent / "workers").exists()
    assert 0 not in trials.counted_attempts()


@pytest.mark.long
def test_only_trial_count_may_change_later(trials: Trials) -> None:
    more = opened(trials.parent, study=VALUES["study"] | {"trials": 8})
    assert more.n_open() == 8
    mine = more.claim("w")
    assert mine is not None
    mine.trial.report(0.3, 1)
    with pytest.raises(
        UserError, match=r"(?s)another sweep of the name mine:.*optim.lr.*--out.*--name"
    ):
        opened(trials.parent, space={"optim.lr": {"log": [0.02, 0.5]}})


@pytest.mark.long
def test_old_sweep_continues_with_new_keys_default(trials: Trials) -> None:
    lines = trials.study.user_attrs["definition"].splitlines()
    added = {
        "optim.min_lr", "optim.bias_lr", "train.validate_both", "student.downsample",
        "student.stem_init", "student.stem_frozen", "student.stem_norm", "student.norm_scale",
        "student.norm_momentum",
    }  # fmt: skip
    assert added < {line.partition(" = ")[0] for line in lines}
    older = [line for line in lines if line.partition(" = ")[0] not in added]
    trials.study.set_user_attr("definition", "\n".join(older))
    assert opened(trials.parent).n_open() == 6
    with pytest.raises(UserError, match=r"another sweep of the name mine:\n  here:   optim.min_lr"):
        opened(trials.parent, set=[*ALONE, "optim.min_lr=0.001"])
    with pytest.raises(UserError, match="here:   ema.decay = 0.999"):
        opened(trials.parent, set=[*ALONE, "ema.decay=0.999"])


INPUTS = {"data": "d", "test": "t", "class_names": "c", "teacher": ""}


def reopened(place: Path, **changes: str) -> Trials:
    planned = sweep_file.validate(VALUES, "mine", "mine.toml")
    return sweep_worker.open_trials(
        planned, Storage(url_of(None, place), 1), place, INPUTS | changes
    )


@pytest.mark.long
def test_other_images_or_teachers_do_not_continue_sweep(tmp_path: Path) -> None:
    assert reopened(tmp_path).n_open() == 6
    assert reopened(tmp_path).n_open() == 6
    for name in INPUTS:
        with pytest.raises(UserError, match=f"(?s)another sweep.*here:   fingerprint.{name} = new"):
            reopened(tmp_path, **{name: "new"})


@pytest.mark.long
def test_a_sweep_from_before_fingerprints_takes_today_s(trials: Trials) -> None:
    assert reopened(trials.parent).n_open() == 6
    assert opened(trials.parent).n_open() == 6  # who has read no images compares the rest
    with pytest.raises(UserError, match="stored: fingerprint.data = d\n"):
        reopened(trials.parent, data="new")


@pytest.mark.long
def test_a_trial_of_other_images_has_no_value(tmp_path: Path) -> None:
    trials = reopened(tmp_path)

    def train(resolved: ResolvedRecipe, folder: RunFolder, read: Any) -> None:
        data = {"fingerprint": "new", "test_fingerprint": "t", "class_names_fingerprint": "c"}
        result = {"metrics": {"top1/val": 0.5}, "data": data, "teacher": {"fingerprint": ""}}
        write_json(folder.result_file, result)

    with pytest.raises(UserError, match="trial-0000 has another data than the sweep it belongs to"):
        sweep_worker.work(trials, train, lambda text: None)
    assert all(a.state != TrialState.COMPLETE for each in trials.attempts().values() for a in each)


def test_each_image_set_and_teacher_is_checked() -> None:
    varied = {"mine": {"choice": [{"data.source": "a"}, {"data.source": "b"}]}}
    planned = sweep_file.validate(VALUES | {"space": varied}, "mine", "mine.toml")
    assert [each.data.source for each in sweep_worker.input_variants(planned)] == ["a", "b"]


@pytest.mark.long
def test_each_way_a_trial_may_end(tmp_path: Path) -> None:
    """Without training: the value falls with the learning rate, one is not a number."""
    rates = [0.1, 0.2, 0.3, 0.4, 0.6, 0.5, 0.05, 0.7]
    trials = opened(
        tmp_path,
        study={"trials": 8, "startup_trials": 3},
        space={"optim.lr": {"grid": rates}},
    )
    seen, printed = [], list[str]()

    def train(resolved: ResolvedRecipe, folder: RunFolder, read: sweep_worker.Reader) -> None:
        lr = resolved.recipe.optim.lr
        if lr == 0.4:
            raise Diverged(7)
        if lr == 0.7:
            raise UnsuitableRecipe("train.batch_size = 4096 is more than the 90 training images.")
        read(head(epochs=2))
        for epoch in (1, 2):
            seen.append((lr, epoch))
            read(Epoch(epoch, epoch, {"top1/val": 1 - lr}, True, 1.0, 1.0))
        write_json(folder.result_file, {"metrics": {"top1/val": 1 - lr}})

    sweep_worker.work(trials, train, printed.append)
    report = summary(trials)
    states = [row["state"] for row in report["trials"]]
    ended = ["complete"] * 3 + ["diverged", "pruned", "pruned", "complete", "infeasible"]
    assert states == ended
    assert report["counts"] == {"complete": 4, "pruned": 2, "infeasible": 1, "diverged": 1}
    assert (0.6, 2) not in seen and (0.05, 2) in seen
    assert report["best"]["trial"] == 6 and report["best"]["value"] == 0.95
    assert set(report["importance"]) == {"optim.lr"}
    assert "trial 4 is pruned: " in "".join(printed) and "remains as a stopped run" in printed[-5]
    assert printed[-1].startswith("trial 7 is infeasible: train.batch_size = 4096")


@pytest.mark.long
@pytest.mark.parametrize("is_reported", [False, True])
def test_full_memory_ends_worker_then_trial(tmp_path: Path, is_reported: bool) -> None:
    """Another process may have used it the first time; a trial that finished an epoch fits."""
    trials = opened(tmp_path, study={"trials": 1}, space={"student.width": {"grid": [2]}})

    def train(resolved: ResolvedRecipe, folder: RunFolder, read: sweep_worker.Reader) -> None:
        read(head(epochs=2))
        if is_reported:
            read(Epoch(1, 1, {"top1/val": 0.5}, True, 1.0, 1.0))
        raise OutOfMemory("the device's memory is full: CUDA out of memory")

    with pytest.raises(OutOfMemory):
        sweep_worker.work(trials, train, print)
    if is_reported:
        with pytest.raises(OutOfMemory):
            sweep_worker.work(trials, train, print)
        return
    sweep_worker.work(trials, train, print)
    assert summary(trials)["counts"]["infeasible"] == 1


@pytest.mark.long
def test_fewer_trials_later_drop_none(trials: Trials) -> None:
    def train(resolved: ResolvedRecipe, folder: RunFolder, read: sweep_worker.Reader) -> None:
        write_json(folder.result_file, {"metrics": {"top1/val": int(folder.path.name[-1]) / 10}})

    sweep_worker.work(trials, train, print)
    fewer = opened(trials.parent, study=VALUES["study"] | {"trials": 2})
    assert fewer.n_open() == 0 and fewer.claim("w") is None
    report = summary(fewer)
    assert (report["asked"], report["best"]["trial"]) == (6, 5)


@pytest.mark.long
def test_values_that_cannot_be_trained_are_drawn_again(tmp_path: Path) -> None:
    """Widths from 2 to 12, of which those of fewer parameters than the constraint's are trained."""
    trials = opened(
        tmp_path,
        study={"trials": 5, "pruner": "none", "sampler": "random"},
        space={"student.width": {"integer": [2, 12]}},
        constraint={"parameters": 3_000},
    )
    printed, widths = list[str](), list[int]()

    def train(resolved: ResolvedRecipe, folder: RunFolder, read: sweep_worker.Reader) -> None:
        assert resolved.recipe.student is not None
        widths.append(resolved.recipe.student.width or 0)
        write_json(folder.result_file, {"metrics": {"top1/val": widths[-1] / 100}})

    sweep_worker.work(trials, train, printed.append, done=lambda: write(trials, summary(trials)))
    report = json.loads((tmp_path / "sweep.json").read_text())
    again = [line for line in printed if line.startswith("note: drawn ")]
    assert report["counts"]["complete"] == 5 and report["redrawn"] >= len(again) > 0
    assert all("too many for fewer than 3,000" in line and "--set" not in line for line in again)
    assert report["best"]["value"] == max(widths) / 100
    assert (tmp_path / "best.toml").exists()


@pytest.mark.long
def test_space_without_trainable_values_ends(tmp_path: Path) -> None:
    trials = opened(
        tmp_path,
        study={"trials": 1, "pruner": "none"},
        space={"student.width": {"integer": [11, 12]}},
        constraint={"parameters": 500},
    )
    sweep_worker.work(trials, pytest.fail, print)
    report = summary(trials)
    assert (report["counts"]["infeasible"], report["redrawn"]) == (1, DRAWS - 1)
    assert "too many for fewer than 500" in report["trials"][0]["why"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["median", "hyperband"])
def test_no_trial_is_pruned_during_warm_up(tmp_path: Path, kind: str) -> None:
    """The second of four epochs is the first after which a trial may be."""
    trials = opened(
        tmp_path,
        set=[*ALONE, "train.epochs=4"],
        study={"trials": 5, "startup_trials": 2, "warmup_epochs": 2, "pruner": kind},
        space={"optim.lr": {"grid": [0.1, 0.2, 0.3, 0.7, 0.9]}},
    )
    ends = dict[float, int]()

    def train(resolved: ResolvedRecipe, folder: RunFolder, read: sweep_worker.Reader) -> None:
        lr = resolved.recipe.optim.lr
        read(head(epochs=4))
        for epoch in (1, 2, 3, 4):
            ends[lr] = epoch
            read(Epoch(epoch, epoch, {"top1/val": 1 - lr}, True, 1.0, 1.0))
        write_json(folder.result_file, {"metrics": {"top1/val": 1 - lr}})

    sweep_worker.work(trials, train, print)
    assert ends[0.1] == 4
    assert min(ends.values()) == 2


@pytest.mark.long
def test_what_a_run_raises_gives_its_trial_back(trials: Trials) -> None:
    def train(resolved: ResolvedRecipe, folder: RunFolder, read: sweep_worker.Reader) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        sweep_worker.work(trials, train, print)
    assert [len(attempts) for attempts in trials.attempts().values()] == [1] * 6
    assert 0 not in trials.counted_attempts()


def head(epochs: int) -> Start:
    return Start(
        "run", "student", "tiny", "ResNet", 9, "synthetic", 90, 9, 10, 1, "cpu", "fp32", 9, epochs,
        1, 0,
    )  # fmt: skip


def test_address_is_checked_and_its_password_hidden(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--storage nonsense cannot be opened") as raised:
        Storage("nonsense", 1)
    unreachable = "postgresql://me:s3cret@127.0.0.1:1/none?password=s3cret"
    with pytest.raises(Failure, match=r"me:\*\*\*@127.0.0.1:1") as raised:
        Storage(url_of(unreachable, tmp_path), 1)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:a/s3cret@127.0.0.1:1/none",
        "postgresql://me:a s3cret@127.0.0.1:1/none",
        "postgresql://me@127.0.0.1:1/none?sslpassword=s3cret",
        "postgresql://me:s3cret@127.0.0.1:port/none",
        "postgresql://me@127.0.0.1:1/none?nonsense=s3cret",
        "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Ds3cret",
    ],
)
def test_no_secret_of_an_address_is_printed(url: str) -> None:
    with pytest.raises((UserError, Failure)) as fault:
        Storage(url_of(url, Path()), 1)
    assert "s3cret" not in str(fault.value) and "***" in str(fault.value)
    assert fault.value.__cause__ is None


def test_the_environment_holds_a_command_without_secrets(monkeypatch) -> None:
    words = ["cli.py", "sweep", "--storage", "postgresql://me:a/s3cret@h/d?sslpassword=s3cret"]
    monkeypatch.setattr(
        "sys.argv", [*words, "--storage=postgresql://me:a s3cret@h/d", "--out", "a"]
    )
    command = describe(Accelerator(cpu=True))["command"]
    assert "s3cret" not in " ".join(command)
    assert command[:3] == words[:3] and command[-2:] == ["--out", "a"]
    assert command[3] == "postgresql://me:***@h/d?sslpassword=***"


@pytest.mark.parametrize("name", ["trial-0001", "workers", "workers/host-1-abcdef"])
@pytest.mark.parametrize("target", ["elsewhere", "nowhere", "file"])
def test_folder_of_a_sweep_that_is_a_link(tmp_path: Path, name: str, target: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file").touch()
    link = tmp_path / "sweep" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=rf"^{link} is a symbolic link: .*\nDelete .*--out"):
        sweep_worker.work(opened(tmp_path / "sweep"), pytest.fail, print)
    assert list((tmp_path / "elsewhere").iterdir()) == [] and not (tmp_path / "nowhere").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", [".lock", "last", "running.json"])
def test_linked_file_of_trial_is_refused_at_once(tmp_path: Path, name: str) -> None:
    """A worker would wait without end for the one that seems to hold a linked lock."""
    trial = tmp_path / "sweep" / "trial-0003"
    trial.mkdir(parents=True)
    (trial / "running.json").write_text('{"host": "h", "process": 1, "since": "s"}')
    (trial / name).unlink(missing_ok=True)
    (trial / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"^{trial}/{name} is a symbolic link"):
        opened(tmp_path / "sweep")
    assert not (tmp_path / "elsewhere").exists()


def test_lock_of_trial_that_is_hard_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "sweep" / "trial-0000").mkdir(parents=True)
    (tmp_path / "sweep" / "trial-0000" / ".lock").hardlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"trial-0000/\.lock is not empty, .*\nDelete it"):
        opened(tmp_path / "sweep")
    assert (tmp_path / "mine").read_text() == "mine"


def test_folder_of_a_trial_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "trial-0001").touch()
    with pytest.raises(UserError, match=rf"^{tmp_path}/trial-0001 is not a folder, .*\nDelete "):
        opened(tmp_path)


def test_folder_of_sweep_itself_may_be_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "workers").mkdir(parents=True)
    for name in ("trial-notes.txt", "workers/.DS_Store"):
        (tmp_path / "disk" / name).touch()
    (tmp_path / "sweep").symlink_to(tmp_path / "disk")
    assert opened(tmp_path / "sweep").n_open() == 6


@pytest.mark.long
def test_lock_that_is_never_released_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a worker that was stopped, not ended."""
    monkeypatch.setattr("distill.sweep.storage.BUSY_S", 0.2)
    place = str(tmp_path / "sweep.db.lock")
    with FileLock(place), pytest.raises(Failure, match=f"has held {place} for 0.2 seconds"):
        Storage(url_of(None, tmp_path), 1)
    Storage(url_of(None, tmp_path), 1)


def test_a_file_name_with_a_nul_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be opened: a file name cannot contain a NUL"):
        Storage("sqlite:///a\0b", 1)
