"""The notebook of a run: valid, executed as delivered, and the same when Jupyter runs it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from distill.errors import Failure
from distill.report import notebook
from distill.report.execute_notebook import Outputs, execute
from distill.runs.journal import Journal
from distill.runs.run_folder import RunFolder
from tests.cli.command_line import RunCli, assert_refused
from tests.make_runs import Events
from tests.runs.records import SCRIPT, hostile

CODE = "def project1_model():\n    pass\n"


@pytest.fixture
def run(distilled: tuple[RunFolder, Events], tmp_path: Path) -> RunFolder:
    copy = tmp_path / "student"
    shutil.copytree(distilled[0].path, copy)
    journal = Journal(copy / "journal.jsonl")
    for event in distilled[1]:
        journal(event)
    return RunFolder(copy)


def printed(document: Any) -> str:
    outputs = [output for cell in document.cells for output in cell.get("outputs", [])]
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")


def pictures(document: Any) -> int:
    outputs = [output for cell in document.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.long
def test_notebook_is_executed_and_runs_again_in_jupyter(run: RunFolder, run_cli: RunCli) -> None:
    result = run_cli("report", run.path, "--notebook")
    folder = run.path / "report_notebook"
    assert result.code == 0 and f"{folder / 'notebook.ipynb'}" in result.err, result.err
    document = nbformat.read(folder / "notebook.ipynb", 4)
    nbformat.validate(document)
    known = run.result()
    text = printed(document)
    top1 = 100 * known["metrics"]["top1/test"]
    assert f"{known['parameters']:,} parameters\n" in text
    assert f"test accuracy {top1:.2f} % of 2,000 images\n" in text
    assert pictures(document) == 3
    assert str(run.path.parent) not in (folder / "notebook.ipynb").read_text()
    assert "teacher.runs" not in "".join(cell.source for cell in document.cells)
    assert "class BasicBlock(nn.Module):" in "".join(cell.source for cell in document.cells)
    code = [cell for cell in document.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    moved = shutil.copytree(folder, run.path.parent / "elsewhere")  # it needs its folder alone
    place = {"metadata": {"path": str(moved)}}
    NotebookClient(document, timeout=300, kernel_name="python3", resources=place).execute()
    assert printed(document) == text and pictures(document) == 3
    used = {re.split(r"[. ]", line)[1] for cell in code for line in cell.source.splitlines()
            if line.startswith(("import ", "from "))}  # fmt: skip
    assert used == {"json", "pathlib", "matplotlib", "numpy", "torch"}
    again = run_cli("report", run.path, "--notebook")
    assert_refused(again, "notebook.ipynb exists, and may have been edited", lines=2)


@pytest.mark.long
def test_notebook_is_of_one_finished_student(
    run: RunFolder, teacher: Path, run_cli: RunCli
) -> None:
    several = run_cli("report", run.path, teacher, "--notebook", "--out", "page.html")
    assert_refused(several, "--notebook writes the notebook of one run, and 2 were given", lines=2)
    of_teacher = run_cli("report", teacher, "--notebook", "--out", "page.html")
    assert_refused(of_teacher, "--notebook contains the export of --format project1", lines=2)
    link = run.path / "report_notebook"
    link.symlink_to(run.path.parent)
    assert_refused(run_cli("report", run.path, "--notebook"), f"{link} is a symbolic link", lines=2)
    link.unlink()
    run.result_file.unlink()
    assert_refused(run_cli("report", run.path, "--notebook"), "is not finished", lines=3)
    assert not (run.path / "report_notebook").exists() and not Path("page.html").exists()


def test_hostile_names_are_text_in_a_valid_notebook() -> None:
    known = hostile()
    cells = notebook.code_cells(CODE)
    made = notebook.notebook(known, SCRIPT, CODE, dict.fromkeys(cells, Outputs("1\n", ("aGk=",))))
    document = nbformat.from_dict(made)  # type: ignore[no-untyped-call]
    nbformat.validate(document)
    for cell in document.cells:
        text = re.sub("`[^`]*`", "", cell.source)  # code spans are text
        assert not re.search(r"(?<!\\)<\w", text), text  # as is `\\<` in Markdown
    values = json.loads(notebook.values(known, {"mean": [0.5]}))
    assert values["classes"][0] == SCRIPT and values["mean"] == [0.5]
    assert values["curves"]["error"]["held-out"] == [[1.0, 2.0], [0.6, 0.6]]


@pytest.mark.long
def test_cells_share_names_and_leave_their_output(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("beside")
    cells = {
        "first": "x = open('a.txt').read()\nprint(x)",
        "second": "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint(x * 2)",
    }
    outputs = execute(cells, tmp_path)
    assert outputs["first"] == Outputs("beside\n")
    assert outputs["second"].text == "besidebeside\n" and len(outputs["second"].pngs) == 1


@pytest.mark.long
def test_failing_cell_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"'second' of the notebook fails, exit code 1: Value.*: no"):
        execute({"first": "x = 1", "second": "raise ValueError('no')"}, tmp_path)
