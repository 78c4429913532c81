"""Turn a journal into one series per metric over the epochs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.events import TOTAL, Epoch, Event, Start, Step, loss_name

Floats = NDArray[np.float64]
LARGEST = 1e300  # most that an axis of a figure can show; a float32 is below 4e38


class Line(NamedTuple):
    """A metric during training: its values `y` [N] after `x` [N] epochs, fractions included."""

    x: Floats
    y: Floats


@dataclass(frozen=True)
class Curves:
    """The metrics of a run's journal, by their names in `distill/events.py`."""

    steps: Mapping[str, Line]  # means over the steps since the previous event, several per epoch
    epochs: Mapping[str, Line]  # at the end of each epoch

    @property
    def terms(self) -> list[str]:
        """The names of the loss terms, the total last."""
        prefix, total = loss_name(""), loss_name(TOTAL)
        names = {**self.epochs, **self.steps}
        return [name for name in names if name.startswith(prefix) and name != total] + [
            name for name in names if name == total
        ]


def curves(events: Sequence[Event]) -> Curves:
    """Return the metrics in a run's events as curves; they are empty before its first step."""
    starts = [event for event in events if isinstance(event, Start)]
    per_epoch = max(1, starts[-1].steps_per_epoch) if starts else 1
    steps = [(e.step / per_epoch, e.metrics) for e in events if isinstance(e, Step)]
    epochs = [(float(e.epoch), e.metrics) for e in events if isinstance(e, Epoch)]
    return Curves(_lines(steps), _lines(epochs))


def _lines(points: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, Line]:
    """Return one line per metric, in the order in which the metrics first occur.

    `points`: pairs of completed epochs and metrics. Values above LARGEST become NaN.
    """
    names = dict.fromkeys(name for _, metrics in points for name in metrics)
    lines = {}
    for name in names:
        pairs = [(x, metrics[name]) for x, metrics in points if name in metrics]
        x, y = np.array(pairs, dtype=np.float64).T
        lines[name] = Line(x, np.where(abs(y) > LARGEST, np.nan, y))
    return lines
