"""Import matplotlib with its default settings; the only file that imports it.

On import, matplotlib reads a `matplotlibrc` in the working folder, which may be anyone's: a pipe
would block it, and `text.usetex` would run LaTeX. Figures would depend on a user's own settings.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def _without_settings_files() -> Iterator[None]:
    """Inside this context, matplotlib finds no `matplotlibrc` in the working folder, and an empty
    one instead of the user's.

    Meanwhile the process's working folder is the folder of this package. It stays as it is if it
    was deleted.
    """
    before = os.environ.get("MATPLOTLIBRC")
    os.environ["MATPLOTLIBRC"] = os.devnull
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(contextlib.chdir(Path(__file__).parent))
            yield
    finally:
        del os.environ["MATPLOTLIBRC"]
        if before is not None:
            os.environ["MATPLOTLIBRC"] = before


with _without_settings_files():
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure
    from matplotlib.image import imsave
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

__all__ = [
    "Axes",
    "Figure",
    "FuncFormatter",
    "MaxNLocator",
    "PercentFormatter",
    "PolyCollection",
    "imsave",
    "matplotlib",
    "to_rgba",
]
