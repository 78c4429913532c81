"""Tables in HTML, CSV and LaTeX have the same values and escape text."""

import csv
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from distill.files.escape_text import LATEX_LETTERS, latex
from distill.format import percent
from distill.report import page
from distill.report.page import Page, Section, Table
from distill.report.table_html_csv_latex import FRACTION, Column, ValueTable
from tests.hostile import NAMES

PDFLATEX = shutil.which("pdflatex")
GRID = ValueTable(
    "results",
    "Results",
    (
        Column("run & seed", is_number=False),
        Column("top1", percent, unit=FRACTION),
        Column("interval", lambda pair: "{} – {}".format(*pair), ("low", "high")),
    ),
    [("a_1, 50% of $x", 0.71171, (0.7, 0.8)), ("b", None, None)],
)


def test_cells_are_for_a_person() -> None:
    assert GRID.cells == [["a_1, 50% of $x", "71.17 %", "0.7 – 0.8"], ["b", "–", "–"]]


def test_a_page_escapes_control_characters_in_column_heads() -> None:
    grid = ValueTable("a", "", (Column("optim.lr\x1b[31m\u2028"),), [(1,)])
    text = page.html(Page("a", "", (), [Section("b", [Table(grid)])]))
    assert ">optim.<wbr>lr\\x1b[31m\\u2028</th>" in text


def test_csv_has_unrounded_numbers_in_columns() -> None:
    rows = list(csv.reader(io.StringIO(GRID.csv())))
    assert rows == [
        ["run & seed", "top1 (fraction)", "interval low", "interval high"],
        ["a_1, 50% of $x", "0.71171", "0.7", "0.8"],
        ["b", "", "", ""],
    ]


def test_latex_is_an_escaped_tabular() -> None:
    head, tabular = GRID.latex().split("\\begin", 1)
    assert "needs no package" in head and "\\usepackage{booktabs}" in head
    assert f"\\begin{tabular}" == (
        "\\begin{tabular}{lrr}\n"
        "\\toprule\n"
        "run \\& seed & top1 & interval \\\\\n"
        "\\midrule\n"
        "a\\_1, 50\\% of \\$x & 71.17 \\% & 0.7 -- 0.8 \\\\\n"
        "b & -- & -- \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


def test_what_latex_would_run_is_text() -> None:
    assert latex(r"\input{x}~^#") == (
        r"\textbackslash{}input\{x\}\textasciitilde{}\textasciicircum{}\#"
    )
    assert latex("two\nlines ± 1") == r"two lines $\pm$ 1"
    assert latex('"a" ("b") | \'b') == r"``a'' (``b'') \textbar{} \textquotesingle{}b"
    assert latex("[a] *b --c–") == "{[}a] {*}b -{}-c--"
    assert latex("cafe\u0301 你") == r"café \textless{}U+4F60\textgreater{}"


@pytest.mark.slow
@pytest.mark.skipif(PDFLATEX is None, reason="pdflatex is not installed (texlive-latex-base)")
@pytest.mark.parametrize("package", ["", r"\usepackage{booktabs}"])
def test_hostile_tables_compile_without_errors(package: str, tmp_path: Path) -> None:
    if package and not found_by_tex("booktabs.sty"):
        pytest.skip("booktabs is not installed (texlive-latex-recommended)")
    names = [*NAMES, *LATEX_LETTERS, "[1ex]", "*", "a--b", "^^41", '\\|"%_&#~^\\']
    columns = (Column("[class] *", is_number=False), Column("100 % \\| ~^", percent))
    tables = [
        ValueTable("a", "", columns, [(name, 0.5) for name in names[first : first + 30]])
        for first in range(0, len(names), 30)
    ]
    body = "\\clearpage\n".join(table.latex() for table in tables)
    document = f"\\documentclass{{article}}{package}\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "a.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout.decode(errors="replace")[-3000:]
    assert (tmp_path / "a.pdf").stat().st_size > 10_000


def found_by_tex(name: str) -> bool:
    return subprocess.run(["kpsewhich", name], capture_output=True, check=False).returncode == 0
