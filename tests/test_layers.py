"""Imports point downward only: the table of the layers, read against every import of ours.

Torch-free, because it parses and never imports. Lazy imports, imports under `TYPE_CHECKING` and
`import_module("…")` count like any other.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
OURS = ("distill", "teachers", "students", "cli")

RECIPE = tuple(
    f"distill.{name}" for name in ("recipe", "schema", "terms", "compose", "faults", "rules")
)
PLAIN_WORDS = (
    "distill.addresses",
    "distill.errors",
    "distill.events",
    "distill.json_files",
    "distill.lock",
    "distill.phrases",
    "distill.run_folder",
    "distill.safe_text",
    "students.design",
    "teachers.wrn_design",
)
WORDS = (*PLAIN_WORDS, *RECIPE)
DOOR = ("cli", "distill.door")
FILES = ("distill.arrays", "distill.archives")
FIGURES = ("distill.statistics", "distill.predictions")
PARTS = ("teachers", "students", "distill.data", "distill.losses")
TENSORS = ("torch", "torchvision", "timm", "einops", "numpy", "PIL")
LOOKS = ("rich", "matplotlib", "jinja2", "numpy")


@dataclass(frozen=True)
class Room:
    """Modules (by prefix) and what they may import, beside themselves and the standard library."""

    modules: tuple[str, ...]
    ours: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


TABLE = (
    # 0 words
    Room(("distill.__init__",)),
    Room(WORDS, others=("pydantic", "pydantic_core", "tomli_w", "filelock")),
    Room(FILES, PLAIN_WORDS, ("numpy",)),
    Room(FIGURES, (*PLAIN_WORDS, *FILES), ("numpy", "scipy")),
    # 1 parts: plain values only, so no recipe
    Room(("teachers",), (*PLAIN_WORDS, "students.normalize"), TENSORS),
    Room(("students",), PLAIN_WORDS, TENSORS),
    Room(("distill.data",), (*PLAIN_WORDS, *FILES), (*TENSORS, "filelock")),
    Room(("distill.losses",), PLAIN_WORDS, TENSORS),
    # 2 engine
    Room(
        ("distill.engine",),
        (*WORDS, *PARTS, *FIGURES),
        ("torch", "timm", "einops", "numpy", "safetensors", "torchmetrics", "accelerate"),
    ),
    # 3 looks · leaves the house · asks over many runs
    Room(("distill.show",), (*WORDS, *FIGURES), (*LOOKS, "pydantic")),
    Room(("distill.show.trackers",), (*WORDS, "distill.show"), (*LOOKS, "accelerate.tracking")),
    Room(
        ("distill.ship",),
        (*WORDS, *PARTS, *FIGURES, "distill.engine"),
        ("torch", "timm", "numpy", "PIL", "onnx", "onnxscript", "onnxruntime", "safetensors"),
    ),
    Room(
        ("distill.study",),
        (*WORDS, *PARTS, *FIGURES, "distill.engine"),
        ("optuna", "sqlalchemy", "pydantic", "pydantic_core", "filelock"),
    ),
    # 4 door
    Room(DOOR, ("distill", "teachers", "students"), ("typer", "rich")),
)


def test_imports_point_downward() -> None:
    paths = [path for name in OURS for path in sources(name)]
    names = {str(path.relative_to(REPO)) for path in paths}
    assert {"distill/events.py", "students/__init__.py", "teachers/__init__.py"} <= names
    print(f"{len(paths)} files read")
    assert [fault for path in paths for fault in faults(path.relative_to(REPO))] == []


def sources(root: str) -> list[Path]:
    file = REPO / f"{root}.py"
    return [file] if file.exists() else sorted((REPO / root).rglob("*.py"))


def faults(path: Path, source: str | None = None) -> list[str]:
    """Each import of the file (or of `source` in its place) that the table does not allow."""
    module = ".".join(path.with_suffix("").parts)
    room = room_of(module)
    if room is None:
        return [f"{path}:1: {module} is in no room of the table"]
    tree = ast.parse((REPO / path).read_text() if source is None else source)
    found = [
        f"{path}:{line}: {module} may not import {target}"
        for line, target in imports(tree, module)
        if not allowed(room, target)
    ]
    return found + (torch_at_the_door(path, tree, module) if under(module, DOOR) else [])


def torch_at_the_door(path: Path, tree: ast.Module, module: str) -> list[str]:
    """`--help` answers without torch: at its top level the door knows the words only."""
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)])
    return [
        f"{path}:{line}: {module} may import {target} inside a command only"
        for line, target in imports(top, module)
        if under(target, OURS) and not under(target, (*WORDS, *DOOR))
    ]


def room_of(module: str) -> Room | None:
    """The room with the longest prefix: `students.design` is a word though `students` is a part."""
    hits = [(prefix, room) for room in TABLE for prefix in room.modules if under(module, (prefix,))]
    return max(hits, key=lambda hit: len(hit[0]), default=(None, None))[1]


def allowed(room: Room, target: str) -> bool:
    if under(target, OURS):
        return room_of(target) is room or under(target, room.ours)
    return target.split(".")[0] in sys.stdlib_module_names or under(target, room.others)


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
        ("distill/data/a.py", "def f():\n    from distill.engine import train", "a.py:2: .*engine"),
        ("distill/losses/a.py", "from distill import recipe", "a.py:1: .*distill.recipe"),
        ("distill/losses/a.py", "from ..engine.train import step", "a.py:1: .*engine.train.step"),
        ("distill/losses/a.py", "import accelerate", "may not import accelerate"),
        ("distill/engine/a.py", "from rich import print", "may not import rich.print"),
        ("distill/engine/a.py", "from distill.show.display import Display", "distill.show.display"),
        ("distill/show/a.py", "import torch", "distill.show.a may not import torch"),
        ("distill/show/a.py", "from accelerate import tracking", "import accelerate.tracking"),
        ("distill/show/trackers.py", "from accelerate import Accelerator", "accelerate.Accel"),
        ("distill/ship/a.py", "from distill.study import seeds", "distill.study.seeds"),
        ("distill/events.py", "import torch", "distill.events may not import torch"),
        ("distill/events.py", "import cli", "distill.events may not import cli"),
        ("distill/__init__.py", "from distill import events", "__init__ may not import"),
        ("students/design.py", "from students.resnet import ResNet", "students.resnet"),
        ("students/a.py", "from teachers.wrn import Wrn", "teachers.wrn"),
        ("teachers/a.py", "from students.resnet import ResNet", "students.resnet"),
        ("teachers/a.py", "import importlib\nimportlib.import_module('distill.engine')", "a.py:2"),
        ("teachers/a.py", "__import__('torch' + 'vision')", "a name that is computed"),
        ("cli.py", "from distill.engine.train import train", "inside a command only"),
        ("cli.py", "def f():\n    import torch", "cli.py:2: cli may not import torch"),
        ("distill/door/a.py", "from distill.engine import run", "a.py:1: .*inside a command only"),
        ("distill/engine/a.py", "from distill.door import voice", "distill.door.voice"),
        ("distill/utils.py", "", "distill.utils is in no room"),
    ],
)
def test_a_wrong_import_is_named_with_file_and_line(path: str, source: str, fault: str) -> None:
    (found,) = faults(Path(path), source)
    assert re.search(fault, found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("distill/losses/a.py", "import math\nimport torch.nn.functional as F\nfrom . import kd"),
        ("distill/engine/a.py", "from distill import events\nfrom distill.recipe import load"),
        ("distill/show/trackers.py", "from accelerate.tracking import GeneralTracker"),
        ("teachers/a.py", "from students.normalize import Normalize\nfrom students import design"),
        ("students/resnet.py", "from students.design import Design\nfrom .normalize import N"),
        ("cli.py", "import typer\ndef f():\n    from distill.engine.train import train"),
        ("cli.py", "from distill.errors import UserError"),
    ],
)
def test_a_right_import_is_taken(path: str, source: str) -> None:
    assert faults(Path(path), source) == []
