"""Escape names and paths for terminal, HTML, LaTeX, CSV, Python and Markdown.

A class name, a run's name, a recipe's name or a path is data. It may contain control characters,
bidirectional overrides, bytes that are not UTF-8, or the syntax of the format that it is written
into. Every writer calls the function of its format here. Letters, digits and spaces are unchanged.
"""

import re
import unicodedata

# Category Cc: control characters. Cf: format characters, bidirectional overrides among them.
# Cs: lone surrogates, which in Python are bytes that are not UTF-8. Zl, Zp: line separators.
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = (
    "\u200c\u200d"  # in category Cf, and part of the spelling of emoji, Persian and Hindi words
)

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "×": r"$\times$", "–": "--",
    "−": "$-$", "→": r"$\rightarrow$",
}  # fmt: skip
MARKDOWN = re.compile(
    r"[\\`*_\[\]<>&|~$#!@:]"
)  # emphasis, links, HTML, tables, mentions, addresses
LONGEST_NAME = 200  # bytes of a name that a user chooses for a folder
# A spreadsheet runs a cell that begins with one; the last four are full-width.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def visible(text: str) -> str:
    r"""Escape text for one line on a terminal, page or figure: `\n`, `\x1b`, `\u202e`.

    A byte that is not UTF-8, which Python reads as `\udcff`, becomes `\xff`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def is_utf8(text: str) -> bool:
    """Whether text can be written as UTF-8: a path read from the system need not be."""
    return not any(unicodedata.category(letter) == "Cs" for letter in text)


def is_file_name(text: str) -> bool:
    """Whether text can name one file or folder in any folder: a path of several parts, `.` and `..`
    cannot. File systems allow 255 bytes; LONGEST_NAME leaves space for a prefix.
    """
    is_short = len(text.encode(errors="surrogateescape")) <= LONGEST_NAME
    return text not in ("", ".", "..") and is_short and not set(text) & set("/\\\0")


def visible_lines(text: str) -> str:
    """Escape text of several lines; line feeds are unchanged."""
    return "\n".join(map(visible, text.split("\n")))


def _visible(character: str) -> str:
    if unicodedata.category(character) not in UNSAFE or character in JOINERS:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def python_docstring(text: str) -> str:
    """Escape text for a docstring in double quotes: it cannot end the string or form an escape."""
    escaped = visible_lines(text).replace("\\", "\\\\")
    return re.sub(r'"{3,}|"+\Z', lambda quotes: '\\"' * len(quotes[0]), escaped)


def latex(text: str) -> str:
    """Escape text for LaTeX; each run of whitespace becomes one space."""
    return "".join(LATEX.get(letter, letter) for letter in visible(" ".join(text.split())))


def markdown(text: str) -> str:
    """Escape text inside a line of Markdown, so that it forms no markup, link, mention or HTML."""
    inert = MARKDOWN.sub(r"\\\g<0>", visible(text))
    return re.sub(r"(?i)\bwww\.", lambda prefix: f"{prefix[0][:-1]}\\.", inert)


def markdown_code(text: str) -> str:
    """Return text as a Markdown code span, with more backticks than the text has in a row."""
    shown = visible(text)
    fence = "`" * (_longest_run(shown) + 1)
    gap = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{gap}{shown}{gap}{fence}"


def markdown_block(text: str, language: str) -> str:
    """Return text as a Markdown code block, with a longer fence than any in the text."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{visible_lines(text)}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def csv_cell(text: str) -> str:
    """Escape a CSV value by a `'` before `=`, `+`, `-` or `@`, full-width ones included, so that no
    spreadsheet runs it.

    Signed numbers are unchanged. The csv module quotes commas, quotes and line ends.
    """
    shown = visible(text)
    return f"'{shown}" if text.startswith(FORMULA) and not _is_number(text) else shown


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
