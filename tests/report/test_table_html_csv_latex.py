import csv
import io

from distill.files.escape_text import latex
from distill.format import percent
from distill.report import page
from distill.report.page import Page, Section, Table
from distill.report.table_html_csv_latex import Column, ValueTable

GRID = ValueTable(
    "results",
    "Results",
    (
        Column("run & seed", is_number=False),
        Column("top1", percent),
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
        ["run & seed", "top1", "interval low", "interval high"],
        ["a_1, 50% of $x", "0.71171", "0.7", "0.8"],
        ["b", "", "", ""],
    ]


def test_latex_is_an_escaped_tabular() -> None:
    assert GRID.latex() == (
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
