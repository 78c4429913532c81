"""Imports point downward only: the table of the layers, read against every import of ours.

Torch-free, because it parses and never imports. Lazy imports, imports under `TYPE_CHECKING` and
`import_module("…")` count like any other.
"""

import ast
import graphlib
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
OURS = ("distill", "networks", "teachers", "students", "cli")
PACKAGES = ("files", "runs")  # their modules belong to several layers

LEAVES = ("distill.events", "distill.files.escape_text", "distill.files.regular_file")
VALUES = (  # plain values: no recipe, no tensors
    "distill.errors",
    "distill.format",
    "distill.check_installation",
    "distill.files.run_json_schemas",
    "distill.files.redact_urls",
    "distill.files.pickle_machine",
    "students.design",
    "students.feature_map_sizes",
    "teachers.wrn_cost",
    "networks.network_catalogue",
)
RECIPE = ("distill.recipe",)
RUN_FILES = (
    "distill.runs.lock",
    "distill.runs.run_folder",
    "distill.runs.check_runs_match",
    "distill.runs.check_result",
    "distill.runs.commands_to_repeat",
    "distill.runs.journal",
)
TERMS = (*LEAVES, *VALUES, *RUN_FILES)
WORDS = (*TERMS, *RECIPE)
CLI = ("cli", "distill.cli")
FILES = ("distill.files.untrusted_arrays", "distill.files.tar_archives")
STATISTICS = ("distill.statistics", "distill.metrics", "distill.runs.read_predictions")
PARTS = ("networks", "teachers", "students", "distill.data", "distill.losses")
ENGINE = (  # each may import those before it
    "distill.models",
    "distill.components",
    "distill.teacher",
    "distill.evaluation",
    "distill.training",
)
RUNS = ("distill.runs", "distill.terminal", "distill.report")  # so may these
MATPLOTLIB = "distill.report.matplotlib_defaults"
TENSORS = ("torch", "torchvision", "timm", "einops", "numpy", "PIL")
DISPLAY = ("rich", "jinja2", "numpy")


@dataclass(frozen=True)
class Layer:
    """Modules (by prefix) and what they may import, beside themselves and the standard library."""

    modules: tuple[str, ...]
    ours: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


TABLE = (
    # 0 recipes, run folders, files
    Layer(tuple(f"distill.{name}.__init__" for name in PACKAGES)),
    Layer(("distill.__init__",), ("distill.api",)),  # inside a function
    *(Layer((module,)) for module in LEAVES),
    Layer(VALUES, LEAVES, ("pydantic", "pydantic_core")),
    Layer(RECIPE, (*LEAVES, *VALUES), ("pydantic", "pydantic_core", "tomli_w")),
    Layer(RUN_FILES, (*LEAVES, *VALUES, *RECIPE), ("pydantic", "filelock")),
    Layer(FILES, TERMS, ("numpy",)),
    Layer(STATISTICS, (*TERMS, *FILES), ("numpy", "scipy")),
    # 1 parts: plain values only, so no recipe
    Layer(("teachers",), (*TERMS, "students.normalize_images"), TENSORS),
    Layer(("students",), TERMS, TENSORS),
    Layer(("networks",), (*TERMS, "students", "teachers"), TENSORS),
    Layer(("distill.data",), (*TERMS, *FILES), (*TENSORS, "filelock")),
    Layer(("distill.losses",), TERMS, TENSORS),
    # 2 training and evaluation
    *(
        Layer(
            (package,),
            (*WORDS, *PARTS, *STATISTICS, *ENGINE[:k]),
            ("torch", "timm", "einops", "numpy", "safetensors", "accelerate"),
        )
        for k, package in enumerate(ENGINE)
    ),
    # 3 what people see · exports · sweeps
    *(
        Layer((package,), (*WORDS, *STATISTICS, MATPLOTLIB, *RUNS[:k]), (*DISPLAY, "pydantic"))
        for k, package in enumerate(RUNS)
    ),
    Layer((MATPLOTLIB,), others=("matplotlib",)),
    Layer(("distill.runs.trackers",), (*WORDS, *RUNS), (*DISPLAY, "accelerate.tracking")),
    Layer(
        ("distill.export",),
        (*WORDS, *PARTS, *STATISTICS, *ENGINE),
        ("torch", "timm", "numpy", "PIL", "onnx", "onnxscript", "onnxruntime", "safetensors"),
    ),
    Layer(
        ("distill.sweep",),
        (*WORDS, *PARTS, *STATISTICS, *ENGINE),
        ("optuna", "sqlalchemy", "pydantic", "pydantic_core", "filelock"),
    ),
    Layer(("distill.time_plan",), (*WORDS, *PARTS, *STATISTICS, *ENGINE), ()),
    # 4 the Python interface · the command line
    Layer(
        ("distill.api",),
        (*WORDS, *PARTS, *STATISTICS, *ENGINE, *RUNS),
        ("torch", "numpy", "accelerate"),
    ),
    Layer(CLI, ("distill", "networks", "teachers", "students"), ("typer", "rich")),
)


@pytest.mark.long
def test_imports_point_downward() -> None:
    paths = [path for name in OURS for path in sources(name)]
    names = {str(path.relative_to(REPO)) for path in paths}
    assert {"distill/events.py", "students/__init__.py", "teachers/__init__.py"} <= names
    print(f"{len(paths)} files read")
    assert [fault for path in paths for fault in faults(path.relative_to(REPO))] == []


@pytest.mark.long
def test_no_modules_import_each_other() -> None:
    paths = {module_of(path): path for name in OURS for path in sources(name)}
    graph = {module: imported(path.read_text(), module, paths) for module, path in paths.items()}
    assert graph["distill.runs.run_folder"] >= {"distill.runs.lock", "distill.errors"}
    del graph["distill"]  # the Python interface is imported at its first use
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_circle_through_a_lazy_import_is_found() -> None:
    sources = {"a.b": "import a.c", "a.c": "def f():\n    from a.b import name"}
    graph = {module: imported(source, module, sources) for module, source in sources.items()}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


def imported(source: str, module: str, modules: Collection[str]) -> set[str]:
    """Those of `modules` that the source of one imports; `from a import b` is module a or a.b."""
    targets = {target for _, target in imports(ast.parse(source), module)}
    return {name for t in targets for name in (t, t.rpartition(".")[0]) if name in modules}


def sources(root: str) -> list[Path]:
    file = REPO / f"{root}.py"
    return [file] if file.exists() else sorted((REPO / root).rglob("*.py"))


def faults(path: Path, source: str | None = None) -> list[str]:
    """Each import of the file (or of `source` in its place) that the table does not allow."""
    module = ".".join(path.with_suffix("").parts)
    layer = layer_of(module)
    if layer is None:
        return [f"{path}:1: {module} is in no layer of the table"]
    tree = ast.parse((REPO / path).read_text() if source is None else source)
    found = [
        f"{path}:{line}: {module} may not import {target}"
        for line, target in imports(tree, module)
        if not allowed(layer, target)
    ]
    return found + (torch_at_the_top(path, tree, module) if under(module, CLI) else [])


def torch_at_the_top(path: Path, tree: ast.Module, module: str) -> list[str]:
    """`--help` works without torch: at its top level the command line imports layer 0 only."""
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)])
    return [
        f"{path}:{line}: {module} may import {target} inside a command only"
        for line, target in imports(top, module)
        if under(target, OURS) and not under(target, (*WORDS, *CLI))
    ]


def layer_of(module: str) -> Layer | None:
    """The layer with the longest prefix: `students.design` is layer 0, `students` layer 1."""
    hits = [
        (prefix, layer) for layer in TABLE for prefix in layer.modules if under(module, (prefix,))
    ]
    return max(hits, key=lambda hit: len(hit[0]), default=(None, None))[1]


def allowed(layer: Layer, target: str) -> bool:
    if under(target, OURS):
        return layer_of(target) is layer or under(target, layer.ours)
    return target.split(".")[0] in sys.stdlib_module_names or under(target, layer.others)


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import, `from a import b` as `a.b`, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
            name = node.args[0] if node.args else None
            literal = name.value if isinstance(name, ast.Constant) else "a name that is computed"
            yield node.lineno, str(literal)


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("distill/data/a.py", "import torch\nimport distill.losses.kd", "a.py:2: .*losses.kd"),
        (
            "distill/data/a.py",
            "def f():\n    from distill.training import loop as train",
            "a.py:2: .*training",
        ),
        (
            "distill/losses/a.py",
            "from distill.recipe import recipes as recipe",
            "a.py:1: .*distill.recipe",
        ),
        ("distill/losses/a.py", "from ..training.loop import step", "a.py:1: .*training.loop.step"),
        ("distill/losses/a.py", "import accelerate", "may not import accelerate"),
        ("distill/training/a.py", "from rich import print", "may not import rich.print"),
        (
            "distill/training/a.py",
            "from distill.terminal.progress import ProgressDisplay",
            "distill.terminal.progress",
        ),
        ("distill/report/a.py", "import torch", "distill.report.a may not import torch"),
        ("distill/report/a.py", "from accelerate import tracking", "import accelerate.tracking"),
        ("distill/runs/trackers.py", "from accelerate import Accelerator", "accelerate.Accel"),
        (
            "distill/export/a.py",
            "from distill.sweep import train_over_seeds as paired_seeds",
            "distill.sweep.train_over_seeds",
        ),
        ("distill/events.py", "import torch", "distill.events may not import torch"),
        ("distill/events.py", "import cli", "distill.events may not import cli"),
        ("distill/__init__.py", "from distill import events", "__init__ may not import"),
        ("students/design.py", "from students.resnet import ResNet", "students.resnet"),
        ("students/a.py", "from teachers.wrn import Wrn", "teachers.wrn"),
        ("teachers/a.py", "from students.resnet import ResNet", "students.resnet"),
        (
            "teachers/a.py",
            "import importlib\nimportlib.import_module('distill.training')",
            "a.py:2",
        ),
        ("teachers/a.py", "__import__('torch' + 'vision')", "a name that is computed"),
        ("cli.py", "from distill.training.loop import train", "inside a command only"),
        ("cli.py", "def f():\n    import torch", "cli.py:2: cli may not import torch"),
        (
            "distill/cli/a.py",
            "from distill.training import run",
            "a.py:1: .*inside a command only",
        ),
        (
            "distill/training/a.py",
            "from distill.cli import stdout_and_stderr",
            "distill.cli.stdout_and_stderr",
        ),
        ("distill/utils.py", "", "distill.utils is in no layer"),
        ("distill/models/a.py", "from distill.training import run", "distill.training.run"),
        ("distill/components/a.py", "from distill.teacher import teacher", "distill.teacher"),
        ("distill/runs/a.py", "from distill.report import page", "distill.report.page"),
        ("distill/errors.py", "from distill.recipe import schema", "distill.recipe.schema"),
        ("distill/recipe/a.py", "from distill.runs import journal", "distill.runs.journal"),
        ("students/design.py", "from distill.recipe import schema", "distill.recipe.schema"),
    ],
)
def test_wrong_import_is_named_with_file_and_line(path: str, source: str, fault: str) -> None:
    (found,) = faults(Path(path), source)
    assert re.search(fault, found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("distill/losses/a.py", "import math\nimport torch.nn.functional as F\nfrom . import kd"),
        (
            "distill/training/a.py",
            "from distill import events\nfrom distill.recipe.recipes import load",
        ),
        ("distill/runs/trackers.py", "from accelerate.tracking import GeneralTracker"),
        (
            "teachers/a.py",
            "from students.normalize_images import Normalize\nfrom students import design",
        ),
        ("students/resnet.py", "from students.design import Design\nfrom .normalize import N"),
        ("cli.py", "import typer\ndef f():\n    from distill.training.loop import train"),
        ("cli.py", "from distill.errors import UserError"),
    ],
)
def test_a_right_import_is_taken(path: str, source: str) -> None:
    assert faults(Path(path), source) == []
