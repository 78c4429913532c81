"""A tracker gets every value of the journal, once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import tracking
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cli
from distill.errors import UserError
from distill.events import End, Epoch, Estimate, Event, Retry, Start, Step
from distill.recipe import recipes
from distill.runs.journal import Journal, events
from distill.runs.run_folder import RunFolder
from distill.runs.trackers import Trackers, check, flat_recipe, open_tracker
from distill.training.run import TrainingRequest, train_and_test
from tests.cli.command_line import write_pets
from tests.runs.test_list_runs import START, begun

SMALL = (
    "loss.kd=false", "loss.hard.weight=1", "data.holdout=0.25", "data.train_images=24",
    "train.batch_size=8", "train.epochs=2", "train.log_every=1", "train.save_steps=2",
)  # fmt: skip
Scalars = dict[str, list[tuple[int, float]]]


class Refused(Exception):
    """A tracker failed that should not."""


def never(text: str) -> None:
    raise Refused(text)


def train(out: Path, data: Path, *, resume: bool = False, until: int | None = None) -> RunFolder:
    """A run watched by TensorBoard, left after step `until`."""
    resolved = recipes.load("tiny", [*SMALL, f"data.source={data}"])
    request = TrainingRequest("student", resolved.recipe, resolved.name, out, resume)
    folder = RunFolder(out)
    journal = Journal(folder.journal)
    with Trackers(["tensorboard"], folder, never) as tracked:
        for event in train_and_test(request):
            journal(event)
            tracked(event)
            if isinstance(event, Step) and event.step == until:
                break
    return folder


def scalars(folder: RunFolder, *, purge: bool = True) -> Scalars:
    """What TensorBoard shows of a run: (step, value) of each tag, in order."""
    read = EventAccumulator(str(folder.path / "tensorboard"), purge_orphaned_data=purge)
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def expected_scalars(journal: list[Event]) -> Scalars:
    """What it should show, from the journal, in the float32 that TensorBoard keeps."""
    found: Scalars = {}
    step = 0
    for event in journal:
        if isinstance(event, Start):
            continue
        assert isinstance(event, Step | Epoch | End)
        step = step if isinstance(event, End) else event.step
        for name, value in event.metrics.items():
            if isinstance(event, End) and not name.endswith("/test"):
                continue
            is_loss = isinstance(event, Epoch) and name.startswith("loss/")
            tag = f"epoch/{name}" if is_loss else name
            found.setdefault(tag, []).append((step, float(np.float32(value))))
    return found


@pytest.mark.long
def test_tensorboard_matches_journal_after_resuming(tmp_path: Path) -> None:
    data = write_pets(tmp_path / "pets")
    folder = train(tmp_path / "run", data, until=5)
    train(tmp_path / "run", data, resume=True)
    expected = expected_scalars(events(folder.journal))
    assert scalars(folder) == expected
    total = len(expected["loss/total"])
    assert [step for step, _ in expected["loss/total"]] == list(range(1, total + 1))
    assert {"lr", "images_per_s", "loss/hard", "epoch/loss/total", "top1/val", "top1/test"} <= set(
        expected
    )
    # Without this the test would see no repeated step: the files hold some steps twice.
    again = [e.first_step + 1 for e in events(folder.journal) if isinstance(e, Start)][-1]
    assert again <= 5
    steps = [step for step, _ in scalars(folder, purge=False)["loss/total"]]
    assert steps == [*range(1, 6), *range(again, total + 1)]


def test_the_recipe_is_handed_on_once(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", "student.blocks=[1, 2]")
    for first_step in (0, 4):
        with Trackers(["tensorboard"], folder, never) as tracked:
            tracked(replaced(first_step))
    (file,) = (folder.path / "tensorboard").glob("*/hparams.yml")
    assert "optim.lr: " in file.read_text()
    values = flat_recipe(folder)
    assert values["student.blocks"] == "[1, 2]"
    assert values["run"] == str(folder.path)
    assert values["optim.lr"] == recipes.read(folder.recipe).optim.lr


def replaced(first_step: int) -> Start:
    return Start(**(vars(START) | {"first_step": first_step}))


def test_what_diverged_is_not_shown(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    steps = [Step(k, 0, {"lr": float(k)}) for k in range(1, 6)]
    retry = Retry(5, 2, 0, 0.5, "loss is nan")
    again = [Step(k, 0, {"lr": k / 2}) for k in range(3, 7)]
    with Trackers(["tensorboard"], folder, never) as tracked:
        for event in (START, *steps, retry, *again):
            tracked(event)
    assert scalars(folder) == {"lr": [(1, 1.0), (2, 2.0), (3, 1.5), (4, 2.0), (5, 2.5), (6, 3.0)]}


# Any other tracker, by accelerate's interface


class Diary(tracking.GeneralTracker):
    """Records its calls."""

    name = "wandb"
    requires_logging_directory = False
    main_process_only = False
    calls: list[Any] = []  # noqa: RUF012 - of all diaries: accelerate makes them

    def __init__(self, project: str) -> None:
        super().__init__()
        self.calls.append(project)

    @property
    def tracker(self) -> list[Any]:
        return self.calls

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(values["run"])

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        if values.get("lr") == 13:
            raise ConnectionError("the net is down")
        self.calls.append((step, dict(values)))

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Diary)
    monkeypatch.setattr(Diary, "calls", [])
    return Diary.calls


def test_every_event_in_order(tmp_path: Path, diary: list[Any]) -> None:
    folder = begun(tmp_path / "run")
    last = {"top1/val": 0.5, "loss/total": 1.0, "top1/test": 0.4}
    with Trackers(["wandb", "wandb"], folder, never) as tracked:
        tracked(replaced(4))
        tracked(Step(5, 1, {"loss/total": 2.0, "lr": 0.1}))
        tracked(Estimate(5, 1, 3, 90.0, 80.0, 100.0))  # no metric of a step
        tracked(Epoch(2, 6, {"loss/total": 1.5, "top1/val": 0.5}, True, 1.0, 0.0))
        tracked(End(2, last, 10, 1.0, "w"))
    assert diary == [
        "understudy",
        "start",
        str(folder.path),
        (5, {"loss/total": 2.0, "lr": 0.1}),
        (6, {"epoch/loss/total": 1.5, "top1/val": 0.5}),
        (6, {"top1/test": 0.4}),
        "finish",
    ]


def test_failing_tracker_is_dropped_with_one_note(tmp_path: Path, diary: list[Any]) -> None:
    folder, warnings = begun(tmp_path / "run"), []
    with Trackers(["wandb", "tensorboard"], folder, warnings.append) as tracked:
        for event in (START, Step(1, 0, {"lr": 13.0}), Step(2, 0, {"lr": 2.0})):
            tracked(event)
        tracked(Retry(2, 0, 0, 0.5, "loss is nan"))
    assert warnings == ["tracker wandb failed and is left out: ConnectionError: the net is down"]
    assert diary[2:] == [str(folder.path)]
    assert scalars(folder, purge=False) == {"lr": [(1, 13.0), (2, 2.0)]}


def test_run_without_trackers_writes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with Trackers([], folder, never) as tracked:
        tracked(START)
        tracked(Step(1, 0, {}))
    assert not folder.path.exists()


# What is refused


def test_unknown_and_missing_trackers_are_refused_together() -> None:
    with pytest.raises(UserError) as refused:
        check(["tensorbord", "tensorboard", "comet_ml", "x"])
    assert str(refused.value).splitlines() == [
        "--tracker tensorbord is not a tracker of accelerate; did you mean tensorboard?",
        "--tracker comet_ml is not installed; type pip install comet-ml",
        "--tracker x is not a tracker of accelerate",
        f"Known: {', '.join(sorted(tracking.LOGGER_TYPE_TO_CLASS))}. Installed: tensorboard.",
    ]


@pytest.mark.parametrize("command", ["train-teacher", "distill"])
def test_command_refuses_an_unknown_tracker_first(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = ["--recipe", "tiny", "--set", "loss.kd=false", "--set", "loss.hard.weight=1"]
    monkeypatch.setattr("sys.argv", ["cli.py", command, *alone, "--tracker", "wandb"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err.startswith("--tracker wandb is not installed; type pip install")
    assert list(tmp_path.iterdir()) == []


def test_tracker_does_not_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"run/tensorboard is a symbolic link: .*\nDelete it"):
        open_tracker("tensorboard", tmp_path / "run", 0).start()
    assert list((tmp_path / "elsewhere").iterdir()) == []
