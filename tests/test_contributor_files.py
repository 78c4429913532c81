"""Files for contributors: the hooks before a commit, the continuous integration, the changelog."""

import re
from pathlib import Path
from typing import Any

import yaml

import cli

REPO = Path(__file__).parents[1]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((REPO / name).read_text())


def test_hooks_are_local_and_those_of_make_lint() -> None:
    repos = read_yaml(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = {hook["id"]: hook for hook in repos[0]["hooks"]}
    assert hooks.keys() == {"ruff", "ruff-format", "mypy"}
    lint = (REPO / "Makefile").read_text().partition("\nlint:")[2]
    for hook in hooks.values():
        tool, *arguments = hook["entry"].removeprefix(".venv/bin/").split()
        command = " ".join([tool, *(each for each in arguments if not each.startswith("-"))])
        assert hook["language"] == "system" and f"$(BIN)/{command}" in lint


def test_workflow_runs_make_test() -> None:
    steps = read_yaml(".github/workflows/test.yml")["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make test"]


def test_changelog_has_this_version() -> None:
    headings = re.findall(r"^## (.+)$", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]" and cli.VERSION in headings


def test_links_of_root_pages_lead_somewhere() -> None:
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        links = re.findall(r"\]\(([^)#]+)\)", (REPO / name).read_text())
        assert [link for link in links if "://" not in link and not (REPO / link).exists()] == []
