"""The page as Chromium shows it: light and dark, wide and narrow, on paper; it asks for nothing."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from distill.report import comparison, page, run_report, sweep_page
from tests.report.test_many_classes import hundred_classes
from tests.report.test_run_report import LAYERS
from tests.report.test_sweep_page import CROWD, CROWDED, SUMMARY
from tests.runs.records import SCRIPT, hostile, record

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
A4 = 680  # CSS pixels between the margins
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run's page, two runs' and a sweep's, all of the worst names."""
    folder = tmp_path_factory.mktemp("reports")
    pages = {
        "one": run_report.page(hostile(), LAYERS),
        "several": comparison.page([hostile(), record("b" * 80, 12)]),
        "sweep": sweep_page.page(SUMMARY | {"sweep": SCRIPT}),
    }
    for name, made in pages.items():
        (folder / f"{name}.html").write_text(page.html(made))
    return {name: folder / f"{name}.html" for name in pages}


@pytest.mark.parametrize(
    ("name", "text"),
    [("one", SCRIPT), ("several", "<b onclick=alert(1)>run"), ("sweep", SCRIPT)],
    ids=["one", "several", "sweep"],
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_it_is_shown_whole_and_in_silence(
    browser: "playwright.Browser", reports: dict[str, Path], tmp_path: Path,
    name: str, text: str, scheme: str, width: int,
) -> None:  # fmt: skip
    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    messages: list[str] = []
    requests: list[str] = []
    shown.on("console", lambda message: messages.append(message.text))
    shown.on("pageerror", lambda error: messages.append(str(error)))
    shown.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto(reports[name].as_uri())
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [reports[name].as_uri()]
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate("document.scripts.length") == 0
    clipped = "[...document.querySelectorAll('figure svg')].filter(e => e.clientWidth > innerWidth)"
    assert shown.evaluate(f"{clipped}.length") == 0
    assert text in shown.inner_text("body"), "markup from outside is shown as text"
    picture = imread(tmp_path / shot(shown, tmp_path))[..., :3]
    assert picture.std() > 0.02
    corner = picture[2, 2].mean()  # the paper
    assert corner > 0.9 if scheme == "light" else corner < 0.2
    shown.close()


def shot(shown: "playwright.Page", folder: Path) -> str:
    shown.screenshot(path=folder / "shown.png")
    return "shown.png"


def test_figures_take_the_colours_of_the_page(
    browser: "playwright.Browser", reports: dict[str, Path]
) -> None:
    inks = []
    for scheme in ("light", "dark"):
        shown = browser.new_page(color_scheme=scheme)
        shown.goto(reports["one"].as_uri())
        inks.append(
            shown.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
        )
        shown.close()
    light, dark = (np.array([int(n) for n in ink[4:-1].split(",")]).mean() for ink in inks)
    assert light < 60 and dark > 200


def test_pointer_on_a_cell_names_its_classes(browser: "playwright.Browser", tmp_path: Path) -> None:
    made = run_report.page(hundred_classes(), LAYERS)
    (tmp_path / "many.html").write_text(page.html(made))
    shown = browser.new_page(viewport={"width": 390, "height": 900})
    shown.goto((tmp_path / "many.html").as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    cell = shown.locator("g[pointer-events=all] path").first
    cell.scroll_into_view_if_needed()
    at_its_centre = """cell => {
        const box = cell.getBoundingClientRect();
        const x = box.x + box.width / 2, y = box.y + box.height / 2;
        return document.elementFromPoint(x, y).textContent;
    }"""
    assert cell.evaluate(at_its_centre) == cell.text_content()
    assert "predicted as" in (cell.text_content() or "")
    shown.close()


def test_a_sweep_of_many_keys_fits_on_paper(browser: "playwright.Browser", tmp_path: Path) -> None:
    values = dict(zip(CROWD, CROWDED, strict=True))
    trial = SUMMARY["trials"][0] | {"values": values}
    many = {"space": CROWD, "trials": [trial], "best": trial, "importance": {}}
    made = sweep_page.page(SUMMARY | many)
    (tmp_path / "sweep.html").write_text(page.html(made))
    shown = browser.new_page(viewport={"width": A4, "height": 1000})
    shown.goto((tmp_path / "sweep.html").as_uri())
    shown.emulate_media(media="print")
    width = shown.evaluate("document.documentElement.scrollWidth")
    assert width <= 1.5 * A4, "up to here Chromium prints all of it smaller, beyond it cuts"
    shown.close()


def test_it_prints_on_a_few_pages(
    browser: "playwright.Browser", reports: dict[str, Path], tmp_path: Path
) -> None:
    shown = browser.new_page(color_scheme="dark")
    shown.goto(reports["one"].as_uri())
    shown.emulate_media(media="print")
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    content = shown.pdf(path=tmp_path / "a.pdf", prefer_css_page_size=True)
    assert 2 <= content.count(b"/Type /Page\n") <= 12
    shown.close()
