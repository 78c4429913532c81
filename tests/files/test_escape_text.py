"""Each format, read by its own parser, holds the name as data."""

import ast
import csv
import io
import subprocess
import unicodedata

import pytest

from distill.files import escape_text
from tests.hostile import NAMES


def test_there_are_hundreds_of_hostile_names():
    assert len(NAMES) > 200


@pytest.mark.parametrize("write", [escape_text.visible, escape_text.latex, escape_text.markdown,
                                   escape_text.markdown_code, escape_text.csv_cell])  # fmt: skip
def test_no_control_character_is_left(write):
    for name in NAMES:
        kinds = {unicodedata.category(letter) for letter in write(name) if letter != "\u200d"}
        assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}, ascii(name)
        write(name).encode()


def test_visible_names_what_it_replaces():
    assert escape_text.visible("a\x1b[31m\n\u202e\udcff") == r"a\x1b[31m\n\u202e\xff"
    assert escape_text.visible("👩\u200d🚀 café \\N [bold]") == "👩\u200d🚀 café \\N [bold]"
    assert escape_text.visible_lines("a\nb\x07") == "a\nb\\x07"


def test_shell_word_is_visible_and_the_same_text() -> None:
    paths = [name for name in NAMES if name and "\0" not in name and "\ud800" not in name]
    names = [*paths, "a'\u202e\\", "\x85b\xad"]
    words = [escape_text.shell_word(name) for name in names]
    assert all(escape_text.visible(word) == word for word in words)
    script = f"printf '%s\\0' {' '.join(words)}".encode(errors="surrogateescape")
    printed = subprocess.run(
        ["bash"], input=script, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    ).stdout
    assert printed.decode(errors="surrogateescape").split("\0")[:-1] == names
    assert escape_text.shell_word("my run") == "'my run'"


def test_a_docstring_is_one_string_literal():
    for name in NAMES:
        tree = ast.parse(f'"""{escape_text.python_docstring(name)}"""\n')
        [statement] = tree.body
        assert ast.literal_eval(statement.value) == escape_text.visible_lines(name)  # type: ignore[attr-defined]


def test_markdown_keeps_a_harmless_name():
    assert escape_text.markdown("airplane 2-a, b.c") == "airplane 2-a, b.c"
    assert escape_text.markdown("[a](b) `c` <d>") == r"\[a\](b) \`c\` \<d\>"
    assert escape_text.markdown("www.example.org") == r"www\.example.org"
    assert escape_text.markdown_code("a``b`") == "``` a``b` ```"
    assert escape_text.markdown_block("a\n```\nb", "toml") == "````toml\na\n```\nb\n````"


@pytest.mark.parametrize(
    ("text", "cell"),
    [("a;=1+1", "a;'=1+1"), ("a| @x;-1", "a| '@x;'-1"), ("a;b|c", "a;b|c"), ("a=b;1", "a=b;1")],
)
def test_csv_cell_has_no_formula_behind_separators(text: str, cell: str) -> None:
    assert escape_text.csv_cell(text) == cell


def test_csv_cell_is_not_a_formula():
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([escape_text.csv_cell(name)] for name in NAMES)
    read = [row[0] for row in csv.reader(io.StringIO(file.getvalue()))]
    assert len(read) == len(NAMES)
    assert not [cell for cell in read if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert escape_text.csv_cell("-1.5") == "-1.5" and escape_text.csv_cell("=1") == "'=1"


@pytest.mark.parametrize("first", "\uff1d\uff0b\uff0d\uff20")
def test_full_width_formulas_are_escaped_in_csv(first: str) -> None:
    assert escape_text.csv_cell(f"{first}1") == f"'{first}1"
