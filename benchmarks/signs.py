"""Does a flipped sign show? Every sign of every loss file, one at a time.

    python -m benchmarks.signs [TERM…]

In a copy of the tree, each + and - of the code of `distill/losses/<term>.py` is turned into the
other and the tests of the losses and the golden numbers are run. Wanted: tests of this very term
fail, its golden number fails, and no other term's do (multi_temperature is made of kd, and may).
Renews these terms in `results/signs.json`; exit 1 where a flip passes unseen or breaks another
term.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claim import RESULTS
from distill.recipe.loss_schema import Losses
from distill.runs.run_folder import write_json

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("distill", "students", "teachers", "recipes", "tests", "cli.py", "pyproject.toml")
GOLDEN = "tests/training/test_golden.py"
MADE_OF = {"kd": {"multi_temperature"}}
FLIPPED = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.USub: ("-", "+")}


def signs(source: str) -> Iterator[tuple[int, str]]:
    """(line, source with that one sign flipped) for each sign that computes something."""
    lines, nodes = source.splitlines(keepends=True), list(ast.walk(ast.parse(source)))
    computed = {id(s) for n in nodes if isinstance(n, ast.BinOp) for s in (n.left, n.right)}
    for node in nodes:
        place = _place(node, lines, is_computed=id(node) in computed)
        if place is not None:
            line, column, sign = place
            text = lines[line]
            flipped = text[:column] + sign + text[column + 1 :]
            yield line + 1, "".join([*lines[:line], flipped, *lines[line + 1 :]])


def _place(
    node: ast.AST, lines: Sequence[str], *, is_computed: bool
) -> tuple[int, int, str] | None:
    """Where a node's sign stands, and its opposite; None for a node without, and for `dim=-1`."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        if isinstance(node.operand, ast.Constant) and not is_computed:
            return None  # an index or a dimension: no arithmetic of the formula
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


def failed(tree: Path) -> set[str]:
    """The ids of the tests that fail in a tree."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/losses", GOLDEN, "-q", "-rfE", "--no-header", "-p",
         "no:cacheprovider", "--tb=no", "--durations=0", "--durations-min=99", "-W", "ignore"],
        cwd=tree, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode not in (0, 1):
        return {f"{GOLDEN}::the suite cannot run: {done.stdout[-200:]}"}
    return set(re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.M))


def whose(test: str) -> str:
    """The term that a test's id speaks of."""
    inside = re.search(r"\[([a-z_]+)", test)
    for name in [inside[1]] if inside else []:
        for term in sorted(Losses.model_fields, key=len, reverse=True):
            if name == term or name.startswith(f"{term}-"):
                return term
    own = re.search(r"test_([a-z_]+)\.py", test)
    return own[1] if own else test


def verdict(term: str, tests: set[str]) -> dict[str, Any]:
    """What a flip in a term's file did."""
    by_term = {test: whose(test) for test in tests}
    golden = [t for t in tests if t.startswith(GOLDEN) and by_term[t] == term]
    own = [t for t in tests if not t.startswith(GOLDEN) and by_term[t] == term]
    strange = {name for name in by_term.values() if name != term} - MADE_OF.get(term, set())
    return {"own": len(own), "golden": bool(golden), "others": sorted(strange)}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.signs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("terms", nargs="*", default=list(Losses.model_fields))
    given = parser.parse_args(arguments)
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        for room in ROOMS:
            copy = shutil.copytree if (ROOT / room).is_dir() else shutil.copy
            tree.mkdir(exist_ok=True)
            copy(ROOT / room, tree / room)
        if before := failed(tree):
            sys.exit(f"tests fail before any sign is flipped: {', '.join(sorted(before))}")
        for term in given.terms:
            file = tree / f"distill/losses/{term}.py"
            source = file.read_text()
            found[term] = []
            for line, flipped in signs(source):
                file.write_text(flipped)
                found[term].append({"line": line} | verdict(term, failed(tree)))
                print(term, found[term][-1], flush=True)
            file.write_text(source)
    file = RESULTS / "signs.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    write_json(file, known | found)
    missed = [
        f"{term}.py:{flip['line']}"
        for term, flips in found.items()
        for flip in flips
        if not flip["own"] or not flip["golden"] or flip["others"]
    ]
    print(f"{sum(map(len, found.values()))} signs; not as wanted: {', '.join(missed) or 'none'}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
