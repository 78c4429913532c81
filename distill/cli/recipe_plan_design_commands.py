"""The commands on recipes and networks: params, plan, design and recipes."""

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.cli.options import (
    AsymmetricOption,
    BlocksOption,
    BudgetOption,
    DataOption,
    JsonOption,
    RecipeOption,
    RulesOption,
    SetOption,
    StagesOption,
    complete_recipe,
    numbers,
)
from distill.cli.stdout_and_stderr import (
    echo,
    echo_json,
    loading_libraries,
    print_facts,
    stderr,
    stdout,
)
from distill.errors import Failure, UserError
from distill.format import UNKNOWN, counted

if TYPE_CHECKING:
    from distill.recipe.recipes import Recipe, ResolvedRecipe
    from distill.runs.run_folder import Role
    from students.course_rules import Rules


def params(
    recipe: RecipeOption = "kd_cutmix", set_: SetOption = [], as_json: JsonOption = False
) -> None:
    """Count the parameters and MACs of a recipe's student and teacher."""
    from distill.components.allow_user_code import allow_user_code
    from distill.recipe.count_parameters import count_networks

    allow_user_code(set_)

    def count_built(recipe: "Recipe", role: "Role") -> Mapping[str, int]:
        from distill.components.build_network import count_by_building  # imports torch

        return count_by_building(recipe, role)

    print_facts(count_networks(recipe, set_, count_built), as_json)


def plan(
    minutes: Annotated[
        float,
        typer.Option("--minutes", min=0.1, help="Time budget, including the teacher's training."),
    ] = 120.0,
    rules: RulesOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the recipes that fit into a time budget on this machine, and how to run the best one.

    Measures the machine's speed, which takes about a minute, or longer if other programs are
    running. Writes no files.
    """
    began_at = time.monotonic()
    if "WORLD_SIZE" in os.environ:
        raise UserError("plan measures one process; type it without accelerate launch or torchrun.")
    with loading_libraries():
        from distill.time_plan.time_plan import plan as make_plan
    from distill.terminal.progress import ProgressDisplay

    with ProgressDisplay(stderr()) as display:
        plan_ = make_plan(minutes, rules, data, began_at, progress=display.progress)
    if as_json:
        echo_json(plan_)
    else:
        from rich.text import Text

        from distill.terminal.time_plan_table import plan_blocks

        for block in plan_blocks(plan_):
            stdout().print(block, highlight=False, soft_wrap=isinstance(block, Text))


def design(
    max_params: BudgetOption = 5_000_000,
    stages: StagesOption = "2-5",
    blocks: BlocksOption = "1-7",
    asymmetric: AsymmetricOption = False,
    kernel: Annotated[int, typer.Option("--kernel", help="Kernel size of the blocks; odd.")] = 3,
    skip_kernel: Annotated[
        int, typer.Option("--skip-kernel", help="Kernel size of the skips; odd.")
    ] = 1,
    pool: Annotated[
        str, typer.Option("--pool", help="Average pool: global, or its side in pixels.")
    ] = "global",
    downsample: Annotated[
        str,
        typer.Option("--downsample", help="stride, or pool: each stage begins with a max pool."),
    ] = "stride",
    rules: RulesOption = None,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="RECIPE|RUN",
            help="List the clauses of --rules that its student breaks.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Plot parameters and MACs to this file."),
    ] = None,
    set_: SetOption = [],
    as_json: JsonOption = False,
) -> None:
    """List the widest network of each depth within a budget, or check one against a course's rules.

    Each width is the largest: one more channel exceeds the budget.
    """
    from students import course_rules as courses
    from students.widest_designs import widest_designs

    course = courses.rules_by_name(rules or "nyu2022")
    if rules is not None:
        _check_budget(course, max_params)
    if check is not None:
        if plot is not None:
            raise UserError("--check and --plot exclude each other; give one of them")
        _check_rules(check, set_, rules, max_params, as_json)
        return
    if set_:
        raise UserError(
            "--set changes the recipe of --check, but none was named; type --check NAME"
        )
    rows = widest_designs(
        course.exclusive_limit(max_params),
        numbers("--stages", stages),
        numbers("--blocks", blocks, 0 if asymmetric else 1),
        asymmetric=asymmetric,
        downsample=downsample,
        kernel=kernel,
        skip_kernel=skip_kernel,
        pool=int(pool) if pool.isdecimal() else pool,  # Design.of refuses any other text
    )
    bound = f"{course.bound} {max_params:,} parameters."
    if not rows:
        raise UserError(
            f"no network of {stages} stages and {blocks} blocks has {bound}\n"
            "Give a larger --max-params, or fewer --stages and --blocks."
        )
    if rules is not None:
        echo(f"Rules {rules}: {bound}", err=True)
    _show_designs(rows, downsample, plot, as_json)


def _check_budget(course: "Rules", max_params: int) -> None:
    """Raise UserError if a course's rules allow fewer parameters than `max_params`."""
    from students.course_rules import BUDGET

    if max_params > BUDGET:
        raise UserError(
            f"--max-params {max_params} is more than the rules of {course.title} allow: "
            f"{course.bound} {BUDGET:,}."
        )


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|A+B|FILE",
            help="Print this recipe, resolved, with each value's origin.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    set_: SetOption = [],
    check: Annotated[
        str | None,
        typer.Option(
            "--check", metavar="NAME|FILE", help="Check a recipe and print all its errors."
        ),
    ] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--diff",
            metavar="A B",
            help="Print the differences and the files that set them.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the list, or the resolved recipe, as JSON.")
    ] = False,
) -> None:
    """List the recipes, print one with its resolved values, check one, or compare two."""
    from distill.recipe import compare_recipes, recipe_json_schema, recipes

    if sum(value is not None for value in (name, check, diff, schema or None)) > 1:
        raise UserError(
            "a recipe to print, --check, --diff and --schema exclude each other; give one of them"
        )
    if as_json and (check is not None or diff is not None or schema):
        raise UserError("--json prints the list or one recipe: type recipes NAME --json")
    if schema:
        typer.echo(recipe_json_schema.text(), nl=False)
    elif check is not None:
        echo(recipes.check_report(check, set_))
    elif diff is not None:
        a, b = (recipes.load(spec, set_) for spec in diff)
        echo(
            "\n".join(compare_recipes.differences_with_origins(a, b))
            or f"{a.name} and {b.name} are the same"
        )
    elif name is None:
        _print_list(as_json)
    elif (found := recipes.ingredient(name, set_)) is not None:
        _print_ingredient(name, *found, as_json)
    else:
        _print_recipe(recipes.load(name, set_), as_json)


def _print_list(as_json: bool) -> None:
    """Print the shipped recipes as a table, or as a JSON list of names, paths and [about]."""
    from distill.recipe import recipes
    from distill.terminal.recipe_and_cache_tables import recipe_table

    shipped = recipes.shipped()
    if as_json:
        keys = ("name", "path", "about")
        rows = [(name, str(path), about.model_dump()) for name, path, about in shipped]
        echo_json([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        stdout().print(recipe_table(shipped))
        echo(f"{UNKNOWN}: its accuracy has not been measured here.", err=True)


def _print_ingredient(
    name: str, tables: dict[str, Any], origins: Mapping[str, str], as_json: bool
) -> None:
    """Print an ingredient's own keys as TOML with origins, or as JSON; how to use it to stderr."""
    if as_json:
        echo_json(tables)
    else:
        from distill.terminal.recipe_and_cache_tables import tables_with_origins

        stdout().print(tables_with_origins(tables, origins), highlight=False, soft_wrap=True)
    part = Path(name).stem
    echo(f"note: {part} is an ingredient, to be composed with a recipe: kd+{part}", err=True)


def _print_recipe(resolved: "ResolvedRecipe", as_json: bool) -> None:
    """Print a resolved recipe as TOML with origins, or as JSON; its notes go to stderr."""
    from distill.terminal.recipe_and_cache_tables import recipe_origins

    if as_json:
        echo_json(resolved.recipe.model_dump(mode="json", exclude_none=True))
    else:
        stdout().print(recipe_origins(resolved), highlight=False, soft_wrap=True)
    for note in resolved.notes("teacher", "student"):
        echo(f"note: {note}", err=True)


def _show_designs(
    rows: Sequence[Mapping[str, Any]], downsample: str, plot: Path | None, as_json: bool
) -> None:
    """Print a table of designs or their JSON, and plot them to the file `plot` if it is given."""
    if plot is not None:
        from distill.report.plot_macs_over_params import draw

        draw(rows, plot)
        echo(f"{plot}: {counted(len(rows), 'design')}", err=True)
    if as_json:
        echo_json(rows)
    else:
        from distill.terminal.recipe_and_cache_tables import design_table

        stdout().print(design_table(rows))
        keys = {key: rows[-1][key] for key in ("stages", "blocks", "width")}
        if downsample == "pool":
            keys["downsample"] = downsample
        sets = [word for key, value in keys.items() for word in ("--set", f"student.{key}={value}")]
        command = shlex.join(["python", "cli.py", "distill", "--recipe", "student_alone", *sets])
        echo(
            "The table compares sizes, not accuracies. To train a design without a teacher, set "
            f"its numbers; for the last row: {command}",
            err=True,
        )


def _check_rules(
    recipe: str, overrides: Sequence[str], rules: str | None, budget: int, as_json: bool
) -> None:
    """Print whether a student follows a course's rules; exit with 1 if it does not.

    `recipe`: that of the student, or its run folder. `overrides`: `key=value`, of --set.
    Raises UserError if `rules` is None or unknown, Failure if the student breaks a rule.
    """
    from distill.recipe.count_parameters import design_of
    from students import course_rules as courses

    if rules is None:
        raise UserError(
            "--check compares a recipe's student with the rules of a course, but none was named.\n"
            f"Type it with --rules {' or --rules '.join(courses.RULES)}."
        )
    course, of_run = courses.rules_by_name(rules), Path(recipe) / "recipe.toml"
    spec = str(of_run) if os.path.isfile(of_run) else recipe
    student, activation = design_of(spec, overrides)
    faults = courses.broken_clauses(course, student, activation, budget)
    if as_json:
        keeps, parameters = not faults, student.parameters
        facts = {"recipe": recipe, "rules": rules, "keeps": keeps, "parameters": parameters}
        echo_json(facts | {"broken": faults})
        if faults:
            raise typer.Exit(1)
        return
    if faults:
        raise Failure("\n  ".join([f"{recipe} breaks the rules of {course.title}:", *faults]))
    echo(f"{recipe} follows the rules of {course.title}: {student.parameters:,} parameters")
