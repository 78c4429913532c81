"""Try faults and attacks many times, and write the table of docs/reliability.md.

    python -m benchmarks.soak [PART…] [--tries PART=N …] [--seed N] [--place DIR]

The parts kills, stops, deaths and disks start real processes and take 20 minutes on one core;
`disks` needs root. The other parts run in this process: run_files and folders take some minutes,
the rest less. N tries are made for each row of a part; in the parts damage, recipes and run_files
they are divided among the rows. Each part replaces its rows in `results/reliability.json` and in
the table. Failed tries are printed, and the exit code is 1 if there are any.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.soak import runs
from benchmarks.soak.archives import tars
from benchmarks.soak.damage import damage
from benchmarks.soak.folders import folders
from benchmarks.soak.hostile_recipes import recipe_texts
from benchmarks.soak.names import names
from benchmarks.soak.outcome import Outcome
from benchmarks.soak.pickles import pickles
from benchmarks.soak.run_files import run_files
from benchmarks.soak.urls import url_secrets
from distill.runs.run_folder import write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- soak:begin -->", "<!-- soak:end -->"
PARTS: dict[str, Callable[[Path, int, int], list[Outcome]]] = {
    **runs.PARTS,
    "recipes": recipe_texts,
    "damage": damage,
    "names": names,
    "folders": folders,
    "pickles": pickles,
    "archives": tars,
    "urls": url_secrets,
    "run_files": run_files,
}
TRIES = {
    "kills": 200, "stops": 20, "deaths": 10, "disks": 20, "recipes": 5000, "damage": 600,
    "names": 300, "folders": 150, "pickles": 500, "archives": 300, "urls": 300, "run_files": 1080,
}  # fmt: skip


def table(rows_of: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table in Markdown, in the order of PARTS.

    `rows_of`: for each part that was ever run, its outcomes as dictionaries.
    """
    lines = ["| fault | tried | survived | what the user sees |", "| --- | ---: | ---: | --- |"]
    for part in PARTS:
        for row in rows_of.get(part, []):
            took = "" if row["longest_s"] is None else f"; at most {row['longest_s']:.1f} s"
            cells = row["fault"], f"{row['tried']:,}", f"{row['survived']:,}", row["seen"] + took
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="*", metavar="PART", default=list(PARTS))
    parser.add_argument("--tries", action="append", default=[], metavar="PART=N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=Path, help="a folder for the runs [a temporary one]")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"{', '.join(unknown)} is not a part; allowed: {', '.join(PARTS)}")
    tries = TRIES | {part: int(n) for part, _, n in (text.partition("=") for text in given.tries)}
    rows_of = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    failures = []
    with chdir(Path.cwd()), tempfile.TemporaryDirectory() as temporary:  # some parts change the cwd
        for part in given.parts:
            folder = (given.place or Path(temporary)) / part
            folder.mkdir(parents=True, exist_ok=True)
            outcomes = PARTS[part](folder, tries[part], given.seed)
            for outcome in outcomes:
                print(f"{outcome.fault}: {outcome.survived} of {outcome.tried}", flush=True)
                failures += outcome.failures
            rows_of = {name: rows for name, rows in rows_of.items() if name in PARTS}
            rows_of[part] = [asdict(outcome) for outcome in outcomes]
            write_json(RESULTS, rows_of)
            before, _, rest = PAGE.read_text().partition(BEGIN)
            after = rest.partition(END)[2]
            write_text(PAGE, f"{before}{BEGIN}\n{table(rows_of)}\n{END}{after}")
    print("\n".join(failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
