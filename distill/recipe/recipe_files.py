"""Find recipe files and read them as TOML, within limits of size and depth."""

import io
import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from distill.files.escape_text import visible
from distill.files.regular_file import InvalidFile, content_of
from distill.recipe.validation import Values, shorten

ROOT = Path(__file__).resolve().parents[2]
# Where a bare name is looked up.
FOLDERS = ("recipes", "recipes/ingredients", "recipes/published", "recipes/reports")
LIST_THEM = "`python cli.py recipes` lists them"
LONGEST = 100_000  # most characters in all files of a recipe; shipped recipes have 3,000
LARGEST = 4 * LONGEST  # most bytes of a file, in UTF-8
DEEPEST = 8  # most levels of nested tables and lists; shipped recipes have 4
MOST_SEARCHED = 1000  # most files among which one with a similar name is searched for
MOST_PARTS = 64  # most files of a recipe, a file read twice counted twice; shipped recipes have 6
INT64 = range(-(1 << 63), 1 << 63)  # range of TOML's integers
TOO_LONG = "a whole number of more than 64 bits"
# Matches unterminated strings too, so that the time is linear. Before the three quotes that end a
# string of several lines, two more may be part of it.
STRING_OR_COMMENT = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"{3,5}|\\?\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:\\[^\n]|[^"\\\n])*"?'
    r"|'[^'\n]*'?"
    r"|#[^\n]*",
    re.DOTALL,
)
NOT_IN_KEY = re.compile(r"[^A-Za-z0-9_. \t-]+")


class TooLarge(Exception):
    """A recipe is composed of too many files, or of too many characters."""


@dataclass
class RecipeFilesCount:
    """Counts the files of a recipe and their characters; a file read twice counts twice."""

    parts: int = 0
    characters: int = 0

    def add_part(self) -> None:
        """Count one file. Raises TooLarge above MOST_PARTS."""
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise TooLarge(
                f"is composed of more than {MOST_PARTS} recipes, each counted as often as it is "
                "named; remove some of them from base, compose or the command"
            )

    def add_text(self, text: str) -> None:
        """Count the characters of a file.

        Raises TooLarge if the files have more than LONGEST characters in all; `toml` reports a
        single file of more than LONGEST.
        """
        self.characters += len(text)
        if self.characters > LONGEST >= len(text):
            raise TooLarge(
                f"is composed of files with more than {LONGEST:,} characters in all; a recipe has "
                "fewer"
            )


def find_file(
    part: str, relative_to: Path, ancestors: tuple[Path, ...], faults: list[str]
) -> Path | None:
    """Return the path of the file that `part` (a recipe's name, or a path ending in .toml) refers
    to.

    If the path is malformed, or no file or several files have the name, add a fault and return
    None. `ancestors`: the last one is the file that names `part`.
    """
    if part.endswith(".toml"):
        try:
            path = (relative_to / Path(part).expanduser()).resolve()
            path.exists()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no such user
            faults.append(f"{shorten(part)!r} is not a path: {shorten(str(error))}")
            return None
        return path
    if not part:
        faults.append("a recipe's name is empty: type one before, between and behind each +")
        return None
    return _find_shipped(part, ancestors, faults)


def _find_shipped(part: str, ancestors: tuple[Path, ...], faults: list[str]) -> Path | None:
    """Return the path of the file in recipes/ named `part`; else add a fault and return None."""
    paths = shipped_paths()
    hits = [path for path in paths if path.stem == part]
    if len(hits) == 1:
        return hits[0]
    named_in = f" ({label(ancestors[-1])})" if ancestors else ""
    if hits:
        several = " and ".join(map(label, hits))
        faults.append(f"recipe {part}{named_in} is two files, {several}; give one by its path")
        return None
    if "/" in part or "." in part:
        faults.append(f"{shorten(part)}{named_in} is not a recipe file: its path must end in .toml")
        return None
    near = get_close_matches(part, [path.stem for path in paths], n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    faults.append(f"recipe {shorten(part)!r}{named_in} is not in recipes/; {guess}{LIST_THEM}")
    return None


def shipped_paths() -> list[Path]:
    """Return the paths of all shipped recipes, which can be given by name alone."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.toml"))]


def parsed(path: Path, faults: list[str], size: RecipeFilesCount | None = None) -> Values:
    """Return the tables of a file; if it cannot be read, add a fault and return no tables.

    `size`: if given, the file's characters are added to it. Raises TooLarge if `size` then
    exceeds its limit.
    """
    try:
        text = text_of(path)
    except InvalidFile as error:
        faults.append(f"{label(path)} cannot be read as a recipe: {error}")
    except FileNotFoundError:
        faults.append(f"{label(path)} does not exist; {_similar_file(path)}{LIST_THEM}")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{label(path)} cannot be read: {error}")
    else:
        if size is not None:
            size.add_text(text)
        return toml(text, label(path), faults)
    return {}


def _similar_file(path: Path) -> str:
    """Return `did you mean B.toml? `: a file of a similar name in the folder; empty if none."""
    try:
        stems = [file.stem for file in islice(path.parent.glob("*.toml"), MOST_SEARCHED)]
    except OSError:
        return ""
    near = get_close_matches(path.stem, stems, n=1)
    return f"did you mean {visible(label(path.with_name(f'{near[0]}.toml')))}? " if near else ""


def text_of(path: Path) -> str:
    """Read a TOML file as text.

    Raises InvalidFile if it is not a regular file or has more than LARGEST bytes, OSError if it
    cannot be read, UnicodeDecodeError if it is not UTF-8.
    """
    return io.StringIO(content_of(path, LARGEST).decode(), newline=None).read()


def toml(text: str, name: str, faults: list[str]) -> Values:
    """Parse a TOML text into tables; if it is invalid, add a fault and return no tables.

    `name`: the file's name for the fault. Also invalid: more than LONGEST characters, tables nested
    deeper than DEEPEST levels, integers of more than 64 bits. Used for recipes and sweep files.
    """
    if len(text) > LONGEST:
        faults.append(f"{name} has more than {LONGEST:,} characters; a recipe has fewer")
        return {}
    values: Values | None
    try:
        values = None if has_long_key(text) else tomllib.loads(text)
    except ValueError as error:  # also raised for a number of thousands of digits
        end = f"line {len(text.splitlines())}, the end"
        faults.append(f"{name} is not TOML: {str(error).replace('end of document', end)}")
        return {}
    except RecursionError:
        values = None
    if values is None or is_deeper(values, DEEPEST):
        faults.append(f"{name} is nested deeper than {DEEPEST} tables and lists")
        return {}
    if has_long_number(values):
        faults.append(f"{name} has {TOO_LONG}")
        return {}
    return values


def has_long_key(text: str) -> bool:
    """Whether a TOML text has a dotted key of more than DEEPEST names.

    `tomllib` needs quadratic time for such a key.
    """
    keys = NOT_IN_KEY.split(STRING_OR_COMMENT.sub("x", text))
    return any(key.count(".") >= DEEPEST for key in keys)


def has_long_number(value: Any) -> bool:
    """Whether a value is or contains an integer of more than 64 bits.

    Recurses into tables and lists, so their depth must be checked before.
    """
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (isinstance(value, int) and value not in INT64) or any(map(has_long_number, inside))


def is_deeper(value: Any, levels: int) -> bool:
    """Whether tables and lists are nested deeper than `levels`."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(is_deeper(item, levels - 1) for item in inside)


def label(path: Path) -> str:
    """Return a file's path for messages and origins.

    It is relative to the project folder if the file is inside it, otherwise absolute.
    """
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
