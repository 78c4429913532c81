"""What the README takes from elsewhere: the table of recipes, and the picture of a run.

    python -m docs.build              the table, from the [about] of every recipe
    python -m docs.build --run RUN    the table, and docs/run.svg from a finished run's journal
    python -m docs.build --check      exit 1 where the README's table is not the recipes' own

Only what lies between the two marker lines of the README is written.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from distill import recipe as recipes
from distill.errors import UserError
from distill.recipe import About
from distill.run_folder import opened, write_text
from distill.show import picture

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "run.svg"
BEGIN, END = "<!-- recipes:begin -->", "<!-- recipes:end -->"
COLUMNS = ("recipe", "claim", "measured")
NOT_YET = "not yet run"


def recipe_table() -> str:
    """Every recipe and ingredient in Markdown, in the order of `python cli.py recipes`."""
    rows = [_cells(name, path, about) for name, path, about in recipes.shipped()]
    return "\n".join(map(_line, [COLUMNS, ("---",) * len(COLUMNS), *rows]))


def _cells(name: str, path: Path, about: About) -> tuple[str, ...]:
    kind = "" if path.parent.name == "recipes" else f" ({path.parent.name.removesuffix('s')})"
    linked = f"[`{name}`]({path.relative_to(ROOT).as_posix()}){kind}"
    measured = f"{about.accuracy}; on {about.hardware}, minutes: {about.minutes}"
    return linked, about.claim, "" if about.accuracy == NOT_YET else measured


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def rebuilt(readme: str) -> str:
    """The text with the recipes' own table between its markers.

    Raises UserError where the two markers do not stand in it once each, in their order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise UserError(
            f"{README.name} has {readme.count(BEGIN)} {BEGIN} and {readme.count(END)} {END}; "
            "wanted is one of each, in this order.\n"
            "Put them where the table of recipes is to stand."
        )
    return f"{before}{BEGIN}\n{recipe_table()}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m docs.build", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--run", metavar="RUN", help="a finished run, to draw docs/run.svg from")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    given = parser.parse_args(arguments)
    try:
        written = README.read_text() if README.exists() else ""
        wanted = rebuilt(written)
        if given.check:
            if written != wanted:
                sys.exit("README.md is stale: its table of recipes. Type: python -m docs.build")
            return
        if written != wanted:
            write_text(README, wanted)
        if given.run is not None:
            picture.svg(opened(given.run).journal, PICTURE)
    except UserError as fault:
        parser.error(str(fault))


if __name__ == "__main__":
    main()
