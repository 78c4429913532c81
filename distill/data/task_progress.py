"""Report the progress of a task to a callback, such as that of a display."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distill.data.image_set import Progress


@contextmanager
def running(progress: Progress | None, task: str) -> Iterator[None]:
    """Report that a task of unknown length begins, and at the end of the context that it is done.

    `task`: its name, as the display shows it: `reading cifar10`.
    """
    if progress is not None:
        progress(task, 0, 0)
    yield
    if progress is not None:
        progress(task, 1, 1)


def image_counter(
    progress: Progress | None, task: str, n_images: int, per_batch: int
) -> Callable[[], None]:
    """Return a function to call after each batch of a prediction, which reports the images done.

    `task`: the name of the prediction, as the display shows it. `n_images`: the images of all
    processes; `per_batch`: those that all processes predict between two calls.
    """
    done = 0

    def count_batch() -> None:
        nonlocal done
        done = min(done + per_batch, n_images)
        if progress is not None:
            progress(task, done, n_images)

    if progress is not None:
        progress(task, 0, n_images)
    return count_batch
