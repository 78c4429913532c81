"""Describe every table and key of a recipe in Markdown, from the schema."""

import re
from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from distill.recipe.loss_schema import Losses, Term
from distill.recipe.schema import ResNetKeys, Teacher
from distill.recipe.validation import allowed_text, keys, switches, table_of, value_text

HEADINGS = ("key", "allowed", "default", "meaning")
ALIKE = re.compile(r"loss\.\w+\.when|(student|teacher)\.args")  # described elsewhere


def key_tables() -> str:
    """Return a Markdown section for each table of a recipe, in the order of the schema."""
    return "\n\n".join(_sections())


def _sections() -> Iterator[str]:
    for name, field in keys().items():
        table = table_of(field)
        if table is None or ALIKE.fullmatch(name):
            continue
        off = " Off if the table is absent." if name in switches() else ""
        yield _section(f"`[{name}]`", f"{_sentence(table)}{off}{_hint(table)}", _rows(name, table))
        if table is Losses:
            yield _section("Every term of `[loss]`", _sentence(Term), _term_rows())


def _section(heading: str, text: str, rows: Sequence[str]) -> str:
    head = [f"| {' | '.join(HEADINGS)} |", "| --- " * len(HEADINGS) + "|"] if rows else []
    return "\n".join([f"### {heading}", "", text, *([""] if rows else []), *head, *rows])


def _hint(table: type[BaseModel]) -> str:
    """Return a reference to the keys of a table that another section lists."""
    if table is Teacher:
        return (
            " It also has the keys of `[student]` from `stages` to `code`, with the same meaning."
        )
    return ""


def _rows(name: str, table: type[BaseModel]) -> list[str]:
    """Return a line for each key of a table that is described in its section."""
    return [
        _row(f"{name}.{key}", key)
        for key, field in table.model_fields.items()
        if (table_of(field) is None or key == "args") and not _is_shared(table, key)
    ]


def _is_shared(table: type[BaseModel], key: str) -> bool:
    """Whether a key is described in the section of another table."""
    if table is Teacher:
        return key in ResNetKeys.model_fields and key != "network"
    shared = Term.model_fields.get(key) if issubclass(table, Term) else None
    return shared is not None and shared.default == table.model_fields[key].default


def _term_rows() -> list[str]:
    """Return a line for each key that all loss terms have, `hard` being the example."""
    own = [key for key in keys() if re.fullmatch(r"loss\.hard\.(weight|when\.\w+)", key)]
    return [_row(key, key.removeprefix("loss.hard.")) for key in own]


def _row(key: str, shown: str) -> str:
    """Return the line of a key; its description must be a sentence."""
    field = keys()[key]
    cells = (f"`{shown}`", allowed_text(key), _default(key), _plain(field.description or ""))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _default(key: str) -> str:
    field = keys()[key]
    default = field.default
    if default is None:
        return "none"
    if isinstance(default, BaseModel):
        return "`{}`"
    return f"`{value_text(list(default) if isinstance(default, tuple) else default)}`"


def _sentence(table: type[BaseModel]) -> str:
    return _plain(table.__doc__ or "")


def _plain(text: str) -> str:
    """Return a text on one line, with the page on networks as a link."""
    return re.sub(r"\bdocs/(\w+\.md)", r"[\1](\1)", " ".join(text.split()))
