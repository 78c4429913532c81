"""Send metrics and recipe to experiment trackers through accelerate.

A tracker is a reader of the same events as the journal. The journal is the run's own record: a
tracker that fails is left out from there on, with a warning, and the training goes on.
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
from distill.recipe import recipes
from distill.recipe.validation import value_text
from distill.runs.run_folder import RunFolder

PROJECT = "understudy"  # as trackers that keep many runs together call it
TENSORBOARD = "tensorboard"
PLAIN = (bool, int, float, str)  # what a tracker takes as a value of the recipe


def check(names: Sequence[str]) -> None:
    """Every one is known and installed. Raises UserError that says which are, and what to type."""
    known = sorted(tracking.LOGGER_TYPE_TO_CLASS)
    installed = [name for name in known if name in map(str, tracking.get_available_trackers())]
    faults = []
    for name in names:
        near = get_close_matches(name, known, n=1)
        if name not in known:
            hint = f"; did you mean {near[0]}?" if near else ""
            faults.append(f"--tracker {name} is none that accelerate knows{hint}")
        elif name not in installed:
            package = name.replace("_", "-")
            faults.append(f"--tracker {name} is not installed; type pip install {package}")
    if faults:
        here = ", ".join(installed) or "none; type pip install tensorboard"
        raise UserError("\n".join([*faults, f"Known: {', '.join(known)}. Installed: {here}."]))


class Trackers:
    """Called with each event, inside `with`, by one process; `warn` is told what fails."""

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
        self._each(lambda _, tracker: tracker.finish())

    def __call__(self, event: Event) -> None:
        """Hand on one event that has metrics. The trackers are opened by the first, a `Start`: not
        before accelerate knows the processes."""
        if isinstance(event, Estimate):
            return
        if isinstance(event, Start | Retry):
            self._begin(event.first_step)
            return
        self._step = self._step if isinstance(event, End) else event.step
        values = metrics(event)
        self._each(lambda _, tracker: tracker.log(values, step=self._step))

    def _begin(self, first_step: int) -> None:
        """Open each anew: what an interrupted run told past this step is not true any more."""
        self._each(lambda _, tracker: tracker.finish())
        self._step = first_step
        self._open = dict.fromkeys(self.names)
        self._each(lambda name, _: self._start(name))

    def _start(self, name: str) -> None:
        goes_on = name == TENSORBOARD and (self.folder.path / name).exists()
        self._open[name] = tracker = open_tracker(name, self.folder.path, self._step)
        tracker.start()
        if not goes_on:
            tracker.store_init_configuration(flat_recipe(self.folder))

    def _each(self, do: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                do(name, tracker)
            except Exception as fault:  # whatever it is, it is not worth a training
                del self._open[name]
                self.names.remove(name)
                self.warn(f"tracker {name} failed and is left out: {type(fault).__name__}: {fault}")


def open_tracker(name: str, run: Path, first_step: int) -> Any:
    """accelerate's tracker of that name, not started yet.

    TensorBoard keeps its files in the run folder, so that a resumed run goes on in them; what they
    have from later steps is dropped when they are read. Others open a run of their own each time.
    """
    kind = tracking.LOGGER_TYPE_TO_CLASS[name]
    if name == TENSORBOARD:
        return kind(name, run, purge_step=first_step + 1)
    return kind(PROJECT, run / name) if kind.requires_logging_directory else kind(PROJECT)


def flat_recipe(folder: RunFolder) -> dict[str, Any]:
    """The run and its recipe, flat: `{"run": "runs/x", "optim.lr": 0.1, …}`; lists as text."""
    values = recipes.values(recipes.read(folder.recipe))
    plain = {key: v if isinstance(v, PLAIN) else value_text(v) for key, v in values.items()}
    return {"run": str(folder.path), **plain}


def metrics(event: Step | Epoch | End) -> Mapping[str, float]:
    """What an event has to say that no other says.

    The mean losses of an epoch are `epoch/loss/…`: the last step of the epoch has others by the
    same names. An `End` repeats the measures of the kept epoch; those of the test split are new.
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
