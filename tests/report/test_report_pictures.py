"""The README's pictures of reports: the parts of pages that they show, and what is refused."""

import shutil
from pathlib import Path

import pytest
from matplotlib.image import imread

from distill.data.sources.load_data_set import GENUINE
from distill.errors import UserError
from distill.report import comparison, page, run_report
from docs import report_pictures
from tests.runs.records import record

CURVES, MISTAKES, COMPARE = report_pictures.PICTURES


@pytest.fixture
def one(tmp_path: Path) -> Path:
    (tmp_path / "one.html").write_text(page.html(run_report.page(record("a", 12), ())))
    return tmp_path / "one.html"


@pytest.mark.long
def test_published_images_are_refused(one: Path, tmp_path: Path) -> None:
    one.write_text(one.read_text() + next(iter(GENUINE)))
    with pytest.raises(UserError, match="shows images of CIFAR-10, which may not be committed"):
        report_pictures.draw(MISTAKES, one, tmp_path / "a.png")


@pytest.mark.long
def test_missing_report_and_browser_are_reported(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        report_pictures.main(["--curves", str(tmp_path / "nowhere.html")])
    assert "nowhere.html cannot be read" in capsys.readouterr().err
    monkeypatch.setattr(report_pictures.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="none of chromium, .* is installed"):
        report_pictures.draw(CURVES, one, tmp_path / "a.png")


@pytest.mark.browser
@pytest.mark.skipif(
    not any(map(shutil.which, report_pictures.CHROMIUM)), reason="there is no Chromium"
)
def test_pictures_show_their_sections(one: Path, tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    out = tmp_path / "a.png"
    report_pictures.draw(CURVES, one, out)
    height, width, _ = imread(out).shape
    assert width == report_pictures.WIDTH and 500 < height < 2500
    assert imread(out)[2, 2, :3].mean() > 0.9
    report_pictures.draw(MISTAKES, one, out)
    assert imread(out).shape[0] <= report_pictures.MOST_HEIGHT
    assert imread(out)[2, 2, :3].mean() < 0.2
    several = tmp_path / "several.html"
    several.write_text(page.html(comparison.page([record("a", 12), record("b", 15)])))
    report_pictures.draw(COMPARE, several, out)
    with pytest.raises(UserError, match="has 0 sections 'Between the groups' instead of one"):
        report_pictures.draw(COMPARE, one, out)
