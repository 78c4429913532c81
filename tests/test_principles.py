"""The house's habits that a machine can read, each a rule over source text.

A rule takes (path in the repository, source) and returns its faults as `path:line: what`. Each is
run over every file of ours, and once over a planted violation, so that none can go blind.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
OURS = ("distill", "teachers", "students", "cli.py")
ENGINE = ("distill/models/", "distill/teacher/", "distill/training/", "distill/evaluation/")
# The classes of ours that others may extend: `except UserError` catches each refusal; two tables of
# a recipe have the same keys, which pydantic shares by a base alone.
SHARED_BASES = {"UserError", "ResNetKeys"}
METRIC = re.compile(r"loss/\w*|(top1|nll|ece)/\w*|/(val|val_ema|test)|images_per_s")
PAPER = re.compile(r"arxiv[:. /]*(abs/)?\d{4}\.\d{4,5}|\b10\.\d{4,9}/\S+", re.IGNORECASE)

Rule = Callable[[str, str], list[str]]


def our_sources() -> dict[str, str]:
    roots = [REPO / name for name in OURS]
    paths = [p for root in roots for p in ([root] if root.is_file() else root.rglob("*.py"))]
    return {path.relative_to(REPO).as_posix(): path.read_text() for path in sorted(paths)}


SOURCES = our_sources()
OUR_CLASSES = {
    node.name
    for source in SOURCES.values()
    for node in ast.walk(ast.parse(source))
    if isinstance(node, ast.ClassDef)
}


def no_class_extends_ours(path: str, source: str) -> list[str]:
    """Compose, don't inherit: bases come from torch, pydantic or the standard library."""
    tree = ast.parse(source)
    here = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    ours = (here | OUR_CLASSES) - foreign_names(tree) - SHARED_BASES
    return [
        f"{path}:{node.lineno}: {node.name} extends our own {name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for name in map(last_name, node.bases)
        if name in ours
    ]


def foreign_names(tree: ast.AST) -> set[str]:
    """Names that this file imports from elsewhere, whatever a class of ours is called."""
    rooms = {Path(name).stem for name in OURS}
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
        if (node.module or "").split(".")[0] not in rooms
        for alias in node.names
    }


def last_name(base: ast.expr) -> str:
    """`Module` of `nn.Module`, `Generic` of `Generic[T]`; a foreign attribute keeps its prefix."""
    if isinstance(base, ast.Subscript):
        return last_name(base.value)
    if isinstance(base, ast.Attribute):
        foreign = last_name(base.value) in {"nn", "torch", "pydantic", "enum"}
        return ast.unparse(base) if foreign else base.attr
    return getattr(base, "id", "")


def parts_know_no_recipe(path: str, source: str) -> list[str]:
    """One room turns names into objects; the parts take plain values."""
    parts = ("teachers/", "students/", "distill/data/", "distill/losses/")
    return word_faults(path, source, "(?i)recipe") if path.startswith(parts) else []


def networks_normalise(path: str, source: str) -> list[str]:
    """Images travel in [0, 1]; the net owns its mean and std."""
    return (
        []
        if path.startswith(("teachers/", "students/"))
        else word_faults(path, source, "Normalize")
    )


def word_faults(path: str, source: str, pattern: str) -> list[str]:
    return [
        f"{path}:{number}: {pattern} in: {line.strip()}"
        for number, line in enumerate(source.splitlines(), start=1)
        if re.search(pattern, line)
    ]


def engine_is_silent(path: str, source: str) -> list[str]:
    """The loop yields events; others watch."""
    if not path.startswith(ENGINE):
        return []
    loud = re.compile(r"(.*\.)?p?print|rich|tqdm|sys\.(stdout|stderr)")
    return [f"{path}:{line}: {name}" for line, name in spoken_names(source) if loud.fullmatch(name)]


def spoken_names(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module.split(".")[0]
        elif isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, ast.unparse(node)


def loss_names_its_paper(path: str, source: str) -> list[str]:
    """One file a loss, opened by its paper."""
    no_loss = ("/objective.py", "/gather.py", "/exact.py", "/sizes.py", "/__init__.py")
    if not path.startswith("distill/losses/") or path.endswith(no_loss):
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
    """Importing a room costs nothing: `--help` answers without torch."""
    empty = not path.endswith("/__init__.py") or not source.strip()
    return [] if empty else [f"{path}:1: is not empty"]


def no_drawer_for_everything(path: str, source: str) -> list[str]:
    """A file is named for what it holds."""
    return (
        [f"{path}:1: {Path(path).name}"] if Path(path).stem in {"utils", "helpers", "misc"} else []
    )


# A rule, a file that breaks it, and what must stand in the message.
PLANTED: list[tuple[Rule, str, str, str]] = [
    (
        no_class_extends_ours,
        "distill/a.py",
        "class A: ...\nclass B(A): ...",
        "a.py:2: B extends .*A",
    ),
    (no_class_extends_ours, "a.py", "class A: ...\nclass B(A[int]): ...", "B extends our own A"),
    (no_class_extends_ours, "a.py", "from distill import events\nclass B(events.End): ...", "End"),
    (
        parts_know_no_recipe,
        "distill/losses/a.py",
        "x = 1\n# the Recipe says",
        "a.py:2: .*Recipe says",
    ),
    (parts_know_no_recipe, "teachers/a.py", "def build(recipes): ...", "a.py:1"),
    (networks_normalise, "distill/data/a.py", "v2.Normalize(mean, std)", "a.py:1: Normalize"),
    (engine_is_silent, "distill/training/a.py", "def f():\n    print(1)", "a.py:2: print"),
    (
        engine_is_silent,
        "distill/training/a.py",
        "accelerator.print(1)",
        "a.py:1: accelerator.print",
    ),
    (engine_is_silent, "distill/training/a.py", "from rich.console import Console", "a.py:1: rich"),
    (loss_names_its_paper, "distill/losses/a.py", '"""Hinton 2015."""', "no arXiv number or DOI"),
    (metrics_are_named_once, "distill/a.py", "m['top1/val']", "metric name 'top1/val'"),
    (metrics_are_named_once, "distill/a.py", "m[f'loss/{term}']", "metric name 'loss/'"),
    (metrics_are_named_once, "distill/a.py", "m[f'{measure}/val_ema']", "metric name '/val_ema'"),
    (packages_are_empty, "students/__init__.py", "import torch", "__init__.py:1: is not empty"),
    (no_drawer_for_everything, "distill/data/utils.py", "", "utils.py"),
]
RULES = list(dict.fromkeys(rule for rule, *_ in PLANTED))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Rule) -> None:
    assert {"distill/events.py", "distill/losses/hard.py", "teachers/__init__.py"} <= set(SOURCES)
    print(f"{len(SOURCES)} files read")
    assert [fault for path, source in SOURCES.items() for fault in rule(path, source)] == []


@pytest.mark.parametrize(("rule", "path", "source", "fault"), PLANTED)
def test_a_violation_is_seen(rule: Rule, path: str, source: str, fault: str) -> None:
    (found,) = rule(path, source)
    assert re.search(fault, found)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (no_class_extends_ours, "a.py", "from torch import nn\nclass Block(nn.Module): ..."),
        (no_class_extends_ours, "a.py", "from timm import Design\nclass B(Design): ..."),
        (no_class_extends_ours, "a.py", "class RecipeError(UserError): ..."),
        (parts_know_no_recipe, "distill/training/build.py", "def build(recipe): ..."),
        (networks_normalise, "students/normalize.py", "class Normalize: ..."),
        (networks_normalise, "distill/losses/a.py", "normalize(x, dim=1)"),
        (engine_is_silent, "distill/terminal/progress.py", "from rich.console import Console"),
        (loss_names_its_paper, "distill/losses/a.py", '"""Tian, arXiv 1910.10699."""'),
        (loss_names_its_paper, "distill/losses/a.py", '"""Gou, doi:10.1007/s11263-021-01453-z."""'),
        (metrics_are_named_once, "distill/a.py", '"""The `top1/val` of a run."""'),
    ],
)
def test_what_is_right_is_taken(rule: Rule, path: str, source: str) -> None:
    assert rule(path, source) == []
