"""Choose the files of the documents' website; `mkdocs.yml` names this module as a hook of MkDocs.

The website has the pages in the `nav` of `mkdocs.yml` and every file that they link to, under the
same paths as in the repository, so that the same links work there and on GitHub. Pictures, JSON
and notebooks are copied. Every other file, such as a recipe, becomes a page that shows its text.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#:\s]+)(?=[)#])")
COPIED = {".ipynb", ".json", ".png", ".svg"}
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".cff": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the theme's files, the pages of the navigation, and the files that they link to."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    pages = list(_paths(config.nav))
    linked = {path for page in pages for path in _linked_files(page)} - {*pages}
    return Files(
        [
            *theme,
            *(_file(path, config) for path in [*config.extra_css, *pages]),
            *(_file(path, config) for path in sorted(linked) if not _is_source(path)),
            *(_source_page(path, config) for path in sorted(linked) if _is_source(path)),
        ]
    )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to source files lead to the pages that show them."""

    def to_page(link: re.Match[str]) -> str:
        name = f"{_target(page.file.src_uri, link[2])}.md"
        return f"{link[0]}.md" if files.get_file_from_path(name) else link[0]

    return LINK.sub(to_page, markdown)


def _paths(nav: Any) -> Iterator[str]:
    """Yield the paths in a navigation: nested lists of {title: path or list}."""
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from _paths(item)


def _linked_files(page: str) -> Iterator[str]:
    """Yield the path of each existing file that a page links to; MkDocs reports the others."""
    for link in LINK.finditer((ROOT / page).read_text("utf-8")):
        path = _target(page, link[2])
        if (ROOT / path).is_file():
            yield path


def _target(page: str, link: str) -> str:
    """Return the path of a page's relative link in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _is_source(path: str) -> bool:
    return os.path.splitext(path)[1] not in COPIED


def _file(path: str, config: MkDocsConfig) -> File:
    return File(path, str(ROOT), config.site_dir, config.use_directory_urls)


def _source_page(path: str, config: MkDocsConfig) -> File:
    """Return a page that shows a file's text, and that the search leaves out."""
    language = LANGUAGES.get(os.path.splitext(path)[1], "text")
    text = (ROOT / path).read_text("utf-8")
    settings = "---\nhide: [toc]\nsearch: {exclude: true}\n---"
    content = f"{settings}\n# {path}\n\n`````{language}\n{text}`````\n"
    return File.generated(config, f"{path}.md", content=content)
