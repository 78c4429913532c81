"""The notebook: run as a person runs it, only shorter; what is committed was run whole."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / "examples" / "tour.ipynb"
END = re.compile(r"test accuracy (\d+\.\d\d)%, (\d+,\d{3}) parameters\n")


def ending(notebook: Any) -> tuple[float, str]:
    """What the last cell printed."""
    [output] = notebook.cells[-1].outputs
    accuracy, parameters = END.fullmatch(output.text).groups()  # type: ignore[union-attr]
    return float(accuracy), parameters


def pictures(notebook: Any) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_committed_notebook_was_run_without_machine_paths() -> None:
    notebook = nbformat.read(TOUR, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    accuracy, parameters = ending(notebook)
    assert accuracy > 60 and parameters == "19,954"
    assert pictures(notebook) == 3
    assert not re.search(r"/tmp/|/home/|/root/|/work/", TOUR.read_text())


@pytest.mark.slow
def test_it_runs_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOUR", "--set train.epochs=1 --set data.train_images=320")
    notebook = nbformat.read(TOUR, 4)
    place = {"metadata": {"path": str(TOUR.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    assert ending(notebook)[1] == "19,954" and pictures(notebook) == 3
