"""A rich console that prints names from files literally."""

import os
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from distill.files.escape_text import visible_lines


class LiteralConsole(Console):
    """A console that prints every text literally; only styles set colours.

    Markup such as `[bold]` in a name is printed unchanged. Control characters, bidirectional
    overrides and bytes that are not UTF-8 are printed as escapes. The console's own control codes
    are not escaped.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        # A width of 0 columns would print blank lines.
        unset = {"COLUMNS"} if os.environ.get("COLUMNS", "").strip("0") == "" else set[str]()
        variables = {name: value for name, value in os.environ.items() if name not in unset}
        super().__init__(stderr=stderr, markup=False, emoji=False, _environ=variables)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments to print, with unsafe characters escaped. Rich calls it for each cell.

        Overrides the method of `rich.console.Console`.
        """
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible_lines(segment.text))
