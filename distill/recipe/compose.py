"""Merge a recipe's files and every --set into one set of tables.

Later values replace earlier ones. The order is: the recipes that the file lists in `compose`, from
left to right; the file itself; each --set. Tables are merged key by key; `mix.cutmix = false`
removes the table [mix.cutmix]. This module only checks that the files exist and can be read.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from distill.recipe.overrides import OVERRIDE, override_values
from distill.recipe.recipe_files import RecipeFilesCount, TooLarge, find_file, label, parsed
from distill.recipe.schema import foreign_keys
from distill.recipe.validation import Values, shorten, switches, value_text

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


@dataclass
class _MergedFiles:
    """The merged tables of a recipe's files, and what a composition needs to know of each file.

    `layers`: the files of each part; `networks`: the network tables after each part, by its name.
    """

    parts: list[str]
    values: Values = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    layers: list[list[Layer]] = field(default_factory=list)
    networks: list[tuple[str, Values]] = field(default_factory=list)
    removed: list[_RemovedTerm] = field(default_factory=list)


def compose(spec: str, overrides: Sequence[str]) -> Composition:
    """Merge the files of `spec` (a name, a path ending in .toml, or a+b+c) and the overrides.

    An override is `key=value`. Files that cannot be read and malformed overrides raise no error:
    each has a message in `faults` of the result.
    """
    faults: list[str] = []
    try:
        merged = _merge_files(_parts(spec, Path()), faults)
    except TooLarge as fault:
        merged, faults = _MergedFiles(_parts(spec, Path())), [f"{shorten(spec)} {fault}"]
    has_all_files = not faults
    values, origins, parts, layers = merged.values, merged.origins, merged.parts, merged.layers
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
        for term in merged.removed
        if term.key not in _loss_terms(values)
    ]
    return Composition(
        values, origins, name, frozenset(own), faults, has_all_files, merged.networks, idle, notes
    )


def _merge_files(parts: list[str], faults: list[str]) -> _MergedFiles:
    """Merge the files of each part of a+b+c and of its bases, in order.

    Files that cannot be read add a fault. Raises TooLarge if there are too many of them.
    """
    merged, size = _MergedFiles(parts), RecipeFilesCount()
    for part in parts:
        layers = list(_layers(part, Path(), (), size, faults))
        earlier = {key: merged.origins[key] for key in _loss_terms(merged.values)}
        for layer in layers:
            _merge(merged.values, merged.origins, layer, "")
        merged.layers.append(layers)
        merged.networks.append((_name_of(part), _networks(merged.values)))
        merged.removed += _removed_terms(earlier, merged.values, layers)
    return merged


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
    size: RecipeFilesCount,
    faults: list[str],
) -> Iterator[Layer]:
    """Yield a layer for each file of `spec`, in merging order.

    Paths in `spec` are relative to the folder `relative_to`. `ancestors`: the chain of files whose
    `base` or `compose` led to `spec`. Counts the files in `size` and adds a message to `faults`
    for each that cannot be read. Raises TooLarge if `size` exceeds its limits.
    """
    for part in _parts(spec, relative_to):
        size.add_part()
        path = find_file(part, relative_to, ancestors, faults)
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


def _override_layers(overrides: Sequence[str], faults: list[str]) -> Iterator[Layer]:
    for text in overrides:
        try:
            yield Layer(OVERRIDE, override_values(text))
        except ValueError as error:
            faults.append(
                f"--set {shorten(text)} {error}; type key=value, as in --set optim.lr=0.1"
            )


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
