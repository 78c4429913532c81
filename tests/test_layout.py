"""The layout of the tree: unique file names, tests in their packages' folders, short test names."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
ROOTS = ("distill", "networks", "teachers", "students", "docs", "benchmarks", "tests")
EVERYWHERE = {"__init__", "__main__", "conftest"}


def python_files() -> list[str]:
    return [
        "cli.py",
        *(
            path.relative_to(REPO).as_posix()
            for root in ROOTS
            for path in (REPO / root).rglob("*.py")
        ),
    ]


def repeated(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the base names that more than one of the files has, and those files."""
    by_name = defaultdict(list)
    for path in paths:
        by_name[Path(path).stem].append(path)
    return {
        name: sorted(found)
        for name, found in by_name.items()
        if len(found) > 1 and name not in EVERYWHERE
    }


def in_no_package(paths: Iterable[str]) -> list[str]:
    """Return the tests whose folder is neither `tests/` nor that of a package."""
    folders = [(path, Path(path).parent.relative_to("tests")) for path in paths]
    return [
        path
        for path, folder in folders
        if not ((REPO / "distill" / folder).is_dir() or (REPO / folder).is_dir())
    ]


def test_no_two_files_have_the_same_name() -> None:
    assert repeated(python_files()) == {}


def test_tests_mirror_the_packages() -> None:
    tests = [path for path in python_files() if path.startswith("tests/")]
    assert len(tests) > 100
    assert in_no_package(tests) == []


@pytest.mark.long
def test_test_names_have_at_most_eight_words() -> None:
    trees = [ast.parse((REPO / path).read_text()) for path in python_files() if "/test_" in path]
    names = [
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 1000
    assert [name for name in names if len(name.removeprefix("test_").split("_")) > 8] == []


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["a/x.py", "b/x.py"], {"x": ["a/x.py", "b/x.py"]}),
        (["a/x.py", "b/y.py", "a/__init__.py", "b/__init__.py"], {}),
    ],
)
def test_repeated_names_are_found(paths: list[str], found: dict[str, list[str]]) -> None:
    assert repeated(paths) == found


def test_folder_without_package_is_found() -> None:
    assert in_no_package(["tests/data/test_a.py", "tests/engine/test_b.py"]) == [
        "tests/engine/test_b.py"
    ]
