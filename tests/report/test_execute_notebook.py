"""The process that runs a notebook's cells."""

from pathlib import Path

import pytest

from distill.report.execute_notebook import execute


@pytest.mark.long
def test_matplotlibrc_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("figure.dpi: 4000\n")
    source = "import os\nimport matplotlib\nprint(matplotlib.rcParams['figure.dpi'], os.listdir())"
    text = execute({"cell": source}, tmp_path)["cell"].text
    assert "4000" not in text and "['matplotlibrc']" in text
