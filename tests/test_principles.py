"""Rules on the project's source text.

A rule takes (path in the repository, source) and returns its faults as `path:line: what`. Each is
applied to every source file, and to an example that violates it, which it must report.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
SOURCE_ROOTS = ("distill", "networks", "teachers", "students", "cli.py")
SILENT = ("distill/models/", "distill/teacher/", "distill/training/", "distill/evaluation/")
# Project classes that others may extend: `except UserError` catches every refusal; tables of a
# recipe share settings and keys, for which pydantic needs a base class.
SHARED_BASES = {"UserError", "Table", "Term", "ResNetKeys"}
METRIC = re.compile(r"loss/\w*|(top1|nll|ece)/\w*|/(val|val_ema|test)|images_per_s")
PAPER = re.compile(r"arxiv[:. /]*(abs/)?\d{4}\.\d{4,5}|\b10\.\d{4,9}/\S+", re.IGNORECASE)

Rule = Callable[[str, str], list[str]]


def project_sources() -> dict[str, str]:
    roots = [REPO / name for name in SOURCE_ROOTS]
    paths = [p for root in roots for p in ([root] if root.is_file() else root.rglob("*.py"))]
    return {path.relative_to(REPO).as_posix(): path.read_text() for path in sorted(paths)}


SOURCES = project_sources()
PROJECT_CLASSES = {
    node.name
    for source in SOURCES.values()
    for node in ast.walk(ast.parse(source))
    if isinstance(node, ast.ClassDef)
}


def no_class_extends_a_project_class(path: str, source: str) -> list[str]:
    """Classes are composed: bases come from torch, pydantic or the standard library."""
    tree = ast.parse(source)
    local = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    own = (local | PROJECT_CLASSES) - foreign_names(tree) - SHARED_BASES
    return [
        f"{path}:{node.lineno}: {node.name} extends the project's {name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for name in map(last_name, node.bases)
        if name in own
    ]


def foreign_names(tree: ast.AST) -> set[str]:
    """Return the names that a file imports from libraries."""
    packages = {Path(name).stem for name in SOURCE_ROOTS}
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
        if (node.module or "").split(".")[0] not in packages
        for alias in node.names
    }


def last_name(base: ast.expr) -> str:
    """Return `Generic` for `Generic[T]` and `End` for `events.End`; `nn.Module` is unchanged."""
    if isinstance(base, ast.Subscript):
        return last_name(base.value)
    if isinstance(base, ast.Attribute):
        foreign = last_name(base.value) in {"nn", "torch", "pydantic", "enum"}
        return ast.unparse(base) if foreign else base.attr
    return getattr(base, "id", "")


def low_layers_have_no_recipe(path: str, source: str) -> list[str]:
    """Networks, data and losses take plain values; only the training builds from a recipe."""
    low_layers = ("networks/", "teachers/", "students/", "distill/data/", "distill/losses/")
    return matching_lines(path, source, "(?i)recipe") if path.startswith(low_layers) else []


def only_networks_normalise(path: str, source: str) -> list[str]:
    """Images are in [0, 1]; only networks normalise them."""
    return (
        []
        if path.startswith(("networks/", "teachers/", "students/"))
        else matching_lines(path, source, "Normalize")
    )


def matching_lines(path: str, source: str, pattern: str) -> list[str]:
    return [
        f"{path}:{number}: {pattern} in: {line.strip()}"
        for number, line in enumerate(source.splitlines(), start=1)
        if re.search(pattern, line)
    ]


def training_prints_nothing(path: str, source: str) -> list[str]:
    """The training loop yields events and prints nothing."""
    if not path.startswith(SILENT):
        return []
    loud = re.compile(r"(.*\.)?p?print|rich|tqdm|sys\.(stdout|stderr)")
    return [f"{path}:{line}: {name}" for line, name in used_names(source) if loud.fullmatch(name)]


def used_names(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module.split(".")[0]
        elif isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, ast.unparse(node)


def loss_names_its_paper(path: str, source: str) -> list[str]:
    """The docstring of each loss file names its paper."""
    not_losses = (
        "/objective.py",
        "/gather.py",
        "/at_least_float32.py",
        "/resize_feature_maps.py",
        "/__init__.py",
    )
    if not path.startswith("distill/losses/") or path.endswith(not_losses):
        return []
    head = ast.get_docstring(ast.parse(source)) or ""
    return [] if PAPER.search(head) else [f"{path}:1: no arXiv number or DOI in the docstring"]


def metrics_are_named_once(path: str, source: str) -> list[str]:
    """`distill/events.py` is the only list of metric names."""
    if path == "distill/events.py":
        return []
    return [
        f"{path}:{node.lineno}: metric name {node.value!r}; make it with distill.events"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if METRIC.fullmatch(node.value)
    ]


def packages_are_empty(path: str, source: str) -> list[str]:
    """`__init__.py` files are empty: `--help` runs without importing torch.

    That of `distill` names the Python interface; `test_api.py` checks that it imports nothing.
    """
    empty = not path.endswith("/__init__.py") or not source.strip()
    empty |= path == "distill/__init__.py"
    return [] if empty else [f"{path}:1: is not empty"]


def no_file_for_everything(path: str, source: str) -> list[str]:
    """A file is named after its content."""
    return (
        [f"{path}:1: {Path(path).name}"] if Path(path).stem in {"utils", "helpers", "misc"} else []
    )


# A rule, the path and source of a file that violates it, and a pattern of the message.
VIOLATIONS: list[tuple[Rule, str, str, str]] = [
    (
        no_class_extends_a_project_class,
        "distill/a.py",
        "class A: ...\nclass B(A): ...",
        "a.py:2: B extends .*A",
    ),
    (
        no_class_extends_a_project_class,
        "a.py",
        "class A: ...\nclass B(A[int]): ...",
        "B extends the project's A",
    ),
    (
        no_class_extends_a_project_class,
        "a.py",
        "from distill import events\nclass B(events.End): ...",
        "End",
    ),
    (
        low_layers_have_no_recipe,
        "distill/losses/a.py",
        "x = 1\n# the Recipe has",
        "a.py:2: .*Recipe has",
    ),
    (low_layers_have_no_recipe, "teachers/a.py", "def build(recipes): ...", "a.py:1"),
    (only_networks_normalise, "distill/data/a.py", "v2.Normalize(mean, std)", "a.py:1: Normalize"),
    (training_prints_nothing, "distill/training/a.py", "def f():\n    print(1)", "a.py:2: print"),
    (
        training_prints_nothing,
        "distill/training/a.py",
        "accelerator.print(1)",
        "a.py:1: accelerator.print",
    ),
    (
        training_prints_nothing,
        "distill/training/a.py",
        "from rich.console import Console",
        "a.py:1: rich",
    ),
    (loss_names_its_paper, "distill/losses/a.py", '"""Hinton 2015."""', "no arXiv number or DOI"),
    (metrics_are_named_once, "distill/a.py", "m['top1/val']", "metric name 'top1/val'"),
    (metrics_are_named_once, "distill/a.py", "m[f'loss/{term}']", "metric name 'loss/'"),
    (metrics_are_named_once, "distill/a.py", "m[f'{measure}/val_ema']", "metric name '/val_ema'"),
    (packages_are_empty, "students/__init__.py", "import torch", "__init__.py:1: is not empty"),
    (no_file_for_everything, "distill/data/utils.py", "", "utils.py"),
]
RULES = list(dict.fromkeys(rule for rule, *_ in VIOLATIONS))


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_follows_rule(rule: Rule) -> None:
    assert {"distill/events.py", "distill/losses/hard.py", "teachers/__init__.py"} <= set(SOURCES)
    print(f"{len(SOURCES)} files read")
    assert [fault for path, source in SOURCES.items() for fault in rule(path, source)] == []


@pytest.mark.parametrize(("rule", "path", "source", "fault"), VIOLATIONS)
def test_violation_is_reported(rule: Rule, path: str, source: str, fault: str) -> None:
    (message,) = rule(path, source)
    assert re.search(fault, message)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (
            no_class_extends_a_project_class,
            "a.py",
            "from torch import nn\nclass Block(nn.Module): ...",
        ),
        (no_class_extends_a_project_class, "a.py", "from timm import Design\nclass B(Design): ..."),
        (no_class_extends_a_project_class, "a.py", "class RecipeError(UserError): ..."),
        (low_layers_have_no_recipe, "distill/training/build.py", "def build(recipe): ..."),
        (only_networks_normalise, "students/normalize_images.py", "class Normalize: ..."),
        (only_networks_normalise, "distill/losses/a.py", "normalize(x, dim=1)"),
        (
            training_prints_nothing,
            "distill/terminal/progress.py",
            "from rich.console import Console",
        ),
        (loss_names_its_paper, "distill/losses/a.py", '"""Tian, arXiv 1910.10699."""'),
        (loss_names_its_paper, "distill/losses/a.py", '"""Gou, doi:10.1007/s11263-021-01453-z."""'),
        (metrics_are_named_once, "distill/a.py", '"""The `top1/val` of a run."""'),
    ],
)
def test_valid_source_is_accepted(rule: Rule, path: str, source: str) -> None:
    assert rule(path, source) == []
