"""Generate parts of the documents, the JSON schema of recipes and the README's picture of a run.

    python -m docs.generate              update the tables of recipes and of their keys in
                                      docs/recipes.md, from their [about] tables and from the
                                      schema; the list of modules in docs/architecture.md, from the
                                      first lines of their docstrings; the table of networks and the
                                      rules of courses in docs/networks.md; and
                                      recipes/recipe.schema.json
    python -m docs.generate --run RUN    also draw docs/run.svg from a finished run's journal
    python -m docs.generate --check      write nothing; exit 1 if one of them is stale

Of a document, only the text between the two marker lines is replaced.
"""

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.errors import UserError
from distill.recipe import describe_network, recipe_json_schema, recipes
from distill.recipe.recipes import About
from distill.recipe.schema import Student
from distill.runs.run_folder import open_run, write_text
from distill.terminal import display_to_svg
from docs.recipe_keys import key_tables
from networks import network_catalogue
from students import course_rules

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "run.svg"
COLUMNS = ("recipe", "claim", "measured")
NETWORK_COLUMNS = ("name", "parameters, 10 classes", "100 classes", "MACs, 100 classes", "taps")
NETWORK_ALIGNMENT = ("---", "---:", "---:", "---:", "---")
WIDE_RESNETS = tuple(
    f"wrn-{size}" for size in network_catalogue.WIDE_EXAMPLES
)  # any size is allowed
NOT_YET = "not yet run"
# Files that share one line in the list of modules, by package: a pattern of their names, and a
# summary of their content.
GROUPED = {
    "distill/cli": {
        r".*_commands?": "one file per group of commands",
    },
    "distill/export": {
        r"huggingface|onnx_\w+|predictions_csv|project1|torch_export": "one file per export format",
    },
    "distill/losses": {
        r"(?!(at_least_float32|gather|objective|resize_feature_maps)$).*": "one file per loss",
    },
    "distill/evaluation": {
        r"check_measured_again|write_results": (
            "write a run's predictions and results, and check them against a second measurement"
        ),
    },
    "distill/recipe": {
        r"schema|loss_schema|recipe_json_schema": (
            "the tables of a recipe, those of its loss terms, and their JSON schema for editors"
        ),
        r"compose|overrides|recipe_files": (
            "find and read recipe files, and merge them and every --set into one set of tables"
        ),
        r"compare_recipes|recipe_(fingerprint|variants)": (
            "compare recipes key by key; their fingerprints; a recipe's control, "
            "or the same with other teachers, data or seed"
        ),
    },
    "distill/runs": {
        r"check_result|check_runs_match": (
            "check that a result fits its run, and that runs belong together"
        ),
    },
    "distill/training": {
        r"check_machine|memory_need": (
            "check that this machine can train: libraries, device, disk, and enough memory"
        ),
    },
    "distill/models": {
        r"foreign_weights|recognise_network|safetensors_files|torch_files": (
            "read weights that others saved, as data, and find the network that they belong to"
        ),
    },
    "distill/teacher": {
        r"cache_files|view_cache": (
            "cached teacher logits: their files, and reading through the cache by view and sample"
        ),
    },
    "distill/components": {
        r"build_(accelerator|network)": (
            "build what a recipe describes: accelerate's Accelerator, the network"
        ),
    },
    "distill/sweep": {
        r"sqlite_(file|pages)": (
            "check a SQLite database, which others may have made, before SQLite opens it"
        ),
        r"sweep_(file|schema|validation)": (
            "load a sweep file, its tables and keys, and all errors of one"
        ),
    },
    "distill/data": {
        r"(array_cache|channel_statistics)": (
            "cache arrays between runs; mean and standard deviation of each colour channel"
        ),
    },
    "distill/data/sources": {
        r"cifar|class_folders|synthetic": "one file per kind of source",
    },
    "distill/data/augment": {
        r"(?!augment_schedule$).*": "one file per kind of augmentation",
    },
    "networks": {
        r"(?!(by_name|network_catalogue|crd_weight_names)$).*": "one file per architecture",
    },
    "distill/data/corruptions": {
        r"blur|digital|noise|weather": "one file per kind of corruption",
    },
    "distill/report": {
        r".*_sections?|curves_by_group": "one file per group of sections",
    },
    "distill/terminal": {
        r".*_tables?": "one file per kind of terminal table",
    },
    "distill/files": {
        r"pickle_machine|regular_file|tar_archives|untrusted_arrays": (
            "read untrusted files, with limits on size and depth: pickles, archives, arrays"
        ),
    },
}
# The packages in the order of the list of modules: that in which a recipe passes through them.
PACKAGES = (
    "distill/cli", "distill", "distill/recipe", "distill/files", "distill/data",
    "distill/data/sources", "distill/data/augment", "distill/data/corruptions", "networks",
    "students", "teachers", "distill/losses", "distill/models", "distill/components",
    "distill/teacher", "distill/training", "distill/evaluation", "distill/runs", "distill/terminal",
    "distill/report", "distill/export", "distill/sweep", "distill/time_plan",
)  # fmt: skip


def recipe_table() -> str:
    """Return a Markdown table of all recipes and ingredients, in the order of `cli.py recipes`."""
    rows = [_cells(name, path, about) for name, path, about in recipes.shipped()]
    return "\n".join(map(_line, [COLUMNS, ("---",) * len(COLUMNS), *rows]))


def _cells(name: str, path: Path, about: About) -> tuple[str, ...]:
    kind = "" if path.parent.name == "recipes" else f" ({path.parent.name.removesuffix('s')})"
    linked = f"[`{name}`](../{path.relative_to(ROOT).as_posix()}){kind}"
    measured = f"{about.accuracy}; on {about.hardware}, minutes: {about.minutes}"
    return linked, about.claim, "" if about.accuracy == NOT_YET else measured


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def module_list() -> str:
    """Return the list of all modules by package, each with the first line of its docstring."""
    lines = [_module(ROOT / "cli.py", 0)]
    for package in PACKAGES:
        lines.append(f"{package}/")
        paths = sorted((ROOT / package).glob("*.py"))
        modules = [path for path in paths if path.name != "__init__.py"]
        for names, summary in GROUPED.get(package, {}).items():
            grouped = [path for path in modules if re.fullmatch(names, path.stem)]
            modules = [path for path in modules if path not in grouped]
            lines.append(f"  {', '.join(path.stem for path in grouped)}: {summary}")
        lines += [_module(path, 1) for path in modules]
    return "\n".join(f"    {line}" for line in lines)


def _module(path: Path, depth: int) -> str:
    summary = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0]
    return f"{'  ' * depth}{path.name:<{25 - 2 * depth}} {' '.join(summary.split())}"


def network_table() -> str:
    """Return the networks that have a name in Markdown, with their sizes for 10 and 100 classes."""
    rows = []
    for name in (*network_catalogue.RESIDUAL, *WIDE_RESNETS, *network_catalogue.FIXED):
        small, large = (
            describe_network.describe(Student(network=name), classes) for classes in (10, 100)
        )
        assert small is not None and large is not None
        sizes = (f"{small.parameters:,}", f"{large.parameters:,}", f"{large.macs / 1e6:.1f} M")
        rows.append((f"`{name}`", *sizes, ", ".join(large.taps)))
    return "\n".join(map(_line, [NETWORK_COLUMNS, NETWORK_ALIGNMENT, *rows]))


def rules_list() -> str:
    """Return a Markdown list of the rules of courses and their clauses."""
    lines: list[str] = []
    for name, rules in course_rules.RULES.items():
        size = f"{rules.bound} {course_rules.BUDGET:,} parameters"
        lines += [f"- `{name}` ({rules.title}):", f"    - {size}"]
        lines += [f"    - {clause.demand}" for clause in rules.clauses]
    return "\n".join(lines)


@dataclass(frozen=True)
class Section:
    """A generated part of a document, between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

    document: Path
    name: str
    text: Callable[[], str]  # generates the part

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}:begin -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}:end -->"

    def rebuilt(self, written: str) -> str:
        """Return the document's text `written` with this section regenerated.

        Raises UserError unless the text has each marker exactly once, the begin before the end.
        """
        before, begin, rest = written.partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not (begin and end) or self.begin in rest or self.end in before + after:
            raise UserError(
                f"{self.document.name} has {written.count(self.begin)} {self.begin} and "
                f"{written.count(self.end)} {self.end}; it must have one of each, in this order.\n"
                f"Put them around the generated {self.name}."
            )
        return f"{before}{self.begin}\n{self.text()}\n{self.end}{after}"


RECIPES = Section(ROOT / "docs" / "recipes.md", "recipes", recipe_table)
MODULES = Section(ARCHITECTURE, "modules", module_list)
NETWORKS = Section(ROOT / "docs" / "networks.md", "networks", network_table)
RULES = Section(ROOT / "docs" / "networks.md", "rules", rules_list)
KEYS = Section(ROOT / "docs" / "recipes.md", "keys", key_tables)
SCHEMA = ROOT / recipe_json_schema.FILE


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--run", metavar="RUN", help="a finished run, to draw docs/run.svg from")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    given = parser.parse_args(arguments)
    try:
        for section in (RECIPES, MODULES, NETWORKS, RULES, KEYS):
            _build(section, only_check=given.check)
        _write(SCHEMA, recipe_json_schema.text(), "the schema", only_check=given.check)
        if given.run is not None and not given.check:
            display_to_svg.svg(open_run(given.run).journal, PICTURE)
    except UserError as fault:
        parser.error(str(fault))


def _build(section: Section, only_check: bool) -> None:
    document = section.document
    written = document.read_text() if document.exists() else ""
    _write(document, section.rebuilt(written), f"its {section.name}", only_check)


def _write(document: Path, wanted: str, part: str, only_check: bool) -> None:
    """Write a document if its text changed; if `only_check`, exit with 1 and name the `part`."""
    if document.exists() and document.read_text() == wanted:
        return
    if only_check:
        sys.exit(f"{document.name} is stale: {part}. Type: python -m docs.generate")
    write_text(document, wanted)


if __name__ == "__main__":
    main()
