"""Merge a recipe's files and every --set into one set of tables.

Later values replace earlier ones. The order is: the recipes that the file lists in `compose`, from
left to right; the file itself; each --set. Tables are merged key by key; `mix.cutmix = false`
removes the table [mix.cutmix]. This module only checks that the files exist and can be read.
"""

import io
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, cast

from distill.errors import UserError
from distill.files.escape_text import is_utf8, visible
from distill.files.regular_file import InvalidFile, content_of
from distill.recipe.schema import foreign_keys
from distill.recipe.validation import Values, shorten, switches, value_text

ROOT = Path(__file__).resolve().parents[2]
# Where a bare name is looked up.
FOLDERS = ("recipes", "recipes/ingredients", "recipes/published", "recipes/reports")
LIST_THEM = "`python cli.py recipes` lists them"
OVERRIDE = "--set"
RIVALS = {  # setting the first key removes the second one if an earlier layer set it
    "student.width": "channels",
    "student.channels": "width",
    "teacher.width": "channels",
    "teacher.channels": "width",
    "train.epochs": "minutes",
    "train.minutes": "epochs",
    "ema.decay": "half_life",
    "ema.half_life": "decay",
}
LONGEST = 100_000  # most characters in all files of a recipe; shipped recipes have 3,000
LARGEST = 4 * LONGEST  # most bytes of a file, in UTF-8
DEEPEST = 8  # most levels of nested tables and lists; shipped recipes have 4
MOST_SEARCHED = 1000  # most files among which one with a similar name is searched for
MOST_PARTS = 64  # most files of a recipe, a file read twice counted twice; shipped recipes have 6
INT64 = range(-(1 << 63), 1 << 63)  # range of TOML's integers
TOO_LONG = "a whole number of more than 64 bits"
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
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


class _TooLarge(Exception):
    """A recipe is composed of too many files, or of too many characters."""


@dataclass
class _RecipeFilesCount:
    """Counts the files of a recipe and their characters; a file read twice counts twice."""

    parts: int = 0
    characters: int = 0

    def add_part(self) -> None:
        """Count one file. Raises _TooLarge above MOST_PARTS."""
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise _TooLarge(
                f"is composed of more than {MOST_PARTS} recipes, each counted as often as it is "
                "named; remove some of them from base, compose or the command"
            )

    def add_text(self, text: str) -> None:
        """Count the characters of a file.

        Raises _TooLarge if the files have more than LONGEST characters in all; `toml` reports a
        single file of more than LONGEST.
        """
        self.characters += len(text)
        if self.characters > LONGEST >= len(text):
            raise _TooLarge(
                f"is composed of files with more than {LONGEST:,} characters in all; a recipe has "
                "fewer"
            )


@dataclass(frozen=True)
class Layer:
    """The values that one file or one --set sets.

    `origin`: the file's path, or "--set". `values`: nested tables, as TOML is parsed.
    """

    origin: str
    values: Values


@dataclass(frozen=True)
class Composition:
    """The merged tables of a recipe.

    `origins`: for each dotted key, the file that set it last, or "--set".
    `name`: the recipe's name as requested; for a path, its stem.
    `describing_origins`: the files whose [about] table describes the composed recipe itself, not
    only one of its parts; and "--set".
    `faults`: a message for each file or --set that could not be read.
    `has_all_files`: whether every file could be read.
    `networks`: for each part of a+b+c, its name and the tables [teacher] and [student] after the
    part was merged.
    `idle`: the keys of each `--set KEY=false` that found no table to remove.
    `removed`: a note for each loss term of a part of a+b+c that a later part removed.
    """

    values: Values
    origins: dict[str, str]
    name: str
    describing_origins: frozenset[str]
    faults: list[str]
    has_all_files: bool
    networks: list[tuple[str, Values]]
    idle: list[str]
    removed: list[str]


@dataclass(frozen=True)
class _RemovedTerm:
    """A loss term that a part of a+b+c removed, and the files that set and removed it."""

    key: str
    set_by: str
    removed_by: str


def compose(spec: str, overrides: Sequence[str]) -> Composition:
    """Merge the files of `spec` (a name, a path ending in .toml, or a+b+c) and the overrides.

    An override is `key=value`. Files that cannot be read and malformed overrides raise no error:
    each has a message in `faults` of the result.
    """
    faults: list[str] = []
    values: Values = {}
    origins: dict[str, str] = {}
    parts = _parts(spec, Path())
    networks, layers = list[tuple[str, Values]](), list[list[Layer]]()
    removed = list[_RemovedTerm]()
    size = _RecipeFilesCount()
    try:
        for part in parts:
            layers.append(list(_layers(part, Path(), (), size, faults)))
            earlier = {key: origins[key] for key in _loss_terms(values)}
            for layer in layers[-1]:
                _merge(values, origins, layer, "")
            networks.append((_name_of(part), _networks(values)))
            removed += _removed_terms(earlier, values, layers[-1])
    except _TooLarge as fault:
        values, origins, networks, removed = {}, {}, [], []
        faults = [f"{shorten(spec)} {fault}"]
    has_all_files = not faults
    chosen = list(_override_layers(overrides, faults))
    faults += _conflicting_overrides(chosen)
    idle: list[str] = []
    for layer in chosen:
        idle += _removes_nothing(values, layer)
        _merge(values, origins, layer, "")
    name = "+".join(map(_name_of, parts))
    own = {OVERRIDE, *(files[-1].origin for files in layers if files and len(parts) == 1)}
    faults = list(dict.fromkeys(faults))
    notes = [
        _removed_note(term, parts, layers)
        for term in removed
        if term.key not in _loss_terms(values)
    ]
    return Composition(
        values, origins, name, frozenset(own), faults, has_all_files, networks, idle, notes
    )


def _loss_terms(values: Values) -> list[str]:
    """Return the dotted keys of the loss terms in merged tables: `["loss.hard", "loss.kd"]`."""
    loss = values.get("loss")
    terms = loss if isinstance(loss, dict) else {}
    return [f"loss.{name}" for name, term in terms.items() if isinstance(term, dict)]


def _removes(layer: Layer, key: str) -> bool:
    """Whether a file has `KEY = false` for a loss term, such as `loss.kd`."""
    loss = layer.values.get("loss")
    return isinstance(loss, dict) and loss.get(key.removeprefix("loss.")) is False


def _removed_terms(
    earlier: Mapping[str, str], values: Values, layers: Sequence[Layer]
) -> Iterator[_RemovedTerm]:
    """Yield the loss terms of earlier parts that a part removed.

    `earlier`: the files that set them, by dotted key. `values`: the tables after the part was
    merged. `layers`: the files of the part.
    """
    left = _loss_terms(values)
    for key, set_by in earlier.items():
        removed_by = [layer.origin for layer in layers if _removes(layer, key)]
        if removed_by and key not in left:
            yield _RemovedTerm(key, set_by, removed_by[-1])


def _removed_note(
    term: _RemovedTerm, parts: Sequence[str], layers: Sequence[Sequence[Layer]]
) -> str:
    """Return a note on a removed loss term, with the order of the parts that leaves it there.

    `layers`: the files of each part.
    """
    removing = [any(_removes(layer, term.key) for layer in files) for files in layers]
    in_order = sorted(zip(parts, removing, strict=True), key=lambda pair: not pair[1])
    return (
        f"{term.removed_by} removes {term.key} of {term.set_by}; for both terms type "
        f"{'+'.join(part for part, _ in in_order)}"
    )


def _removes_nothing(values: Values, layer: Layer) -> Iterator[str]:
    """Yield the key of a `--set KEY=false` if `values` has no table KEY to remove."""
    key, override, existing = "", cast("Any", layer.values), cast("Any", values)
    while isinstance(override, dict) and len(override) == 1:
        [(name, override)] = override.items()
        key = f"{key}.{name}" if key else name
        existing = existing.get(name) if isinstance(existing, dict) else None
    if override is False and key in switches() and existing is None:
        yield key


def _name_of(part: str) -> str:
    """Return the name of a recipe's part: the stem of a .toml path, a name unchanged."""
    return Path(part).stem if part.endswith(".toml") else part


def _networks(values: Values) -> Values:
    """Return copies of the tables [teacher] and [student], if present."""
    tables = {name: values.get(name) for name in ("teacher", "student")}
    return {name: dict(table) for name, table in tables.items() if isinstance(table, dict)}


def _layers(
    spec: str,
    relative_to: Path,
    ancestors: tuple[Path, ...],
    size: _RecipeFilesCount,
    faults: list[str],
) -> Iterator[Layer]:
    """Yield a layer for each file of `spec`, in merging order.

    Paths in `spec` are relative to the folder `relative_to`. `ancestors`: the chain of files whose
    `base` or `compose` led to `spec`. Counts the files in `size` and adds a message to `faults`
    for each that cannot be read. Raises _TooLarge if `size` exceeds its limits.
    """
    for part in _parts(spec, relative_to):
        size.add_part()
        path = _find_file(part, relative_to, ancestors, faults)
        if path in ancestors:
            cycle = " -> ".join(map(label, (*ancestors[ancestors.index(path) :], path)))
            faults.append(f"{label(path)} is composed of itself: {cycle}; remove one of them")
        elif path is not None:
            values = parsed(path, faults, size)
            for base in _pop_bases(values, path, faults):
                yield from _layers(base, path.parent, (*ancestors, path), size, faults)
            yield Layer(label(path), values)


def _parts(spec: str, relative_to: Path) -> list[str]:
    """Split `a+b+c` into its parts, unless it is the path of a file with a plus in its name."""
    return [spec] if os.path.isfile(relative_to / spec) else spec.split("+")


def _pop_bases(values: Values, path: Path, faults: list[str]) -> list[str]:
    """Remove `base` and `compose` from a file's values; return the recipes that they name."""
    if "base" in values and "compose" in values:
        faults.append(f"base and compose are both in {label(path)}; list all of them in compose")
    named = [values.pop(key) for key in ("base", "compose") if key in values]
    bases = [base for value in named for base in (value if isinstance(value, list) else [value])]
    wrong = [base for base in bases if not isinstance(base, str)]
    faults += [f"{value_text(base)} ({label(path)}) is not the name of a recipe" for base in wrong]
    return [base for base in bases if isinstance(base, str)]


def _find_file(
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
    paths = shipped_paths()
    hits = [path for path in paths if path.stem == part]
    if len(hits) == 1:
        return hits[0]
    named_in = f" ({label(ancestors[-1])})" if ancestors else ""
    if hits:
        several = " and ".join(map(label, hits))
        faults.append(f"recipe {part}{named_in} is two files, {several}; give one by its path")
        return None
    if "/" in part:
        faults.append(f"{shorten(part)}{named_in} is not a recipe file: its path must end in .toml")
        return None
    near = get_close_matches(part, [path.stem for path in paths], n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    faults.append(f"recipe {shorten(part)!r}{named_in} is not in recipes/; {guess}{LIST_THEM}")
    return None


def shipped_paths() -> list[Path]:
    """Return the paths of all shipped recipes, which can be given by name alone."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.toml"))]


def parsed(path: Path, faults: list[str], size: _RecipeFilesCount | None = None) -> Values:
    """Return the tables of a file; if it cannot be read, add a fault and return no tables.

    `size`: if given, the file's characters are added to it. Raises _TooLarge if `size` then
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


def _override_layers(overrides: Sequence[str], faults: list[str]) -> Iterator[Layer]:
    for text in overrides:
        try:
            yield _override_layer(text)
        except ValueError as error:
            faults.append(
                f"--set {shorten(text)} {error}; type key=value, as in --set optim.lr=0.1"
            )


def override_of(key: str, overrides: Sequence[str]) -> str | None:
    """Return the last override that sets `key` (`table.name`), or None.

    An override of a whole table, such as `data={source="x"}`, sets `data.source` too.
    """
    table, _, name = key.partition(".")
    for text in reversed(overrides):
        with suppress(ValueError):  # a malformed override is reported later
            values = _override_layer(text).values.get(table)
            if isinstance(values, dict) and name in values:
                return text
    return None


def combine_overrides(
    data: str | None, overrides: Sequence[str], teachers: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return the `key=value` overrides of the options `--set`, `--data` and `--teacher`, and notes.

    If `--set` sets the key of another option too, that option is not used, and a note says so.
    Raises UserError for a path that is not UTF-8, which recipe.toml cannot contain.
    """
    for path in filter(None, [data, *(teachers or [])]):
        if not is_utf8(path):
            raise UserError(
                f"the name of {path} is not UTF-8, so recipe.toml cannot contain it.\n"
                "Rename the folder, or give a link to it with another name."
            )
    chosen, notes = [], []
    options = {"--data": ("data.source", data), "--teacher": ("teacher.runs", teachers or None)}
    for option, (key, value) in options.items():
        override = override_of(key, overrides)
        if value is not None and override is not None:
            notes.append(f"--set {override} overrides {option}, which is not used")
        elif value is not None:
            chosen.append(f"{key}={value_text(value)}")
    return [*overrides, *chosen], notes


def _conflicting_overrides(layers: Sequence[Layer]) -> Iterator[str]:
    """Yield a fault for each pair of --set that exclude each other, such as epochs and minutes.

    Two files may set such a pair: the key of the later file replaces the other one.
    """
    keys = {
        f"{table}.{name}"
        for layer in layers
        for table, values in layer.values.items()
        if isinstance(values, dict)
        for name in values
    }
    for key, rival in RIVALS.items():
        other = f"{key.rpartition('.')[0]}.{rival}"
        if key < other and {key, other} <= keys:
            yield f"--set {key} and --set {other} exclude each other; give one of them"


def _override_layer(text: str) -> Layer:
    """Parse an override such as `optim.lr=0.1` into tables.

    Raises ValueError if the key or the value is missing or malformed, or nested too deeply.
    """
    key, _, raw = text.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not all(map(BARE_KEY.fullmatch, names)):
        raise ValueError(f"has no key: {shorten(repr(key))} is not one")
    if not raw.strip():
        raise ValueError("has no value")
    if len(names) > DEEPEST:
        raise ValueError(f"is nested deeper than {DEEPEST} tables")
    values = _override_value(raw.strip())
    for name in reversed(names):
        values = {name: values}
    return Layer(OVERRIDE, values)


def _override_value(raw: str) -> Any:
    """Parse a TOML value; any other text is a string, so that paths need no quotes.

    Raises ValueError if text that begins like a list, a table or a quoted string is malformed, if
    the value is nested too deeply, or if it has an integer of more than 64 bits.
    """
    is_structured = raw[0] in "[{\"'" or "\n" in raw
    if is_structured and has_long_key(raw):
        raise ValueError(f"is nested deeper than {DEEPEST} tables and lists")
    try:
        table = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):
        table = {}
    if is_deeper(table, DEEPEST):
        raise ValueError(f"is nested deeper than {DEEPEST} tables and lists")
    if has_long_number(table):
        raise ValueError(f"has {TOO_LONG}")
    if table.keys() == {"value"}:
        return table["value"]
    if is_structured:
        raise ValueError(f"is malformed: {shorten(raw)} is not a TOML value")
    return raw


def _merge(into: Values, origins: dict[str, str], layer: Layer, prefix: str) -> None:
    for name, value in layer.values.items():
        key = prefix + name
        rival = RIVALS.get(key)
        if rival is not None and rival not in layer.values:
            into.pop(rival, None)
        if value is False and key in switches():
            into.pop(name, None)
            for removed in [k for k in origins if k.startswith(f"{key}.")]:
                del origins[removed]
            continue
        if key in ("teacher.network", "student.network") and isinstance(value, str):
            _drop_other_network(prefix, into, origins, value, layer.origin)
        origins[key] = layer.origin
        if isinstance(value, dict):
            if not isinstance(into.get(name), dict):
                into[name] = {}
            _merge(into[name], origins, Layer(layer.origin, value), f"{key}.")
        else:
            into[name] = value


def _drop_other_network(
    prefix: str, table: Values, origins: dict[str, str], network: str, origin: str
) -> None:
    """Remove the keys of another network that earlier files set in [teacher] or [student].

    `origin`: the file (or `--set`) that sets `network`. Keys of another network in the same file
    remain, so that the validation reports the contradiction. `prefix`: "teacher." or "student.".
    """
    for name in foreign_keys(network) & table.keys():
        if origins[prefix + name] != origin:
            del table[name], origins[prefix + name]
