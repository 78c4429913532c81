"""Escape names and paths for terminal, HTML, LaTeX, CSV, Python and Markdown.

Class names, the names of runs and recipes, and paths are untrusted data. They may contain control
characters, bidirectional overrides, bytes that are not UTF-8, or the syntax of the format into
which they are written. Code that writes a format calls the function of that format. Letters, digits
and spaces are unchanged.
"""

import re
import shlex
import unicodedata

# Category Cc: control characters. Cf: format characters, bidirectional overrides among them.
# Cs: lone surrogates, which in Python are bytes that are not UTF-8. Zl, Zp: line separators.
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = (
    "\u200c\u200d"  # in category Cf, and part of the spelling of emoji, Persian and Hindi words
)

# How LaTeX spells symbols without a package or a font encoding. After the `\\` that ends a row, a
# bare `[` or `*` would be an argument of it.
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "\"": "''", "“": "``", "”": "''",
    "'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "[": "{[}", "*": "{*}",
    "±": r"$\pm$", "×": r"$\times$", "–": "--", "−": "$-$", "→": r"$\rightarrow$",
}  # fmt: skip
# What pdfLaTeX prints without a package: most of Latin-1 and Latin Extended-A, and a few more.
LATEX_LETTERS = {*map(chr, (*range(0x20, 0x7F), *range(0xA1, 0x180))), *"‘’“”…•€™"} - {
    *"«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"
}
MARKDOWN = re.compile(
    r"[\\`*_\[\]<>&|~$#!@:]"
)  # emphasis, links, HTML, tables, mentions, addresses
LONGEST_NAME = 200  # bytes of a name that a user chooses for a folder
# A spreadsheet runs a cell that begins with one of these; the last four are full-width characters.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
NEXT_CELL = re.compile(rf"([;|]\s*)(?=[{re.escape(''.join(FORMULA))}])")


def visible(text: str) -> str:
    r"""Escape text for one line on a terminal, page or figure.

    Control and format characters become `\n`, `\x1b`, `\u202e`, ... A byte 0xff that is not UTF-8,
    which Python represents as the surrogate U+DCFF, becomes `\xff`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def is_utf8(text: str) -> bool:
    """Whether text can be written as UTF-8, which is not true of every path."""
    return not any(unicodedata.category(letter) == "Cs" for letter in text)


def is_file_name(text: str) -> bool:
    """Whether text can be the name of one file or folder.

    A path of several parts cannot, nor can `.`, `..`, empty text or text of more than 200 bytes.
    File systems allow 255 bytes; the difference leaves space for a prefix.
    """
    is_short = len(text.encode(errors="surrogateescape")) <= LONGEST_NAME
    return text not in ("", ".", "..") and is_short and not set(text) & set("/\\\0")


def visible_lines(text: str) -> str:
    """Escape text of several lines for a terminal, page or figure; line feeds are unchanged."""
    return "\n".join(map(visible, text.split("\n")))


def _visible(character: str) -> str:
    if unicodedata.category(character) not in UNSAFE or character in JOINERS:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def shell_word(text: str) -> str:
    r"""Quote text as a word of a command to type, without characters that `visible` escapes.

    Text that has such characters becomes `$'...'`, in which bash and zsh read the same escapes; the
    word is then the text itself and not its escaped form, which may be another path.
    """
    if visible(text) == text:
        return shlex.quote(text)
    return f"$'{''.join(map(_shell_escape, text))}'"


def _shell_escape(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    is_one_byte = visible(character) != character and 0x80 <= ord(character) <= 0xFF
    return f"\\u{ord(character):04x}" if is_one_byte else visible(character)


def python_docstring(text: str) -> str:
    """Escape text so that it is safe in a Python docstring in triple double quotes."""
    escaped = visible_lines(text).replace("\\", "\\\\")
    return re.sub(r'"{3,}|"+\Z', lambda quotes: '\\"' * len(quotes[0]), escaped)


def latex(text: str) -> str:
    """Escape text for LaTeX; each run of whitespace becomes one space.

    A straight quotation mark that begins a word opens, others close. The result needs no package. A
    character that pdfLaTeX cannot print without one becomes its code point: 你 becomes `<U+4F60>`.
    """
    composed = unicodedata.normalize("NFC", visible(" ".join(text.split())))
    quoted = re.sub(r'(?<![^\s(\[{])"', "“", composed)
    parts = re.split("(?<=-)(?=-)", quoted)
    return "{}".join("".join(map(_latex, part)) for part in parts)


def _latex(character: str) -> str:
    if character not in LATEX and character not in LATEX_LETTERS:
        return rf"\textless{{}}U+{ord(character):04X}\textgreater{{}}"
    return LATEX.get(character, character)


def markdown(text: str) -> str:
    """Escape text inside a line of Markdown, so that it forms no markup, link, mention or HTML."""
    inert = MARKDOWN.sub(r"\\\g<0>", visible(text))
    return re.sub(r"(?i)\bwww\.", lambda prefix: f"{prefix[0][:-1]}\\.", inert)


def markdown_code(text: str) -> str:
    """Return text as a Markdown code span, between more backticks than the text has in a row."""
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
    """Escape a CSV value so that no spreadsheet runs it as a formula.

    A `'` is put before a value that begins with `=`, `+`, `-`, `@` (normal or full-width), a tab or
    a carriage return, and before these characters behind `;` or `|`, at which some spreadsheets
    begin a new cell. Numbers with a sign are unchanged. Commas, quotes and line ends are left for
    the csv module to quote.
    """
    shown = visible(NEXT_CELL.sub(r"\1'", text))
    return f"'{shown}" if text.startswith(FORMULA) and not _is_number(text) else shown


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
