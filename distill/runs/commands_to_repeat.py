"""Compute the commands that train a finished run again, those that train its teachers first.

And the commands that continue or finish an unfinished run.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.files import run_json_schemas
from distill.files.escape_text import shell_word
from distill.files.redact_urls import hide_secrets
from distill.recipe import recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.recipe.recipes import Recipe
from distill.recipe.validation import Values, switches, value_text
from distill.runs import check_runs_match, journal, lock
from distill.runs.run_folder import RunFolder, role_begun
from networks.network_catalogue import is_own

MOST_RUNS = 64  # commands are given for at most so many runs
COMMANDS = {"teacher": "train-teacher", "student": "distill"}
TRIALS = ("sweep", "search")  # commands whose runs are trials
SEVERAL = (*TRIALS, "seeds", "study")  # commands that train several runs; typed again, they resume
NAME = re.compile(r"[\w+-]+")
Command = list[str]  # its words


def training_commands(
    folder: RunFolder, recipe: Recipe, result: Mapping[str, Any]
) -> list[Command]:
    """Return the commands that train a run, in the order in which to type them; its own is last.

    `recipe`, `result`: the content of its recipe.toml and result.json. Each command has the
    recipe's name with every --set that this needs, or else the path of recipe.toml. A teacher has
    no command if its folder holds the run no longer, or if another program trained it.
    """
    found: dict[str, Command] = {}
    _add(found, str(folder.path), recipe, result, set())
    return list(found.values())


def without_command(commands: Sequence[Command], result: Mapping[str, Any]) -> list[str]:
    """Return the teachers of a run that none of its `training_commands` trains."""
    trained = {word for words in commands for before, word in pairwise(words) if before == "--out"}
    return [run for run in result["teacher"]["runs"] if run not in trained]


def text_of(commands: Sequence[Command]) -> str:
    """Return commands as lines to type, without the secrets of URLs."""
    hidden = ([hide_secrets(word) for word in words] for words in commands)
    return "\n".join(" ".join(map(shell_word, words)) for words in hidden)


def with_names(commands: Sequence[Command], names: Mapping[str, str]) -> list[Command]:
    """Return commands in which the paths of options have other names."""
    options = {"--data", "--out", "--recipe", "--teacher"}
    return [
        [
            names.get(word, word) if before in options else word
            for before, word in pairwise(["", *words])
        ]
        for words in commands
    ]


def advice_on_unfinished(folder: RunFolder) -> str:
    """Return lines that say what to type to continue or finish an unfinished run, for a message."""
    holder, is_alive = lock.read_holder(folder.path)
    if is_alive:
        return f"It is being trained by {holder}: wait until that ends."
    if _verb(_typed(folder)) in TRIALS:
        return continue_line(folder)
    return "\n".join([continue_line(folder), *finish_line(folder)])


def finish_line(folder: RunFolder) -> Iterator[str]:
    """Yield a line with the command that ends an unfinished run early, if it has a checkpoint."""
    if folder.last.exists() or folder.last.with_name("last.old").exists():
        command = f"python cli.py finish {shell_word(str(folder.path))}"
        yield f"Or end it with its best weights so far: {command}"


def continue_line(folder: RunFolder) -> str:
    """Return a line with the command that continues an unfinished run to its end."""
    typed = _typed(folder)
    command = [typed] if _verb(typed) in SEVERAL else _continuing(folder)
    if not command:
        return "To continue, type the command that began it again, with --out RUN --resume."
    return f"Continue it: {text_of(command)}"


def _typed(folder: RunFolder) -> Command:
    """Return the command that was typed, as environment.json has it; empty if it is unknown."""
    with suppress(UserError):
        return ["python", *run_json_schemas.environment(folder.environment)["command"]]
    return []


def _verb(typed: Command) -> str:
    """Return the command of cli.py in a typed command; empty if another program was run."""
    is_ours = len(typed) > 2 and Path(typed[1]).name == "cli.py"
    return typed[2] if is_ours else ""


def _continuing(folder: RunFolder) -> list[Command]:
    """Return the command that continues a run of `distill` or `train-teacher`, as a list of one.

    Empty if its recipe cannot be read or its role is unknown.
    """
    with suppress(UserError, OSError):
        recipe = recipes.read(folder.recipe)
        starts = [row for row in journal.read(folder.journal) if row["event"] == "start"]
        begun = starts[-1] if starts else {}
        role = begun.get("role", role_begun(folder))
        if role in COMMANDS:
            known = {
                "role": role,
                "recipe": begun.get("recipe", ""),
                "processes": begun.get("processes", 1),
                "teacher": {"runs": list(recipe.teacher.runs if recipe.teacher else ())},
            }
            return [[*_command(folder, recipe, known), "--resume"]]
    return []


def _add(
    found: dict[str, Command],
    path: str,
    recipe: Recipe,
    result: Mapping[str, Any],
    begun: set[str],
) -> None:
    """Add the commands of a run's teachers to `found`, by path, then its own.

    `begun`: the paths of the runs whose teachers are being added.
    """
    begun.add(path)
    for run, fault in check_runs_match.teachers_of(result):
        if fault or str(run.path) in begun or len(begun) > MOST_RUNS:
            continue
        with suppress(UserError, OSError):
            check_runs_match.check_recipe_of_result(run)
            _add(found, str(run.path), recipes.read(run.recipe), run.result(), begun)
    if "imported" not in result:
        found[path] = _command(RunFolder(Path(path)), recipe, result)


def _command(folder: RunFolder, recipe: Recipe, result: Mapping[str, Any]) -> Command:
    """Return the command that trains one run with its recipe and in its folder."""
    processes = result.get("processes", 1)
    launcher = ["python"]
    if processes > 1:
        launcher = ["accelerate", "launch", "--num_processes", str(processes)]
    return [
        *launcher,
        "cli.py",
        COMMANDS[result["role"]],
        *_recipe_options(folder, recipe, result),
        *(word for run in result["teacher"]["runs"] for word in ("--teacher", run)),
        "--data",
        recipe.data.source,
        "--out",
        str(folder.path),
    ]


def _recipe_options(folder: RunFolder, recipe: Recipe, result: Mapping[str, Any]) -> list[str]:
    """Return the options `--recipe` and `--set` that compose a run's recipe."""
    given = [f"data.source={value_text(recipe.data.source)}"]
    if result["teacher"]["runs"]:
        given.append(f"teacher.runs={value_text(result['teacher']['runs'])}")
    own_code = list(_own_networks(recipe))  # is run only if --set names it
    recipe = _without_code(recipe)
    spec = result.get("recipe", "").removesuffix(" (control)")  # of `seeds` and `study`
    with suppress(UserError):
        if NAME.fullmatch(spec) is None:  # result.json may come from elsewhere: opens no path
            raise UserError(f"{spec} is not the name of a recipe")
        overrides = _needed_overrides(spec, [*given, *own_code], recipe)
        return ["--recipe", spec, *_set_options([*own_code, *overrides])]
    return ["--recipe", str(folder.recipe), *_set_options(own_code)]


def _set_options(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def _own_networks(recipe: Recipe) -> Iterator[str]:
    """Yield an override for each network of the user's own code."""
    for role in ("student", "teacher"):
        table = getattr(recipe, role)
        if table is not None and is_own(table.network):
            yield f"{role}.network={value_text(table.network)}"


def _without_code(recipe: Recipe) -> Recipe:
    """Return the recipe without the fingerprints of the user's own code, which a run computes."""
    roles = [role for role in ("student", "teacher") if getattr(recipe, role) is not None]
    tables = {role: getattr(recipe, role).model_copy(update={"code": None}) for role in roles}
    return recipe.model_copy(update=tables)


def _needed_overrides(spec: str, given: Sequence[str], recipe: Recipe) -> list[str]:
    """Return the overrides that change `spec` to `recipe`, without any that makes no difference.

    `given`: overrides that are applied besides. Raises UserError if `spec` is no recipe, or if no
    overrides make it `recipe`.
    """
    wanted = recipe_fingerprint(recipe)

    def is_made(overrides: Sequence[str]) -> bool:
        made = recipes.load(spec, [*given, *overrides]).recipe
        return recipe_fingerprint(made) == wanted

    base = recipes.load(spec, given).recipe
    overrides = list(_overrides(_tables(base), _tables(recipe)))
    if not is_made(overrides):
        raise UserError(f"no --set makes the recipe {spec} that of the run")
    for override in reversed(list(overrides)):  # a table's keys before `table={}`
        fewer = [each for each in overrides if each != override]
        with suppress(UserError):
            overrides = fewer if is_made(fewer) else overrides
    return overrides


def _tables(recipe: Recipe) -> Values:
    return recipe.model_dump(exclude={"about"}, exclude_none=True)


def _overrides(base: Values, wanted: Values, prefix: str = "") -> Iterator[str]:
    """Yield the overrides, `key=value`, that change the tables `base` to `wanted`.

    Keys that only `base` has yield none, unless they are optional tables: setting another key
    removes them.
    """
    for name in dict.fromkeys([*wanted, *base]):
        key, before, after = prefix + name, base.get(name), wanted.get(name)
        if isinstance(after, dict):
            if before is None:
                yield f"{key}={{}}"
            yield from _overrides(before or {}, after, f"{key}.")
        elif after is None and key in switches():
            yield f"{key}=false"
        elif after is not None and after != before:
            yield f"{key}={value_text(after)}"
