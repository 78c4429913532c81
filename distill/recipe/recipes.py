"""Load recipes by name; validate, write and compare them.

A recipe is a TOML file that may be composed of others (`compose.py`); `schema.py` has its tables
and keys. It is validated once, after all files and --set are merged (`validation.py`). The origin
of every value is recorded.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ValidationError

from distill.errors import UserError, first_faults
from distill.files.escape_text import visible
from distill.recipe import network_cost
from distill.recipe.compose import OVERRIDE, ROOT, compose, label, parsed, shipped_paths, toml
from distill.recipe.constraints import RULES, Fault, Rule, within_budget
from distill.recipe.loss_schema import TEACHERS, Hard, Losses, When
from distill.recipe.schema import DEFAULT_SIZE, About, Recipe, Student, Teacher
from distill.recipe.validation import (
    Values,
    check,
    keys,
    shorten,
    switches,
    value_text,
)
from students.design import Design

__all__ = ["About", "Recipe"]  # re-exported from schema.py

# Keys that older fingerprints do not include, by dotted table, with their defaults as JSON.
LATER_KEYS: dict[str, dict[str, Any]] = {
    "teacher": {"draw": "all", "mirror": False, "weights": [], "zero_gamma": True},
    "student": {"network": "resnet", "zero_gamma": True},
    "loss.kd": {"standardise": False},
    "loss.dkd": {"standardise": False},
    "loss.multi_temperature": {"standardise": False},
    "loss.fitnet": {"layout": "pointwise"},
    "optim": {"milestones": []},
    "train": {"drop_last": True, "keep_epochs": "auto"},
}
ENSEMBLE_KEYS = {"draw", "mirror", "weights"}
TEACHING = {"runs", "draw", "mirror", "weights"}  # keys of [teacher] that a student's run reads
# Builds a recipe's network and returns its `parameters`, `trainable` and `macs`.
CountBuilt = Callable[[Recipe, Literal["student", "teacher"]], Mapping[str, int]]
DEFAULT = "default"  # the origin of values that neither a file nor --set sets
DEFAULTS = "with its defaults"  # what `changed_values` says of a table


class RecipeError(UserError):
    """A recipe was refused; the message has one line per fault."""

    def __init__(self, name: str, faults: Sequence[str]) -> None:
        super().__init__(name, faults)
        self.name, self.faults = name, tuple(faults)

    def __str__(self) -> str:
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        lines = [
            f"RecipeError: {count} in {visible(shorten(self.name))}",
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


def count_networks(
    spec: str, overrides: Sequence[str] = (), count_built: CountBuilt | None = None
) -> dict[str, Any]:
    """Count the parameters and MACs of a recipe's networks for 10 classes.

    The MACs are those of images of `data.size`, 32 pixels if it is absent. The student may exceed
    its parameter budget. The teacher is counted too, under `teacher`, `teacher_parameters` …; a
    recipe may have a teacher without a student. `count_built` counts networks without a closed form
    by building them: those of timm and of the user's own code; without it such a teacher is left
    out. Raises RecipeError if the recipe has another fault, or nothing to count, UserError if a
    network cannot be built.
    """
    resolved = _load(spec, overrides, [rule for rule in RULES if rule is not within_budget])
    size = resolved.recipe.data.image_size
    student, teacher = resolved.recipe.student, resolved.recipe.teacher
    of_teacher = {} if teacher is None else _count_network(resolved.recipe, teacher, count_built)
    counted: dict[str, Any] = {"recipe": resolved.name}
    if size != DEFAULT_SIZE:
        counted["image_size"] = size
    if student is not None or not of_teacher:
        counted |= _counted_student(resolved.recipe, _student(resolved), count_built)
    if teacher is not None and of_teacher:
        counted["teacher"] = network_cost.summary(teacher, size=size)
    return counted | {f"teacher_{name}": n for name, n in of_teacher.items()}


def _count_network(
    recipe: Recipe, table: Student | Teacher, count_built: CountBuilt | None
) -> Mapping[str, int]:
    """Return `parameters`, `trainable` and `macs` of a table's network; empty if only building it
    shows them and there is no `count_built`.
    """
    described = network_cost.describe(table, size=recipe.data.image_size)
    if described is not None:
        return {name: getattr(described, name) for name in ("parameters", "trainable", "macs")}
    role: Literal["student", "teacher"] = "student" if isinstance(table, Student) else "teacher"
    return {} if count_built is None else count_built(recipe, role)


def _counted_student(
    recipe: Recipe, student: Student, count_built: CountBuilt | None
) -> dict[str, Any]:
    counts = _count_network(recipe, student, count_built)
    if not counts:
        raise UserError(f"{student.network} is counted when it is built; type distill to build it.")
    return {
        "network": network_cost.summary(student, size=recipe.data.image_size),
        **counts,
        "max_params": student.max_params,
        "within_budget": counts["parameters"] < student.max_params,
    }


def design_of(spec: str, overrides: Sequence[str] = ()) -> tuple[Design, str]:
    """Return the student's design for 10 classes, and the name of its activation.

    The student may exceed its parameter budget. Raises RecipeError if the recipe has another fault,
    or no student, and UserError if the student is not a residual network.
    """
    resolved = _load(spec, overrides, [r for r in RULES if r is not within_budget])
    student, size = _student(resolved), resolved.recipe.data.image_size
    if not network_cost.is_described_by_design(student):
        raise UserError(
            f"the student is {student.network}: it cannot be checked, because the rules are for "
            "residual networks that a recipe describes by stages, blocks and width.\n"
            "Type params to count its parameters, or give a recipe with "
            'student.network = "resnet".'
        )
    return Design.of(**student.spec(), image_size=size), student.activation


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
    read = ", ".join(sorted(TEACHING))
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


def fingerprint(recipe: Recipe) -> str:
    """Return the SHA-256 of a recipe's keys outside [about], hex.

    Absent keys do not change it, nor do LATER_KEYS while they have their defaults: earlier versions
    did not have these keys.
    """
    content = recipe.model_dump(mode="json", exclude={"about"}, exclude_none=True)
    return _fingerprint_of(content)


def fingerprint_as_written(path: Path) -> str:
    """Return the fingerprint of the keys that a run's recipe.toml contains, hex.

    It is what the version that wrote the file computed, even if later versions added keys. Raises
    RecipeError if the file cannot be read or is invalid.
    """
    read(path)
    content = {name: table for name, table in parsed(path, []).items() if name != "about"}
    return _fingerprint_of(content)


def _fingerprint_of(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a recipe's keys as canonical JSON, without LATER_KEYS at defaults."""
    hashed = {name: _without_later_keys(name, table) for name, table in content.items()}
    canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _without_later_keys(name: str, table: dict[str, Any]) -> dict[str, Any]:
    """Return a table and its inner tables without LATER_KEYS at defaults; `name` is dotted."""
    later = LATER_KEYS.get(name, {}).items()
    return {
        key: _without_later_keys(f"{name}.{key}", value) if isinstance(value, dict) else value
        for key, value in table.items()
        if (key, value) not in later
    }


def values(recipe: Recipe) -> dict[str, Any]:
    """Return every key outside [about] that is not absent: `{"optim.lr": 0.1, …}`."""
    return dict(leaves(recipe.model_dump(exclude={"about"})))


def is_read(key: str, role: str | None) -> bool:
    """Whether a run of this role, "student" or "teacher", reads a key of its recipe; of None, all.

    A student's run loads its teachers from `teacher.runs`; it does not read the keys of [teacher]
    that describe a network.
    """
    table, _, name = key.partition(".")
    return role != "student" or table != "teacher" or name in TEACHING


def values_read(recipe: Recipe, role: str | None) -> dict[str, Any]:
    """Return the `values` of the keys that a run of this role reads (`is_read`)."""
    return {key: value for key, value in values(recipe).items() if is_read(key, role)}


def changed_values(recipe: Recipe) -> dict[str, str]:
    """Return every key outside [about] that is not at its default, with its value as text.

    An optional table that is present with defaults alone is a key of its own, with the value
    DEFAULTS. A key that is absent although it has a default has the value `absent`.
    """
    return dict(_changed(recipe, recipe.model_dump(exclude={"about"})))


def _changed(table: BaseModel, dumped: Values, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted key and value of the keys of a table and its inner tables that are not defaults.

    `dumped`: the table's keys that a recipe has, which for [student] and [teacher] are those of
    their network.
    """
    for name in dumped:
        key, value = prefix + name, getattr(table, name)
        field = type(table).model_fields.get(name)
        default = None if field is None else field.default
        if isinstance(value, BaseModel):
            inner = list(_changed(value, dumped[name], f"{key}."))
            yield from inner or ([(key, DEFAULTS)] if default is None else [])
        elif value != default:
            yield key, "absent" if value is None else value_text(value)


def differences(a: Recipe, b: Recipe) -> list[str]:
    """List the keys outside [about] whose values differ: `optim.lr: 0.1 -> 0.2`.

    A missing key has the value `absent`.
    """
    return differing(values(a), values(b))


def differing(first: Values, second: Values) -> list[str]:
    """List the keys whose values differ, as `differences` does; both are of `values`."""
    return [
        f"{key}: {_text_at(key, first)} -> {_text_at(key, second)}"
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]


def differences_with_origins(a: ResolvedRecipe, b: ResolvedRecipe) -> list[str]:
    """List the keys outside [about] whose values differ, with the origin of each value.

    For example `optim.lr: 0.1 (default) -> 0.2 (recipes/kd.toml)`. Keys at their defaults in a
    table that the other recipe lacks are left out, and for a recipe that names its teachers' runs
    the keys of [teacher] that are then not read.
    """
    first, second = (
        values_read(each, "student" if each.teacher and each.teacher.runs else "teacher")
        for each in (a.recipe, b.recipe)
    )
    return [
        f"{key}: {_with_origin(key, first, a.origins)} -> {_with_origin(key, second, b.origins)}"
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
        and not is_default_of_absent_table(key, a.recipe, b.recipe)
    ]


def is_default_of_absent_table(key: str, a: Recipe, b: Recipe) -> bool:
    """Whether one of two recipes lacks the key's whole table, and the other has the key's default.

    False for all keys of a table that has defaults alone: they show that the table is there.
    """
    table = f"{key.rpartition('.')[0]}."
    inside = [any(name.startswith(table) for name in values(each)) for each in (a, b)]
    if table[:-1] not in switches() or all(inside):
        return False
    changed = changed_values(a if inside[0] else b)
    return key not in changed and any(name.startswith(table) for name in changed)


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


def control_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the control, which trains the same student without a teacher.

    Its only loss term is the cross-entropy with the labels, at weight 1.
    """
    hard = (recipe.loss.hard or Hard()).model_copy(update={"weight": 1.0, "when": When()})
    # The control reads no cached logits, but must train on the same views.
    cache = recipe.cache if recipe.cache and recipe.cache.views else None
    return recipe.model_copy(update={"loss": Losses(hard=hard), "cache": cache})


def required_inputs(recipe: Recipe) -> frozenset[str]:
    """Return the names of the inputs that the loss terms need, such as "labels" and "teacher".

    `loss_schema.py` lists all of them.
    """
    return frozenset[str]().union(*(term.needs for term in recipe.loss.terms().values()))


def has_teacher(recipe: Recipe) -> bool:
    """Whether some loss term needs a teacher, live or cached."""
    return bool(required_inputs(recipe) & TEACHERS)


def with_teacher(recipe: Recipe, runs: Sequence[str]) -> Recipe:
    """Return the recipe with the networks of these run folders as teachers."""
    teacher = (recipe.teacher or Teacher()).model_copy(update={"runs": tuple(runs)})
    return recipe.model_copy(update={"teacher": teacher})


def ensemble_keys(recipe: Recipe) -> set[str]:
    """Return which of the [teacher] keys `draw`, `mirror` and `weights` differ from the default."""
    default, teacher = Teacher(), recipe.teacher or Teacher()
    return {key for key in ENSEMBLE_KEYS if getattr(teacher, key) != getattr(default, key)}


def with_single_teacher(recipe: Recipe, i: int) -> Recipe:
    """Return the recipe with only the i-th of its teachers."""
    assert recipe.teacher is not None
    single = {"runs": recipe.teacher.runs[i : i + 1], "draw": "all", "weights": ()}
    return recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update=single)})


def with_source(recipe: Recipe, source: str) -> Recipe:
    """Return the recipe with another data source."""
    return with_data(recipe, source=source)


def with_data_of(recipe: Recipe, earlier: Recipe) -> Recipe:
    """Return a typed recipe with what it leaves to its images filled in from a run's recipe.

    `earlier`: the recipe of a run that was begun with `recipe`. In it an absent `data.size` is 32,
    an absent `data.normalize` is CIFAR-10's, and the values of "computed" are known.
    """
    typed, known = recipe.data, earlier.data
    has_values = typed.normalize == "computed" and isinstance(known.normalize, tuple)
    is_default = typed.normalize == "cifar10" and known.normalize is None
    filled = dict[str, Any]()
    if typed.normalize is None or has_values or is_default:
        filled["normalize"] = known.normalize
    if typed.size in (None, known.image_size):
        filled["size"] = known.size
    return with_data(recipe, **filled)


def with_data(recipe: Recipe, **values: Any) -> Recipe:
    """Return the recipe with these values of [data]."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=values)})


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe with this seed for initial weights and for data."""
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"seed": seed}),
            "train": recipe.train.model_copy(update={"seed": seed}),
        }
    )


def teacher_for(name: str) -> str:
    """Return what to type after `train-teacher --recipe` to train a teacher for the recipe `name`.

    For `kd_cutmix+quickstart` it is `teacher_wrn+quickstart`. It is taken from `teacher` in the
    [about] tables of the recipe's parts. Ingredients that add a term that needs a teacher, such as
    `published_at`, are left out.
    """
    first, *ingredients = name.split("+")
    ingredients = [each for each in ingredients if not _adds_teacher_term(each)]
    teachers = [each for each in ingredients if _is_teacher_recipe(each)]
    note = ""
    with suppress(RecipeError):
        note = load(first).recipe.about.teacher
    base, _, options = (note if note not in ("", "none") else "teacher_wrn").partition(" ")
    if teachers:  # the recipe names its teacher's itself
        base, options = teachers[-1], ""
        ingredients = [each for each in ingredients if each not in teachers]
    more = (_teacher_options(base, ingredient) for ingredient in ingredients)
    return " ".join(filter(None, ["+".join([base, *ingredients]), options, *more]))


def _is_teacher_recipe(part: str) -> bool:
    """Whether a shipped recipe is a whole one for train-teacher, such as `teacher_wrn`."""
    with suppress(RecipeError):
        recipe = load(part).recipe
        return recipe.teacher is not None and recipe.student is None and not has_teacher(recipe)
    return False


def _adds_teacher_term(ingredient: str) -> bool:
    """Whether a shipped ingredient has a loss term that needs a teacher."""
    paths = [path for path in shipped_paths() if path.stem == ingredient]
    losses = (parsed(path, []).get("loss", {}) for path in paths)
    return any(
        name != "hard" and table is not False for terms in losses for name, table in terms.items()
    )


def _teacher_options(base: str, ingredient: str) -> str:
    """Return the --set options that an ingredient's [about] gives for training the teacher `base`.

    Empty if it gives none for this teacher.
    """
    with suppress(RecipeError):
        for name, _, about in shipped():
            spec, _, options = about.teacher.partition(" ")
            if name == ingredient and spec == f"{base}+{ingredient}":
                return options
    return ""


def check_teacher(resolved: ResolvedRecipe) -> None:
    """Raise RecipeError if train-teacher cannot use the recipe.

    It needs a [teacher] table, and no loss term may need a teacher.
    """
    recipe, origins = resolved.recipe, resolved.origins
    faults = []
    if recipe.teacher is None:
        faults.append("teacher is missing; train-teacher needs a [teacher] table")
    for name, term in recipe.loss.terms().items():
        if term.needs & TEACHERS:
            origin = origins[f"loss.{name}.weight"]
            faults.append(
                f"loss.{name} ({origin}) needs a teacher, but train-teacher has none; "
                f"type --set loss.{name}=false{_hard_weight_option(recipe)}"
            )
    if faults:
        raise RecipeError(resolved.name, faults)


def _hard_weight_option(recipe: Recipe) -> str:
    """Return the --set that sets the weight of the loss term on labels to 1; empty if it is 1."""
    hard = recipe.loss.hard
    return " --set loss.hard.weight=1" if hard is None or hard.weight != 1 else ""


def check_student(resolved: ResolvedRecipe) -> None:
    """Raise RecipeError if distill cannot use the recipe, because it has no [student] table."""
    _student(resolved)


def _student(resolved: ResolvedRecipe) -> Student:
    if resolved.recipe.student is None:
        fault = "student is missing; distill needs a [student] table, as in kd"
        if resolved.recipe.teacher is not None:
            fault += f"; for its teacher type train-teacher --recipe {resolved.name}"
        raise RecipeError(resolved.name, [fault])
    return resolved.recipe.student


def _text_at(key: str, leaves: Values) -> str:
    return value_text(leaves[key]) if key in leaves else "absent"


def _with_origin(key: str, leaves: Values, origins: dict[str, str]) -> str:
    return f"{value_text(leaves[key])} ({origins.get(key, DEFAULT)})" if key in leaves else "absent"


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
            return network_cost.summary(Student.model_validate(values))
        return network_cost.summary(Teacher.model_validate(values))
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


def leaves(tables: Values, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of every key in nested tables: `("optim.lr", 0.1)`."""
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value
