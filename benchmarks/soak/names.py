"""Generate hostile class, run, recipe and network names and write them in every output format."""

import ast
import csv
import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from markdown_it import MarkdownIt
from rich.table import Table as RichTable

from benchmarks.soak import commands
from benchmarks.soak.outcome import Outcome
from benchmarks.soak.tiny_set import Runs
from distill.export import codegen, huggingface, model_card, predictions_csv, project1
from distill.export.finished_run import FinishedRun, load_finished
from distill.report import page
from distill.report.page import (
    Block,
    Gallery,
    HeadFigure,
    Mistake,
    Page,
    Paragraph,
    Preformatted,
    Section,
    Table,
    TopClasses,
)
from distill.report.table_html_csv_latex import Column, ValueTable
from distill.runs.run_folder import RunFolder
from distill.terminal.literal_console import LiteralConsole
from distill.terminal.recipe_and_cache_tables import class_counts

# Hostile names are combined from these parts.
PARTS = [
    '"""', "'''", '"', "'", "\\", "\\\\", "\n", "\r", "\t", "\0", "\x1b[31m", "\x1b]0;t\x07",
    "\x9b",
    "\x7f", "\b", "\u202e", "\u2066", "\u200b", "\ufeff", "\u2028", "\u2029", "\x85", "\udcff",
    "\ud800", "\\N", "\\u12", "\\x", "\\x1", "{", "}", "{{", "}}", "{%", "%}", "${", "%s", "{0}",
    "<", ">", "</", "<script>", "<img src=x onerror=", "<!--", "-->", "]]>", "&lt;", "&", "&#0;",
    "[bold]", "[/]", "[/red]", "[link=x]", ":smiley:", "\\input{", "\\end{tabular}", "\\write18{",
    "$", "^", "_", "~", "#", "%", "\\\\", "**", "`", "```", "|", "[a](", ")", "![", "](javascript:",
    "---\n", "- ", "key: ", "=", "+", "-", "@", "=cmd|", ",", ";", "www.example.org",
    "https://example.org", "@someone", "a", "B", "é", "你好", "👩\u200d🚀", " ", "  ", "0", ".",
    "/",
    "../", "x" * 200, "import os;", "#!", "eval(", "lambda:", ";",
]  # fmt: skip
CODE = 'open("PWNED","w").write("x")'  # creates a file if it is executed
FORMULA = re.compile(r"[=@\t\r]|[+-](?![\d.])")  # the start of a cell that a spreadsheet evaluates
Write = Callable[[list[str]], str]  # writes four names; returns what is wrong, or ""
# A program that runs the exported Python files of a folder, without this project.
CHILD = """
import pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    exec(compile(path.read_bytes(), str(path), "exec"), {"__name__": "x"})
"""


def name(chance: random.Random) -> str:
    """Return a random hostile name; a third of the names contain Python code."""
    parts = chance.choices(PARTS, k=chance.randrange(1, 8))
    if chance.random() < 0.35:
        parts.insert(chance.randrange(len(parts) + 1), chance.choice([f";{CODE};", f"\n{CODE}\n"]))
    return "".join(parts)


def names(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Write `tries` sets of four hostile names in each output format, and check the output."""
    chance = random.Random(seed)
    runs = Runs(folder.parent / "runs of others")
    run = load_finished(RunFolder(runs.folder / "runs/student"), None, None)
    written = folder / "written"
    written.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Write] = {
        "the terminal": _terminal,
        "an HTML report": _html,
        "LaTeX and CSV tables": _tables,
        "the CSV of predictions": partial(_predictions, folder / "predictions.csv"),
        "the exported project1 code": partial(_code, run, written),
        "the Markdown model card": partial(_card, run),
        "the JSON config of an export": partial(_config, run),
    }
    outcomes = []
    for what, write in writers.items():
        outcome = Outcome(f"hostile names in {what}", SEEN[what])
        for _ in range(tries):
            four = [name(chance) for _ in range(4)]
            try:
                fault = write(four)
            except Exception as error:
                fault = f"{type(error).__name__}: {error}"
            outcome.count(not fault, f"{what}: {fault}: {four!r}")
        if "code" in what:
            outcome.count(not (fault := _executed(written)), fault)
        outcomes.append(outcome)
    return [*outcomes, _commands(runs, max(1, tries // 10), chance)]


SEEN = {
    "the terminal": "the name, with escapes such as `\\x1b` in place of control characters",
    "an HTML report": "the name as text: no element, attribute or script more",
    "LaTeX and CSV tables": "the name as text: no command, and no formula",
    "the CSV of predictions": "the name in one cell, `'` before what begins as a formula",
    "the exported project1 code": "the name in the docstring; the file has no other statement",
    "the Markdown model card": "the name as text: no markup and no metadata more",
    "the JSON config of an export": "the name itself",
}


def _renamed(run: FinishedRun, four: list[str]) -> FinishedRun:
    """Return the run with `four` as the names of its two classes, its recipe and its network."""
    changes = {"class_names": four[:2], "recipe": four[2], "network": four[3]}
    return replace(run, result=run.result | changes)


def _terminal(four: list[str]) -> str:
    printed = io.StringIO()
    screen = LiteralConsole()
    screen.file = printed
    screen.print(class_counts(dict.fromkeys(four, 1)))
    table = RichTable(four[0])
    table.add_row(four[1])
    for each in (table, *four):
        screen.print(each)
    unsafe = commands.unsafe_in(printed.getvalue())
    return f"prints {unsafe!r}" if unsafe else ""


class _Elements(HTMLParser):
    """Parses a page; `found` lists its elements with the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "wbr":  # a line break opportunity in a long name
            self.found.append((tag, *(attribute for attribute, _ in attrs)))


def _html(four: list[str]) -> str:
    text = page.html(_page(four))
    if unsafe := commands.unsafe_in(text.replace("\xad", "")):
        return f"holds {unsafe!r}"
    plain = _Elements(page.html(_page(list("abcd"))))
    return "" if _Elements(text).found == plain.found else "has other elements"


def _page(four: list[str]) -> Page:
    opinion = TopClasses(four[0], [(four[1], 0.5)])
    gallery = Gallery([Mistake("data:,", four[2], four[3], [opinion])])
    blocks: list[Block] = [Paragraph(four[1]), Preformatted(four[2]), Table(_grid(four)), gallery]
    figures = [HeadFigure(four[0], four[1], four[2])]
    return Page(four[0], four[3], figures, [Section(four[3], blocks)], notes=[four[2]])


def _grid(four: list[str]) -> ValueTable:
    return ValueTable(
        "grid", four[0], (Column(four[1]), Column("n")), [(four[2], 1), (four[3], -2)]
    )


def _tables(four: list[str]) -> str:
    latex, plain = _grid(four).latex(), _grid(list("abcd")).latex()
    if commands.unsafe_in(latex):
        return f"LaTeX holds {commands.unsafe_in(latex)!r}"
    if latex.count("\n") != plain.count("\n") or _commands_of(latex) - LATEX:
        return f"LaTeX has {_commands_of(latex) - LATEX}, or other lines"
    rows = [*csv.reader(io.StringIO(_grid(four).csv()))]
    return _cells(rows, 3, 2)


LATEX = {
    "begin", "end", "toprule", "midrule", "bottomrule", "textbackslash", "textasciitilde",
    "textasciicircum", "textless", "textgreater", "pm", "times", "rightarrow",
}  # fmt: skip


def _commands_of(latex: str) -> set[str]:
    """Return the names of all commands in a LaTeX text."""
    return set(re.findall(r"\\([A-Za-z]+)", latex.replace("\\\\", " ")))


def _cells(rows: list[list[str]], n_rows: int, n_columns: int) -> str:
    """Return what is wrong with the parsed rows of a CSV; empty if nothing is.

    There must be `n_rows` rows of `n_columns` cells, and no cell that a spreadsheet evaluates.
    """
    if len(rows) != n_rows or {len(row) for row in rows} != {n_columns}:
        return f"CSV has {len(rows)} rows of {[len(row) for row in rows]} cells"
    formulas = [cell for row in rows for cell in row if FORMULA.match(cell)]
    return f"CSV has {formulas}" if formulas else ""


def _predictions(path: Path, four: list[str]) -> str:
    shares = np.full((4, 4), 0.25)
    found = predictions_csv.LabelledImages(tuple(four), shares, tuple(four), ())
    predictions_csv.write(found, path, probabilities=True)
    fault = _cells([*csv.reader(io.StringIO(path.read_text("utf-8")))], 5, 5)
    predictions_csv.write(found, path, names=True)
    return fault or _cells([*csv.reader(io.StringIO(path.read_text("utf-8")))], 5, 2)


def _code(run: FinishedRun, folder: Path, four: list[str]) -> str:
    code = codegen.generate(project1._student(run), project1._docstring(_renamed(run, four)))
    path = folder / f"{len([*folder.iterdir()])}.py"
    path.write_text(code, "utf-8")
    if unsafe := commands.unsafe_in(code):
        return f"holds {unsafe!r}"
    plain = codegen.generate(project1._student(run), "text")
    found, wanted = ast.parse(code), ast.parse(plain)
    is_docstring = isinstance(ast.literal_eval(found.body[0].value), str)  # type: ignore[attr-defined]
    same = [*map(ast.dump, found.body[1:])] == [*map(ast.dump, wanted.body[1:])]
    return "" if same and is_docstring else "has other statements"


def _executed(folder: Path) -> str:
    """Run the exported Python files in `folder`; return the files that they created and their
    errors, or "".
    """
    empty = folder.parent / "empty"
    empty.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, folder], cwd=empty, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    left = [path.name for path in empty.iterdir()]
    return f"{left} {done.stderr[-300:]}" if left or done.returncode else ""


def _card(run: FinishedRun, four: list[str]) -> str:
    text = model_card.generate(_renamed(run, four), needs_import=True)
    plain = model_card.generate(_renamed(run, ["a", "b", "c", "d"]), needs_import=True)
    if unsafe := commands.unsafe_in(text):
        return f"holds {unsafe!r}"
    if text.partition("\n---\n")[0] != plain.partition("\n---\n")[0]:
        return "has other metadata"
    return "" if [*_markdown(text)] == [*_markdown(plain)] else "has other elements"


def _markdown(card: str) -> Iterator[str]:
    """Yield the types of the Markdown elements of a model card, in order, without its texts."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.partition("\n---\n")[2])
    for token in tokens:
        for each in (token, *(token.children or ())):
            if each.type not in ("text", "text_special"):
                yield each.type


def _config(run: FinishedRun, four: list[str]) -> str:
    config = json.loads(json.dumps(huggingface.config(_renamed(run, four))))
    return "" if config["label_names"] == four[:2] else "has other names"


def _commands(runs: Runs, tries: int, chance: random.Random) -> Outcome:
    """Write hostile names to a run's result.json, rename its folder, and run commands that print
    these names.
    """
    outcome = Outcome(
        "hostile names of runs, classes, recipes and networks in the output of commands",
        "the names with escapes in place of control characters, or one message",
    )
    for n in range(tries):
        runs.restore()
        four = [name(chance) for _ in range(4)]
        folder = re.sub(r"[/\0\ud800]", "-", four[0])[:60].strip(".") or "x"
        run = Path("runs") / folder
        Path("runs/student").rename(run)
        result = run / "result.json"
        changes = {"class_names": four[:2], "recipe": four[2], "network": four[3]}
        result.write_text(json.dumps(json.loads(result.read_text()) | changes))
        choices: list[tuple[object, ...]] = [
            ("runs",), ("evaluate", run), ("compare", run, "runs/other"), ("compare", run, run),
            ("predict", run, "--input", "images.npy", "--labels", "names"),
            ("export", run, "--format", "safetensors", "--out", "runs/new"),
            ("report", run, "--out", "report.html"),
        ]  # fmt: skip
        command = choices[n % len(choices)]
        fault = commands.fault_of(commands.run(*command))
        outcome.count(not fault, f"{command}: {fault}: {four!r}")
    return outcome
