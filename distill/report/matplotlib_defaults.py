"""Import matplotlib with its default settings; the only file that imports it.

On import, matplotlib reads a `matplotlibrc` in the working folder, which may be anyone's: a pipe
would block it, and `text.usetex` would run LaTeX. Figures would depend on a user's own settings.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

# Figures are written to files; a backend that the user chose for windows may not be installed.
ENVIRONMENT = {"MATPLOTLIBRC": os.devnull, "MPLBACKEND": "agg"}


@contextlib.contextmanager
def _with_default_settings() -> Iterator[None]:
    """Inside this context, matplotlib finds no `matplotlibrc` in the working folder, an empty one
    instead of the user's, and the backend for files.

    Meanwhile the working folder is that of this package, unless the process's working folder was
    deleted.
    """
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(contextlib.chdir(Path(__file__).parent))
            yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


with _with_default_settings():
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
