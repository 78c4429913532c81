"""Send metrics and recipe to experiment trackers through accelerate.

A tracker receives the same events as the journal. If a tracker fails, it is not used any more, with
a warning, and the training continues: the journal still records everything.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import tracking

from distill.errors import UserError
from distill.events import (
    End,
    Epoch,
    Estimate,
    Event,
    Retry,
    Start,
    Step,
    loss_name,
    measure_name,
)
from distill.recipe import compare_recipes, recipes
from distill.recipe.validation import value_text
from distill.runs.run_folder import RunFolder, check_subfolder

PROJECT = "understudy"  # the project's name in trackers that collect many runs
TENSORBOARD = "tensorboard"
PLAIN = (bool, int, float, str)  # the types of recipe values that a tracker accepts


def check(names: Sequence[str]) -> None:
    """Raise UserError, listing the installed trackers, if a tracker is unknown or not installed."""
    known = sorted(tracking.LOGGER_TYPE_TO_CLASS)
    installed = [name for name in known if name in map(str, tracking.get_available_trackers())]
    faults = []
    for name in names:
        near = get_close_matches(name, known, n=1)
        if name not in known:
            hint = f"; did you mean {near[0]}?" if near else ""
            faults.append(f"--tracker {name} is not a tracker of accelerate{hint}")
        elif name not in installed:
            package = name.replace("_", "-")
            faults.append(f"--tracker {name} is not installed; type pip install {package}")
    if faults:
        listed = ", ".join(installed) or "none; type pip install tensorboard"
        raise UserError("\n".join([*faults, f"Known: {', '.join(known)}. Installed: {listed}."]))


class Trackers:
    """Sends each event to experiment trackers; a context manager that closes them at its end.

    `names`: accelerate's names of the trackers. `warn` is called with a message if one fails. Only
    one process of a training may use this class.
    """

    def __init__(
        self, names: Sequence[str], folder: RunFolder, warn: Callable[[str], None]
    ) -> None:
        self.names = list(dict.fromkeys(names))
        self.folder, self.warn = folder, warn
        self._open: dict[str, Any] = {}
        self._step = 0

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._for_each(lambda _, tracker: tracker.finish())

    def __call__(self, event: Event) -> None:
        """Log the metrics of an event.

        The first event, a `Start`, opens the trackers; accelerate must have set up the processes by
        then.
        """
        if isinstance(event, Estimate):
            return
        if isinstance(event, Start | Retry):
            self._begin(event.first_step)
            return
        self._step = self._step if isinstance(event, End) else event.step
        values = metrics(event)
        self._for_each(lambda _, tracker: tracker.log(values, step=self._step))

    def _begin(self, first_step: int) -> None:
        """Open each tracker, or reopen it after a retry, to continue from `first_step`.

        Values of later steps, logged before the retry, are replaced if the tracker supports it.
        """
        self._for_each(lambda _, tracker: tracker.finish())
        self._step = first_step
        self._open = dict.fromkeys(self.names)
        self._for_each(lambda name, _: self._start(name))

    def _start(self, name: str) -> None:
        is_continued = name == TENSORBOARD and (self.folder.path / name).exists()
        self._open[name] = tracker = open_tracker(name, self.folder.path, self._step)
        tracker.start()
        if not is_continued:
            tracker.store_init_configuration(flat_recipe(self.folder))

    def _for_each(self, do: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                do(name, tracker)
            except Exception as error:  # no error of a tracker may end a training
                del self._open[name]
                self.names.remove(name)
                self.warn(f"tracker {name} failed and is left out: {type(error).__name__}: {error}")


def open_tracker(name: str, run: Path, first_step: int) -> Any:
    """Create accelerate's tracker `name` for the run folder `run`, without starting it.

    TensorBoard writes to the run folder. If the run is resumed, TensorBoard continues the same
    curves and hides earlier entries after `first_step`. Other trackers begin a new run of their own
    each time. Raises UserError if the tracker's folder is a symbolic link.
    """
    check_subfolder(run / name)
    kind = tracking.LOGGER_TYPE_TO_CLASS[name]
    if name == TENSORBOARD:
        return kind(name, run, purge_step=first_step + 1)
    return kind(PROJECT, run / name) if kind.requires_logging_directory else kind(PROJECT)


def flat_recipe(folder: RunFolder) -> dict[str, Any]:
    """Return a run's path and recipe as a flat dict: `{"run": "runs/x", "optim.lr": 0.1, …}`.

    Lists become text, which every tracker accepts.
    """
    values = compare_recipes.values(recipes.read(folder.recipe))
    plain = {key: v if isinstance(v, PLAIN) else value_text(v) for key, v in values.items()}
    return {"run": str(folder.path), **plain}


def metrics(event: Step | Epoch | End) -> Mapping[str, float]:
    """Return an event's metrics by the names under which trackers log them.

    The mean losses of an epoch are named `epoch/loss/…`: the last step of the epoch logs losses as
    `loss/…` for the same step. Of an `End`, only the measures on the test split are returned: the
    others were logged with the best epoch.
    """
    if isinstance(event, Step):
        return event.metrics
    if isinstance(event, Epoch):
        losses = loss_name("")
        return {
            f"epoch/{name}" if name.startswith(losses) else name: value
            for name, value in event.metrics.items()
        }
    test = measure_name("", "test")
    return {name: value for name, value in event.metrics.items() if name.endswith(test)}
