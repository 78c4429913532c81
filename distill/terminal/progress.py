"""Display a training in the terminal: header, progress bars, one line per epoch, closing table.

The lines on a training use only the events of `distill/events.py`, never the clock, so that a
replayed journal looks like the run did. On a terminal, bars are shown below the lines of the
epochs. Otherwise only lines without colour are written, which include speed and remaining time.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distill.events import (
    IMAGES_PER_S,
    LR,
    TOTAL,
    TRAINING_STEPS,
    VALIDATED,
    End,
    Epoch,
    Estimate,
    Event,
    Retry,
    Split,
    Start,
    Step,
    loss_name,
    measure_name,
    total_steps,
)
from distill.files.escape_text import visible
from distill.format import (
    DAY_S,
    UNKNOWN,
    as_typed,
    counted,
    duration,
    grouped,
    percent,
    time_with_range,
)
from distill.runs.teacher_student_summary import ClosingRow, teacher_accuracy_text
from distill.terminal.table_style import GAP, blank_table

LOG_AFTER_S = 5.0  # without a terminal, no line is printed on a task that is done sooner


class ProgressDisplay:
    """Displays the events of a training: a callback, used inside `with`.

    Its method `progress` displays tasks beside the training steps, such as reading images.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self._clock = console, clock
        self._start: Start | None = None
        self._step = 0
        self._epoch = 0
        self._best_epoch: int | None = None
        self._metrics: dict[str, float] = {}
        self._s_per_step: float | None = None
        self._first_step: tuple[int, float] | None = None  # of this process, and when it ended
        self._live_rate: float | None = None  # images per second since then
        self._tasks: dict[str, tuple[int, int]] = {}  # items done and in all, by name
        self._task_began_at: dict[str, float] = {}  # by the same names
        self._live = Live(
            console=console,
            get_renderable=self.bars,
            transient=True,
            # Results go to stdout, and may be piped to a file while stderr is the terminal.
            redirect_stdout=False,
        )

    def __enter__(self) -> "ProgressDisplay":
        if self.console.is_interactive:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Update the display for an event, and print the lines on it."""
        if isinstance(event, Start):
            self._begin(event)
        elif isinstance(event, Step):
            self._advance(event)
        elif isinstance(event, Epoch):
            self._close_epoch(event)
        elif isinstance(event, Retry):
            self._step, self._epoch = event.first_step, event.first_epoch
            self._print(retry_line(event))
        elif isinstance(event, Estimate):
            self._print(estimate_line(event))
        else:
            self._print(*end_lines(event))

    def progress(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` items of a task are done; `total` is 0 if unknown.

        `what`: the name of the task. Without a terminal, prints a line for each quarter of a task
        of several items that has taken LOG_AFTER_S; none during the training, where each epoch has
        a line.
        """
        if what == TRAINING_STEPS:
            self._count_step(done)
            return
        if what not in self._tasks:
            self._task_began_at[what] = self._clock()
        taken_s = self._clock() - self._task_began_at[what]
        before, _ = self._tasks.get(what, (0, total))
        others = {name: items for name, items in self._tasks.items() if name != what}
        # A new dict: the thread that draws may be reading the old one.
        self._tasks = others if done >= total > 0 else others | {what: (done, total)}
        is_log = not self.console.is_interactive and not self._is_training
        has_line = is_log and total > 1 and taken_s >= LOG_AFTER_S
        if has_line and quarters_done(done, total) > quarters_done(before, total):
            self._print(Text(f"{what}  {done:,} of {total:,}"))

    def _count_step(self, step: int) -> None:
        """Move the bars to a step; before the first event with images/s, measure them here."""
        self._step, now = step, self._clock()
        if self._first_step is None:
            self._first_step = step, now
        first, began_at = self._first_step
        if self._start is not None and now > began_at and step > first:
            self._live_rate = (step - first) * self._start.batch_size / (now - began_at)

    @property
    def _is_training(self) -> bool:
        return self._start is not None and self._epoch < self._start.epochs

    def bars(self) -> RenderableType:
        """Return the part of the display that is redrawn.

        It has bars of epoch and step and the latest metrics once the training has begun, and a bar
        for each unfinished task, such as reading images or measuring the test split.
        """
        tasks = task_bars(self._tasks)
        if self._start is None:
            return tasks
        current = Table.grid(padding=(0, 1, 0, 0), expand=True)
        current.add_column(no_wrap=True)
        current.add_column(justify="right", no_wrap=True)
        current.add_column(ratio=1)
        current.add_column(justify="right", no_wrap=True)
        current.add_row(*self._epoch_bar(self._start))
        current.add_row(*self._step_bar(self._start))
        return Group(current, self._latest(), tasks)

    def _begin(self, start: Start) -> None:
        self._start, self._tasks = start, {}
        self._step = start.first_step
        self._epoch = start.first_epoch
        self._print(*head_lines(start))

    def _advance(self, step: Step) -> None:
        first = IMAGES_PER_S not in self._metrics
        self._step, self._epoch = step.step, step.epoch
        self._metrics = self._metrics | step.metrics
        if first and self._start and (left_s := self._left_s(self._start) or 0) > DAY_S:
            self._print(Text(f"note: at this pace {left_s / DAY_S:.1f} days are left", "yellow"))

    def _close_epoch(self, epoch: Epoch) -> None:
        self._step, self._epoch = epoch.step, epoch.epoch
        self._metrics = self._metrics | epoch.metrics
        if epoch.is_best and self._is_validated:
            self._best_epoch = epoch.epoch
        if self._start and (steps := total_steps(self._start) - epoch.step) > 0:
            self._s_per_step = epoch.remaining_s / steps  # validation included
        epochs = self._start.epochs if self._start else epoch.epoch
        # If there are bars, they show the speed.
        speed = () if self.console.is_interactive else self._speed(epoch)
        self._print(epoch_line(epoch, epochs, speed, is_validated=self._is_validated))

    @property
    def _is_validated(self) -> bool:
        """Whether images are held out, on which each epoch is measured."""
        return self._start is None or self._start.val_images > 0

    def _speed(self, epoch: Epoch) -> list[str]:
        return [rate_text(self._metrics.get(IMAGES_PER_S)), self._left_text(epoch.remaining_s)]

    def _left_text(self, left_s: float | None) -> str:
        """Format the remaining time of the training, after which the test split is measured."""
        is_over = self._start is not None and self._step >= total_steps(self._start)
        return "training done" if is_over else f"{duration(left_s)} of training left"

    def _epoch_bar(self, start: Start) -> tuple[RenderableType, ...]:
        now = min(self._epoch + 1, start.epochs)
        steps = total_steps(start)
        return (
            Text("epoch", "bold"),
            f"{now}/{start.epochs}",
            ProgressBar(steps, self._step),
            self._left_text(self._left_s(start)),
        )

    def _step_bar(self, start: Start) -> tuple[RenderableType, ...]:
        total = start.steps_per_epoch
        epoch = min(self._epoch, start.epochs - 1)  # the bar of the last epoch stays full
        done = min(max(self._step - epoch * total, 0), total)
        return (
            Text("step", "bold"),
            f"{done:,}/{total:,}",
            ProgressBar(total, done),
            rate_text(self._metrics.get(IMAGES_PER_S, self._live_rate)),
        )

    def _left_s(self, start: Start) -> float | None:
        """Return the estimated remaining seconds; None if nothing has been measured yet.

        Based on the estimate in the latest epoch's event, or else on the images per second.
        """
        steps = total_steps(start) - self._step
        if not steps:
            return 0.0
        s_per_step = self._s_per_step
        if s_per_step is None and (images_per_s := self._metrics.get(IMAGES_PER_S)):
            s_per_step = start.batch_size / images_per_s
        return None if s_per_step is None else s_per_step * steps

    def _latest(self) -> Text:
        accuracies = accuracy_texts(self._metrics) if self._is_validated else []
        parts = [losses_text(self._metrics), *accuracies]
        if LR in self._metrics:
            parts.insert(1, f"lr {self._metrics[LR]:.4g}")
        if self._best_epoch is not None:
            parts.append(f"best epoch {self._best_epoch}")
        return Text(GAP.join(parts))

    def _print(self, *lines: Text) -> None:
        for text in lines:
            # In a log file each line must stay one line, whatever width rich assumes.
            self.console.print(text, soft_wrap=not self.console.is_interactive)


def retry_line(retry: Retry) -> Text:
    """Return a line on a retry: its reason, the step to go back to, the learning-rate factor."""
    return Text(
        f"{retry.reason}: back to step {retry.first_step:,}, with {retry.lr_factor:g} times the "
        "learning rate",
        "yellow",
    )


def estimate_line(estimate: Estimate) -> Text:
    """Return a line with the estimated total time, its range and the number of timed steps."""
    total = time_with_range(estimate.total_s, estimate.low_s, estimate.high_s)
    steps = counted(estimate.steps, "step")
    return Text(f"about {total} of training, from the first {steps}, without preparation and test")


def head_lines(start: Start) -> Iterator[Text]:
    """Yield lines on what is trained, on which data and devices, and the notes as warnings."""
    yield label_line(start.role, f"{start.network}, {start.parameters:,} parameters")
    if start.role == "student":
        yield label_line("teacher", teacher_text(start))
    yield label_line("recipe", start.recipe)
    classes = counted(start.n_classes, "class", "classes")
    images = counted(start.train_images, "image")
    images = f"{images} to train on, {start.val_images:,} held out"
    yield label_line("data", f"{start.data}, {classes}, {images}")
    processes = counted(start.processes, "process", "processes")
    yield label_line("on", f"{start.device}, {start.precision}, {processes}")
    epochs = counted(start.epochs, "epoch")
    steps = counted(start.steps_per_epoch, "step")
    if start.total_steps is not None and start.total_steps % start.steps_per_epoch:
        epochs += " (the last one incomplete)"
    yield label_line("for", f"{epochs} of {steps}, batches of {start.batch_size:,}")
    yield label_line("run", start.run)
    if start.first_step:
        yield label_line("resumed", f"at step {start.first_step:,}")
    for note in start.notes:
        yield Text(f"note: {as_typed(note)}", "yellow")


def label_line(label: str, text: str) -> Text:
    """Return a line with a label in front."""
    return Text.assemble((f"{label:<9}", "bold cyan"), visible(text))


def teacher_text(start: Start) -> str:
    """Return the teacher and its accuracy, with the number of images if they are only a part."""
    if start.teacher is None:
        return "none, labels only"
    accuracy = teacher_accuracy_text(
        start.teacher_top1, start.teacher_images, start.val_images, start.train_images
    )
    return f"{start.teacher}, {accuracy}"


def epoch_line(
    epoch: Epoch, epochs: int, speed: Sequence[str] = (), *, is_validated: bool = True
) -> Text:
    """Return one line on an epoch; `speed`: images/s and remaining time if there are no bars.

    `is_validated`: whether images are held out; without them no epoch has an accuracy or is best.
    """
    count = f"epoch {epoch.epoch}/{epochs}".ljust(len(f"epoch {epochs}/{epochs}"))
    accuracies = accuracy_texts(epoch.metrics) if is_validated else []
    parts = [count, losses_text(epoch.metrics), *accuracies, *speed]
    is_best = is_validated and epoch.is_best
    return Text.assemble(GAP.join(parts), (f"{GAP}best", "green") if is_best else "")


def end_lines(end: End) -> Iterator[Text]:
    """Yield lines with the epoch of the final weights, their accuracy, and their path."""
    is_averaged = measure_name("top1", "val_ema") in end.metrics
    shown: tuple[Split, ...] = ("val_ema" if is_averaged else "val", "test")
    summary = [
        f"final weights: epoch {end.epoch}",
        *(
            accuracy_text(end.metrics, split)
            for split in shown
            if measure_name("top1", split) in end.metrics
        ),
        f"trained for {duration(end.elapsed_s)}",
        *([] if math.isnan(end.total_s) else [f"total {duration(end.total_s)}"]),
    ]
    yield Text(GAP.join(summary), "bold")
    yield label_line("weights", end.weights)


def task_bars(tasks: Mapping[str, tuple[int, int]]) -> Table:
    """Return a bar for each task: items done and in all, by its name; 0 in all if unknown."""
    bars = Table.grid(padding=(0, 1, 0, 0))
    for what, (done, total) in tasks.items():
        known = f"{done:,}/{total:,}" if total else f"{done:,}" if done else ""
        bars.add_row(what, ProgressBar(total or None, done, width=30), known)
    return bars


def quarters_done(done: int, total: int) -> int:
    """Return how many quarters of the work are done, 0 to 4; 0 if `total` is 0 (unknown).

    Without a terminal, a line is printed whenever this number increases.
    """
    return 4 * done // total if total else 0


def closing_table(rows: Sequence[ClosingRow]) -> Table:
    """Show teachers, the student without a teacher, and the distilled student, a row for each.

    The accuracy on the held-out images has the same name as in the line of an epoch: `top1/val`, or
    `top1/val_ema` with averaged weights; if only some rows have these, they are marked with `ema`.
    `training`: the time of the training alone; `total`: with the preparation before it and the
    measurement on the test split after it.
    """
    table = blank_table()
    table.add_column("", no_wrap=True)
    table.add_column("network", overflow="fold")
    validated = {row.val_split for row in rows if row.top1_val is not None}
    is_mixed = len(validated) > 1
    val_name = measure_name("top1", "val_ema" if validated == {"val_ema"} else "val")
    for heading in (
        "parameters",
        *([val_name] if validated else []),
        measure_name("top1", "test"),
        "training",
        "total",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        mark = " ema" if is_mixed and row.val_split == "val_ema" else ""
        table.add_row(
            Text(row.name, "bold"),
            Text(row.network),
            grouped(row.parameters),
            *([percent(row.top1_val) + mark] if validated else []),
            percent(row.top1_test),
            duration(row.training_s),
            duration(row.total_s),
        )
    return table


def losses_text(metrics: Mapping[str, float]) -> str:
    """Format the losses: `loss 1.234 (hard 0.51, kd 0.80)`.

    The first number is the weighted total, the others are the unweighted terms.
    """
    start = loss_name("")
    terms = {name.removeprefix(start): v for name, v in metrics.items() if name.startswith(start)}
    total = terms.pop(TOTAL, None)
    of_terms = ", ".join(f"{term} {loss_number(value, 2)}" for term, value in terms.items())
    return f"loss {UNKNOWN if total is None else loss_number(total, 3)}" + (
        f" ({of_terms})" if of_terms else ""
    )


def loss_number(value: float, digits: int) -> str:
    """Format a loss with `digits` decimals, a small one with `digits` significant digits."""
    return f"{value:.{digits}{'g' if 0 < abs(value) < 0.1 else 'f'}}"


def accuracy_texts(metrics: Mapping[str, float]) -> list[str]:
    """Format the held-out accuracy of the trained weights, of their average, or of both.

    A list with a text for each one that was measured.
    """
    measured = [split for split in VALIDATED if measure_name("top1", split) in metrics]
    return [accuracy_text(metrics, split) for split in measured] or [accuracy_text(metrics, "val")]


def accuracy_text(metrics: Mapping[str, float], split: Split) -> str:
    """Format the accuracy on a split: `top1/val 71.17 %`."""
    name = measure_name("top1", split)
    return f"{name} {percent(metrics.get(name))}"


def rate_text(images_per_s: float | None) -> str:
    """Format the number of training images per second, over all processes."""
    return f"{UNKNOWN if images_per_s is None else f'{images_per_s:,.0f}'} images/s"
