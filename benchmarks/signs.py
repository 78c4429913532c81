"""Check that the tests detect a flipped sign in any loss (mutation testing).

    python -m benchmarks.signs [TERM…]

In a copy of the repository, flips each + and - in `distill/losses/<term>.py`, one at a time, and
runs the tests of the losses and of the golden numbers, without those of terms whose files do not
import this one. A test of this term and its golden number must fail; tests of other terms must not
(except those that are computed with it, see USED_BY).
Updates the results of these terms in `results/signs.json`. The exit code is 1 if a flip is not
detected or makes tests of another term fail.
"""

import argparse
import ast
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 - imported once, before the processes are forked
import pytest
import scipy.stats  # noqa: F401
import timm  # noqa: F401
import torch

from benchmarks.claim import RESULTS
from distill.recipe.loss_schema import Losses
from distill.runs.run_folder import write_json

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "distill",
    "networks",
    "students",
    "teachers",
    "recipes",
    "tests",
    "cli.py",
    "pyproject.toml",
)
FORK = multiprocessing.get_context("fork")
GOLDEN = "tests/training/test_golden.py"
# For a term, the other terms that call its code.
USED_BY = {
    "kd": {"multi_temperature", "ctkd", "mlkd"},
    "logit_std": {"kd", "dkd", "multi_temperature"},
}
WORDS = ("at", "hard")  # terms that a test's name contains as words
FLIPPED = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.USub: ("-", "+")}  # sign, opposite sign


def signs(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line from 1, source with this sign flipped) for each + and - in the arithmetic of a
    source.
    """
    lines, nodes = source.splitlines(keepends=True), list(ast.walk(ast.parse(source)))
    computed = {id(s) for n in nodes if isinstance(n, ast.BinOp) for s in (n.left, n.right)}
    for node in nodes:
        position = _position(node, lines, is_computed=id(node) in computed)
        if position is not None:
            line, column, sign = position
            text = lines[line]
            flipped = text[:column] + sign + text[column + 1 :]
            yield line + 1, "".join([*lines[:line], flipped, *lines[line + 1 :]])


def _position(
    node: ast.AST, lines: Sequence[str], *, is_computed: bool
) -> tuple[int, int, str] | None:
    """Return line and column, both from 0, and the opposite of the sign that a node contains.

    Returns None if the node has no sign, or is a constant such as -1 in `dim=-1`. `is_computed`:
    whether the node is an operand of another operation.
    """
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        if isinstance(node.operand, ast.Constant) and not is_computed:
            return None  # an index or a dimension, not part of the formula
        return node.lineno - 1, node.col_offset, "+"
    if isinstance(node, ast.BinOp) and type(node.op) in FLIPPED:
        sign, opposite = FLIPPED[type(node.op)]
        line, column = (node.left.end_lineno or 1) - 1, node.left.end_col_offset or 0
        while column >= len(lines[line]) or lines[line][column] != sign:
            column += 1
            if column >= len(lines[line]):
                line, column = line + 1, 0
        return line, column, opposite
    return None


class Recorder:
    """A plugin of pytest that records the ids of the tests that are collected, and that fail."""

    def __init__(self) -> None:
        self.collected: list[str] = []
        self.failed: set[str] = set()

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        self.collected = [item.nodeid for item in items]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._record(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._record(report)

    def _record(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)


def run_pytest(tree: Path, *arguments: str) -> Recorder:
    """Run pytest in a copy of the repository, in a process that has imported the libraries."""
    receiving, sending = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send_tests, args=(tree, arguments, sending))
    process.start()
    recorder: Recorder = receiving.recv()
    process.join()
    return recorder


def _send_tests(tree: Path, arguments: Sequence[str], sending: Connection) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in COPIED]:
        del sys.modules[name]  # imported again, from the copy
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    recorder = Recorder()
    line = [*arguments, "-q", "-p", "no:cacheprovider", "-W", "ignore", "--tb=no"]
    code = pytest.main(line, plugins=[recorder])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        recorder.failed.add(f"{GOLDEN}::the suite cannot run: {code!r}")
    sending.send(recorder)


def importers(term: str) -> set[str]:
    """Return the loss terms whose files import that of `term`, directly or not, and `term`."""
    found = {term}
    while True:
        modules = [f"distill.losses.{name} import" for name in found]
        more = {
            name
            for name in Losses.model_fields
            if any(each in (ROOT / f"distill/losses/{name}.py").read_text() for each in modules)
        }
        if more <= found:
            return found
        found |= more


def tests_of(term: str, tests: Sequence[str]) -> list[str]:
    """Return the ids of the tests that a change of a term's file can affect."""
    others = Losses.model_fields.keys() - importers(term)
    return [test for test in tests if whose(test) not in others]


def failed(tree: Path, tests: Sequence[str]) -> set[str]:
    """Run tests in a copy of the repository; return the ids that fail."""
    return run_pytest(tree, *tests).failed


def whose(test: str) -> str:
    """Return the loss term that a test id belongs to, by its file, its parameter or its name.

    Returns the name of the file, without test_, if no term is found, and the id itself if it has no
    file.
    """
    own = re.search(r"test_([a-z_]+)\.py", test)
    file = own[1] if own else test
    if file in Losses.model_fields:
        return file
    function, _, parameter = test.partition("[")
    for term in sorted(Losses.model_fields, key=len, reverse=True):
        if re.match(f"{term}(?![a-z])", parameter):
            return term
    named = [term for term in Losses.model_fields if term not in WORDS and f"_{term}_" in function]
    return named[0] if named else file


def verdict(term: str, tests: set[str]) -> dict[str, Any]:
    """Classify the ids of the tests that fail after a flip in the file of `term`.

    Returns `own`, the number of tests of the term that fail; `golden`, whether its golden number
    does; and `others`, the other terms whose tests fail.
    """
    term_of = {test: whose(test) for test in tests}
    golden = [t for t in tests if t.startswith(GOLDEN) and term_of[t] == term]
    own = [t for t in tests if not t.startswith(GOLDEN) and term_of[t] == term]
    others = {name for name in term_of.values() if name != term} - USED_BY.get(term, set())
    return {"own": len(own), "golden": bool(golden), "others": sorted(others)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.signs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("terms", nargs="*", default=list(Losses.model_fields))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            tree.mkdir(exist_ok=True)
            copy(ROOT / name, tree / name)
        tests = run_pytest(tree, "tests/losses", GOLDEN, "--collect-only").collected
        of = {term: tests_of(term, tests) for term in given.terms}
        affected = set().union(*of.values())
        if failing := failed(tree, [test for test in tests if test in affected]):
            sys.exit(f"tests fail before any sign is flipped: {', '.join(sorted(failing))}")
        for term in given.terms:
            file = tree / f"distill/losses/{term}.py"
            source = file.read_text()
            found[term] = []
            for line, flipped in signs(source):
                file.write_text(flipped)
                found[term].append({"line": line} | verdict(term, failed(tree, of[term])))
                print(term, found[term][-1], flush=True)
            file.write_text(source)
    file = RESULTS / "signs.json"
    previous = json.loads(file.read_text()) if file.exists() else {}
    write_json(file, previous | found)
    missed = [
        f"{term}.py:{flip['line']}"
        for term, flips in found.items()
        for flip in flips
        if not flip["own"] or not flip["golden"] or flip["others"]
    ]
    print(f"{sum(map(len, found.values()))} signs; not detected: {', '.join(missed) or 'none'}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
