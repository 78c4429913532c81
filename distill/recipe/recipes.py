"""Load recipes by name, validate them, and write them as TOML.

A recipe is a TOML file that may be composed of others (`compose.py`); `schema.py` has its tables
and keys. It is validated once, after all files and --set are merged (`validation.py`). The origin
of every value is recorded.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from distill.errors import UserError, first_faults
from distill.files.escape_text import visible
from distill.recipe import describe_network
from distill.recipe.compose import compose
from distill.recipe.constraints import RULES, Fault, Rule, within_budget
from distill.recipe.loss_schema import TEACHERS
from distill.recipe.overrides import OVERRIDE
from distill.recipe.recipe_files import ROOT, label, parsed, shipped_paths, toml
from distill.recipe.schema import STUDENT_READS, About, Recipe, Student, Teacher
from distill.recipe.validation import (
    Values,
    check,
    keys,
    leaves,
    shorten,
    value_text,
)

__all__ = ["About", "Recipe"]  # re-exported from schema.py

DEFAULT = "default"  # the origin of values that neither a file nor --set sets


class RecipeError(UserError):
    """A recipe was refused; the message has one line per fault."""

    def __init__(self, name: str, faults: Sequence[str]) -> None:
        super().__init__(name, faults)
        self.name, self.faults = name, tuple(faults)

    def __str__(self) -> str:
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        lines = [
            f"{count} in {visible(shorten(self.name))}",
            *(f"  {visible(fault)}" for fault in first_faults(self.faults)),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class ResolvedRecipe:
    """A merged and validated recipe.

    `origins`: for each dotted key, the file that set it, "--set" or "default".
    `name`: as requested, such as "kd_cutmix+quickstart"; for a path, its stem.
    `replaced`: for a composed recipe a+b, by table ("teacher" or "student"), a note that the
    network of b replaces the network of a.
    `idle`: a note for each `--set KEY=false` that removes nothing.
    `removed`: a note for each loss term of a part of a+b+c that a later part removes.
    """

    recipe: Recipe
    origins: dict[str, str]
    name: str
    replaced: dict[str, str] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def notes(self, *roles: str) -> tuple[str, ...]:
        """Return the notes for the user, those on networks for the roles "teacher" or "student"."""
        replaced = (self.replaced[role] for role in roles if role in self.replaced)
        return (*replaced, *self.removed, *self.idle)


def load(spec: str, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """Load the recipe `spec` (a name, a path ending in .toml, or a+b+c) with `key=value` overrides.

    `about` comes from the requested file only: results of the recipes that it is composed of are
    not inherited. Raises RecipeError with every fault.
    """
    return _load(spec, overrides, RULES)


def load_over_budget(spec: str, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """Load a recipe as `load` does, whose student may exceed its parameter budget."""
    return _load(spec, overrides, [rule for rule in RULES if rule is not within_budget])


def shipped() -> list[tuple[str, Path, About]]:
    """Return name, file and [about] of every shipped recipe and ingredient.

    Raises RecipeError if a file is not TOML or its [about] is invalid.
    """
    faults: list[str] = []
    rows = []
    for path in shipped_paths():
        about = parsed(path, faults).get("about", {})
        wrong = check({"about": about}, whole=False)[1]
        faults += [_line(fault, {fault.key: label(path)}) for fault in wrong]
        if not wrong:
            rows.append((path.stem, path, About.model_validate(about)))
    if faults:
        raise RecipeError("recipes/", faults)
    return rows


def read(path: Path) -> Recipe:
    """Load a run's recipe.toml. Raises RecipeError if it cannot be read or is invalid."""
    faults: list[str] = []
    return _validate_uncomposed(parsed(path, faults), str(path), faults)


def loads(text: str, name: str) -> Recipe:
    """Load the TOML text that `dumps` wrote.

    Raises RecipeError if it is invalid; its message calls the text `name`.
    """
    faults: list[str] = []
    return _validate_uncomposed(toml(text, name, faults), name, faults)


def dumps(recipe: Recipe, without: Mapping[str, Any] | None = None) -> str:
    """Return the whole recipe as TOML, with defaults but without absent keys.

    `without`: more tables and keys to leave out, `{"about": True, "data": {"source": True}}`.
    """
    return toml_of(recipe.model_dump(exclude_none=True, exclude=dict(without or {})))


def toml_of(tables: Values) -> str:
    """Return tables as TOML, each list on one line."""
    text = tomli_w.dumps(tables)
    # tomli-w writes each element of a list on its own line; strings contain no line breaks.
    for spread, inline in ((r",\n *\]", "]"), (r",\n +", ", "), (r"\[\n +", "[")):
        text = re.sub(spread, inline, text)
    return text


def of_run(recipe: Recipe) -> str:
    """Return the recipe.toml of a new run: `dumps`, with a comment if its teachers are runs."""
    text = dumps(recipe)
    if recipe.teacher is None or not recipe.teacher.runs:
        return text
    read = ", ".join(sorted(STUDENT_READS))
    return text.replace(
        "\n[teacher]\n",
        f"\n[teacher]  # only {read} are read: the networks are those of the runs\n",
    )


def annotated(text: str, origins: Mapping[str, str]) -> str:
    """Append to each line of a recipe's TOML text the origin of its value, as a comment.

    `origins`: by dotted key; a line whose key is not in it stays unchanged.
    """
    lines, table = [], ""
    for line in text.splitlines():
        if line.startswith("["):
            table = line.strip("[]") + "."
        origin = origins.get(table + line.split(" = ")[0]) if " = " in line else None
        lines.append(f"{line:<48}  # {origin}" if origin else line)
    return "\n".join(lines)


def check_report(spec: str, overrides: Sequence[str] = ()) -> str:
    """Check a recipe and return a sentence on the result, then its notes, one per line.

    An ingredient is not a whole recipe: only its keys are checked. Raises RecipeError with every
    fault.
    """
    if not _is_ingredient(spec):
        notes = load(spec, overrides).notes("teacher", "student")
        return "\n".join([f"{spec}: no faults", *(f"note: {note}" for note in notes)])
    composed = compose(spec, overrides)
    wrong = check(composed.values, whole=False)[1]
    faults = [*composed.faults, *_lines(spec, wrong, composed.origins)]
    if faults:
        raise RecipeError(spec, faults)
    return f"{spec}: no faults; an ingredient, to be composed with a recipe: kd+{Path(spec).stem}"


def ingredient(spec: str, overrides: Sequence[str] = ()) -> tuple[Values, dict[str, str]] | None:
    """Return the tables of an ingredient and the origin of each key; None for another recipe.

    Raises RecipeError with every fault.
    """
    if not _is_ingredient(spec):
        return None
    check_report(spec, overrides)
    composed = compose(spec, overrides)
    return composed.values, composed.origins


def required_inputs(recipe: Recipe) -> frozenset[str]:
    """Return the names of the inputs that the loss terms need, such as "labels" and "teacher".

    `loss_schema.py` lists all of them.
    """
    return frozenset[str]().union(*(term.needs for term in recipe.loss.terms().values()))


def has_teacher(recipe: Recipe) -> bool:
    """Whether some loss term needs a teacher, live or cached."""
    return bool(required_inputs(recipe) & TEACHERS)


def _load(spec: str, overrides: Sequence[str], rules: Sequence[Rule]) -> ResolvedRecipe:
    composed = compose(spec, overrides)
    recipe, faults = check(composed.values, rules, whole=composed.has_all_files)
    if recipe is None or faults or composed.faults:
        lines = [*composed.faults, *_lines(spec, faults, composed.origins)]
        if _is_ingredient(spec):
            lines.insert(
                0, f"{spec} is an ingredient, to be composed with a recipe; type kd+{spec}"
            )
        raise RecipeError(spec, lines)
    origins = {
        key: origin
        for key, origin in composed.origins.items()
        if origin in composed.describing_origins or not key.startswith("about.")
    }
    about = {key: value for key, value in recipe.about if f"about.{key}" in origins}
    recipe = recipe.model_copy(update={"about": About(**about)})
    all_origins = {key: origins.get(key, DEFAULT) for key, _ in leaves(recipe.model_dump())}
    idle = tuple(_removes_nothing_note(key, recipe) for key in dict.fromkeys(composed.idle))
    replaced = dict(_replaced(composed.networks, composed.values))
    removed = tuple(composed.removed)
    return ResolvedRecipe(recipe, all_origins, composed.name, replaced, idle, removed)


def _removes_nothing_note(key: str, recipe: Recipe) -> str:
    """Return a note that `--set KEY=false` found no table to remove."""
    reason = f"the recipe has no [{key}]"
    if key.startswith("loss."):
        reason = f"the terms of the recipe are {', '.join(recipe.loss.terms())}"
    return f"--set {key}=false removes nothing: {reason}"


def _replaced(networks: Sequence[tuple[str, Values]], values: Values) -> Iterator[tuple[str, str]]:
    """Yield (table, note) for each network that a later part of a+b+c replaces.

    `values`: the merged tables. There is no note on a network that a --set replaces in turn.
    """
    for i, ((_, before), (part, after)) in enumerate(pairwise(networks), start=1):
        for table in before.keys() & after.keys():
            old, new = _network_name(table, before[table]), _network_name(table, after[table])
            if old and new and old != new and new == _network_name(table, values[table]):
                earlier = "+".join(name for name, _ in networks[:i])
                yield table, f"{part} replaces the network of {earlier}: {old} -> {new}"


def _network_name(table: str, values: Values) -> str | None:
    """Return a network's short name; None if its table is incomplete or invalid."""
    try:
        if table == "student":
            return describe_network.summary(Student.model_validate(values))
        return describe_network.summary(Teacher.model_validate(values))
    except (ValidationError, UserError):
        return None


def _is_ingredient(spec: str) -> bool:
    """Whether a name or a path refers to a shipped ingredient."""
    return any(
        path.parent.name == "ingredients" and spec in (path.stem, label(path), str(path))
        for path in shipped_paths()
    )


def _validate_uncomposed(values: Values, name: str, faults: list[str]) -> Recipe:
    """Validate the values of a file that is not composed of others.

    Raises RecipeError with every fault, after the `faults` found in reading the file.
    """
    recipe, wrong = check(values, whole=not faults)
    faults += [_line(fault, {fault.key: name}) for fault in wrong]
    if faults or recipe is None:
        raise RecipeError(name, faults)
    return recipe


def _lines(spec: str, faults: Sequence[Fault], origins: dict[str, str]) -> Iterator[str]:
    """Yield each fault as one line of the message.

    The value of an unknown key is left out if its file is neither shipped nor named in `spec`: a
    file that another one composes may be no recipe at all and contain secrets.
    """
    # For a user that does not exist, os.path.expanduser leaves `~NAME` unchanged.
    own = {
        os.path.realpath(os.path.expanduser(p)) for p in [spec, *spec.split("+")] if "\0" not in p
    }
    for fault in faults:
        is_unknown = fault.key not in keys() and fault.value is not None
        inside = (o for key, o in origins.items() if f"{key}.".startswith(f"{fault.key}."))
        if is_unknown and any(_is_elsewhere(origin, own) for origin in inside):
            fault = Fault(fault.key, None, f"({origins[fault.key]}) {fault.problem}")
        yield _line(fault, origins)


def _is_elsewhere(origin: str, own: set[str]) -> bool:
    """Whether an origin is a file that is neither one of the files `own` nor in recipes/."""
    path = ROOT / origin  # an absolute path stays itself
    is_known = origin in (OVERRIDE, DEFAULT) or path.is_relative_to(ROOT / "recipes")
    return not is_known and str(path) not in own


def _line(fault: Fault, origins: dict[str, str]) -> str:
    """Return a fault as one line: the key, its value and origin unless it is missing, the problem.

    `origins`: by dotted key.
    """
    problem = fault.problem
    if fault.against is not None:
        problem = problem.format(f"{fault.against} ({origins.get(fault.against, DEFAULT)})")
    elif fault.value is None:
        return f"{shorten(fault.key)} {problem}"
    value = "" if fault.value is None else f" = {shorten(value_text(fault.value))}"
    return f"{shorten(fault.key)}{value} ({origins.get(fault.key, DEFAULT)}) {problem}"
