"""The documents' website is built offline: no dead link, and nothing from another host."""

import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("material", reason="the extra site is not installed")
REPO = Path(__file__).parents[1]
LOADING = {"link", "script", "img", "iframe", "source", "object", "video", "audio", "use"}
pytestmark = pytest.mark.long


class Elements(HTMLParser):
    """The addresses and the ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[tuple[str, str]] = []  # element, address
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "data", "srcset", "action", "poster") and value:
                self.addresses.append((tag, value))
            if name == "id" and value:
                self.ids.add(value)


def build(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out), *options],
        cwd=REPO,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Elements]:
    return {path: Elements(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_document_is_a_page(site: Path) -> None:
    documents = [*(REPO / "docs").glob("*.md"), REPO / "CONTRIBUTING.md", REPO / "CHANGELOG.md"]
    assert len(documents) > 10
    for path in documents:
        assert (site / path.relative_to(REPO).with_suffix(".html")).is_file(), path
    assert "fewer than 5,000,000" in (site / "index.html").read_text("utf-8")
    assert "two_cores_kd_cutmix" in (site / "results" / "index.html").read_text("utf-8")


def test_linked_recipe_is_shown_as_text(site: Path) -> None:
    page = (site / "recipes" / "kd.toml.html").read_text("utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    assert "[loss.kd]" in text
    assert 'href="../recipes/kd.toml.html"' in (site / "docs" / "recipes.html").read_text("utf-8")


def test_no_link_is_dead(site: Path, pages: dict[Path, Elements]) -> None:
    found = [
        (path.relative_to(site), address)
        for path, page in pages.items()
        for _, address in page.addresses
        if not is_elsewhere(address)
    ]
    assert len(found) > 1000
    assert [link for link in found if not leads_somewhere(site, *link, pages)] == []


def is_elsewhere(address: str) -> bool:
    return bool(urlsplit(address).scheme or urlsplit(address).netloc)


def leads_somewhere(site: Path, page: Path, address: str, pages: dict[Path, Elements]) -> bool:
    parts = urlsplit(address)
    folder = site if parts.path.startswith("/") else (site / page).parent
    name = unquote(parts.path).lstrip("/")
    path = Path(os.path.normpath(folder / name)) if name or parts.path else site / page
    path = path / "index.html" if path.is_dir() else path
    anchor = unquote(parts.fragment)
    if not path.is_file() or not path.is_relative_to(site):
        return False
    return not anchor or path.suffix != ".html" or anchor in pages[path].ids | {"__skip"}


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Elements]) -> None:
    assert [
        (path.relative_to(site), element, address)
        for path, page in pages.items()
        for element, address in page.addresses
        if element in LOADING and is_elsewhere(address) and not address.startswith("data:")
    ] == []
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        loaded = re.findall(
            r"(?:@import\s*|url\()\s*[\"']?(?:https?:)?//[^)\"']*", sheet.read_text()
        )
        assert loaded == [], sheet


def test_dead_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    config = (REPO / "mkdocs.yml").read_text().partition("\nnav:")
    validation = "\nvalidation:" + config[2].partition("\nvalidation:")[2]
    for text, found in (("[x](nowhere.md)", "nowhere.md"), ("[x](#nothing)", "no such anchor")):
        (tmp_path / "mkdocs.yml").write_text(f"site_name: x{validation}")
        (tmp_path / "docs" / "index.md").write_text(f"# A\n\n{text}\n")
        done = build(tmp_path / "out", "--config-file", str(tmp_path / "mkdocs.yml"))
        assert done.returncode == 1 and found in done.stderr


def test_no_list_is_shown_as_text(site: Path) -> None:
    """A list that is nested by fewer than four spaces is one on GitHub, but not in MkDocs."""
    for path in [site / "index.html", *site.glob("*/*.html")]:
        prose = re.sub(r"<pre.*?</pre>", "", path.read_text("utf-8"), flags=re.DOTALL)
        assert re.findall(r"^\s*(?:[-*]|\d+\.) .*", prose, re.MULTILINE) == [], path


class QuietServer(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_searches_and_asks_no_other_host(site: Path, scheme: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietServer, directory=str(site))) as server,
        playwright.sync_playwright() as started,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}/"
        browser = started.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        shown = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme=scheme)
        requests: list[str] = []
        messages: list[str] = []
        shown.on("request", lambda request: requests.append(request.url))
        shown.on("console", lambda message: messages.append(message.text))
        shown.on("pageerror", lambda error: messages.append(str(error)))
        for page in ("index.html", "docs/methods.html", "results/index.html"):
            shown.goto(host + page)
            assert shown.evaluate("document.documentElement.scrollWidth") <= 390, "tables scroll"
        paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 600) == (scheme == "light")
        shown.set_viewport_size({"width": 1200, "height": 900})
        shown.goto(host + "index.html", wait_until="networkidle")  # the search is ready
        shown.locator("input[name=query]").press_sequentially("born-again", delay=20)
        shown.wait_for_selector("a.md-search-result__link[href*='methods.html']")
        assert [url for url in requests if not url.startswith((host, "data:", "blob:"))] == []
        assert messages == []
        browser.close()
        server.shutdown()
