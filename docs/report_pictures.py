"""Draw the README's pictures of reports with Chromium.

    python cli.py report RUN --test-curve
    python -m docs.report_pictures --curves RUN/report.html
    python -m docs.report_pictures --mistakes RUN/report.html
    python -m docs.report_pictures --compare STUDY/report.html

`--curves` draws docs/report_curves.png, from the top of the page of a run to its training curves;
`--mistakes` docs/report_mistakes.png, the first mistakes, on a dark page; `--compare`
docs/report_compare.png, from the top of the page of several runs to the differences between them.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.data.sources.load_data_set import GENUINE
from distill.errors import UserError

DOCS = Path(__file__).resolve().parent
WIDTH = 1100  # CSS pixels
MOST_HEIGHT = 820  # of the mistakes, in CSS pixels
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run")


@dataclass(frozen=True)
class Picture:
    """A part of a report: to the end of a section, from the top of the page or of the section."""

    name: str
    section: str
    from_top: bool = True
    scheme: Literal["light", "dark"] = "light"

    @property
    def path(self) -> Path:
        return DOCS / f"report_{self.name}.png"


PICTURES = (
    Picture("curves", "Learning"),
    Picture("mistakes", "The most confident mistakes", from_top=False, scheme="dark"),
    Picture("compare", "Between the groups"),
)


def draw(picture: Picture, report: Path, out: Path) -> None:
    """Draw a part of a report as a PNG file `out`.

    Raises UserError if the report cannot be read or lacks the section, if Chromium is missing, and
    if the picture would show images of a published data set, which must not be committed.
    """
    try:
        text = report.read_text("utf-8")
    except (OSError, ValueError) as fault:
        raise UserError(f"{report} cannot be read: {fault}.\nType report RUN first.") from fault
    if not picture.from_top and any(fingerprint in text for fingerprint in GENUINE):
        raise UserError(
            f"{report} shows images of CIFAR-10, which may not be committed.\n"
            "Give the report of a run on synthetic images."
        )
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        raise UserError(f"none of {', '.join(CHROMIUM)} is installed.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        page = browser.new_page(
            viewport={"width": WIDTH, "height": MOST_HEIGHT}, color_scheme=picture.scheme
        )
        page.goto(report.resolve().as_uri())
        box: Any = _box(page, picture, report)
        page.screenshot(path=out, full_page=True, clip=box)
        browser.close()


def _box(page: Any, picture: Picture, report: Path) -> dict[str, float]:
    """Return the part of the page to draw, in CSS pixels."""
    section = page.locator("section", has=page.get_by_role("heading", name=picture.section))
    if section.count() != 1:
        raise UserError(
            f"{report} has {section.count()} sections {picture.section!r} instead of one.\n"
            "Give the report of a finished run, or of several runs for --compare."
        )
    box = section.bounding_box()
    if picture.from_top:
        return {"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"]}
    return {"x": 0, "y": box["y"], "width": WIDTH, "height": min(MOST_HEIGHT, box["height"])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m docs.report_pictures", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for picture in PICTURES:
        parser.add_argument(f"--{picture.name}", metavar="REPORT", type=Path, help="an HTML file")
    given = vars(parser.parse_args(arguments))
    try:
        for picture in PICTURES:
            if given[picture.name] is not None:
                draw(picture, given[picture.name], picture.path)
    except UserError as fault:
        parser.error(str(fault))


if __name__ == "__main__":
    main()
