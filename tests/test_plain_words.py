"""Docstrings, comments, messages and pages use the field's terms, not a private vocabulary.

Whole words are compared, in any case. Names in backticks, dictionary keys and other strings of one
word are code and are left out. "where" in the sense of "if", "of which", "as … as" and "store" have
ordinary meanings too, so that no test can find the wrong ones.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
ROOTS = (
    "cli.py",
    "distill",
    "networks",
    "students",
    "teachers",
    "tests",
    "benchmarks",
    "docs",
    "recipes",
    "README.md",
    "CONTRIBUTING.md",
)
ENDINGS = {".py", ".md", ".toml", ".j2"}
WORDS = (
    "room", "rooms", "house", "houses", "door", "doors", "verb", "verbs",
    "answers", "answered", "said", "told", "stored answers", "shelf", "shelves", "stock",
    "nobody", "taught", "lesson", "lessons",
    "kept", "to keep", "the weights to use",
    "held against", "stands", "lies", "befalls", "befell", "wish", "wishes", "its fellow",
    "on its word",
)  # fmt: skip
PRIVATE = re.compile(rf"\b({'|'.join(WORDS)})\b|\bas it is(?=$|[.,;:)])", re.IGNORECASE)
CODE = re.compile(r"``[^`]+``|`[^`]*`")
ONE_WORD = re.compile(r"\s*[\w.-]*\s*")
ALLOWED = {
    "'told": "a key of a stored trial",
}


def private_words(text: str) -> list[str]:
    """Return the private words of a text; code in backticks and allowed phrases are left out."""
    prose = " ".join(CODE.sub(" ", text).split())
    for phrase in ALLOWED:
        prose = prose.replace(phrase, " ")
    return [match[0].lower() for match in PRIVATE.finditer(prose)]


def texts(source: str, is_python: bool) -> Iterator[tuple[int, str]]:
    """(line, text) of each comment and string of a program, or of each line of a page."""
    if not is_python:
        yield from enumerate(source.splitlines(), start=1)
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and not ONE_WORD.fullmatch(text):
            yield node.lineno, text


def private_lines(path: str, source: str) -> list[str]:
    return [
        f"{path}:{line}: {word}"
        for line, text in texts(source, path.endswith(".py"))
        for word in private_words(text)
    ]


def files(root: str) -> list[Path]:
    path = REPO / root
    every = [path] if path.is_file() else path.rglob("*")
    return sorted(p for p in every if p.suffix in ENDINGS and p.name != Path(__file__).name)


@pytest.mark.long
@pytest.mark.parametrize("root", ROOTS)
def test_no_private_word_is_used(root: str) -> None:
    paths = files(root)
    assert paths
    assert [
        line
        for path in paths
        for line in private_lines(path.relative_to(REPO).as_posix(), path.read_text("utf-8"))
    ] == []


def test_each_allowed_phrase_is_used() -> None:
    text = "".join(path.read_text("utf-8") for root in ROOTS for path in files(root))
    assert [phrase for phrase in ALLOWED if phrase not in text] == []


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("a.py", '"""What the teacher said."""', ["a.py:1: said"]),
        ("a.py", "x = 1\n# Nobody teaches.", ["a.py:2: nobody"]),
        ("a.py", 'raise ValueError(f"{x} was told to stop")', ["a.py:1: told"]),
        ("a.md", "The recipe, as it is.\n\nIts answers.", ["a.md:1: as it is", "a.md:3: answers"]),
    ],
)
def test_private_words_are_found(path: str, source: str, found: list[str]) -> None:
    assert private_lines(path, source) == found


@pytest.mark.parametrize(
    "source",
    [
        'values["told"] = said',
        '"""A network as it is stored, `kept` and the housekeeping."""\n',
        "# 'told is a key",
    ],
)
def test_code_and_other_words_are_accepted(source: str) -> None:
    assert private_lines("a.py", source) == []
