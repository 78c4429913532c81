"""Show cells of the CRD paper's table beside the published accuracies, as Markdown."""

from collections.abc import Sequence
from typing import Any

from distill.format import mean_and_std

HEAD = """# Cells of the CRD paper's table on CIFAR-100

Accuracy on the test split in percent, mean ± sample standard deviation over n seeds, beside the
published one, which is of the best epoch on the test split. "last epoch" is the result here; "best
on test" is measured afterwards for comparison, and no epoch is selected by it. z is the distance of
"best on test" from the published figure in standard errors of the mean, if the training is the
published one. Written by `python -m benchmarks.published --table` from the JSON files of this
folder.
"""
COLUMNS = (
    "cell", "n", "last epoch", "best on test", "published", "z", "student alone", "published",
    "difference", "published", "teacher", "published",
)  # fmt: skip


def markdown(cells: Sequence[dict[str, Any]]) -> str:
    """Return the contents of cells' JSON files as a page of tables.

    Cells that differ from the published training, in their epochs for example, have a table of
    their own, which names the differences.
    """
    parts = [HEAD]
    full = [cell for cell in cells if cell["is_reproduction"]]
    other = [cell for cell in cells if not cell["is_reproduction"]]
    if full:
        parts.append("## 240 epochs, as published\n\n" + _table(full, COLUMNS))
    if other:
        text = "## Other trainings, which reproduce nothing\n\n"
        parts.append(text + _table(other, (*COLUMNS, "different from the published training")))
    return "\n".join(parts)


def _table(cells: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    rules = ["---", *(["---:"] * (len(COLUMNS) - 1)), *(["---"] * (len(columns) - len(COLUMNS)))]
    rows = [columns, rules, *(_row(cell)[: len(columns)] for cell in cells)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(cell: dict[str, Any]) -> list[str]:
    method, control, published = (cell[name] or {} for name in ("method", "control", "published"))
    z = cell["distance"]["method/best_on_test"] if cell["is_reproduction"] else None
    return [
        cell["cell"],
        str(len(cell["seeds"]["method"])),
        _spread(method.get("last_epoch")),
        _spread(method.get("best_on_test")),
        _percent(published["method"]),
        "" if z is None else f"{z:+.1f}",
        _spread(control.get("last_epoch")),
        _percent(published["control"]),
        _spread(cell["difference"]),
        _percent(published["difference"]),
        _percent(cell["teacher"]["top1"]),
        _percent(published["teacher"]),
        "; ".join(cell["departures"]),
    ]


def _spread(values: dict[str, Any] | None) -> str:
    return mean_and_std(values["mean"], values["std"]) if values else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
