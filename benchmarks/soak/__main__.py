"""Faults, many times over, and the table of docs/reliability.md.

    python -m benchmarks.soak [PART…] [--tries PART=N …] [--seed N] [--place DIR]

Parts: kills, stops, deaths, disks (real processes on two cores, half an hour in all; `disks` needs
the right to mount); recipes, damage, hostile (a minute). Each says how often it tried, how often
all was well, and what the user sees, and renews its lines in `results/reliability.json` and in the
table. Exit 1 where anything was not well; what it was is printed.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.soak import files, runs
from distill.runs.run_folder import write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- soak:begin -->", "<!-- soak:end -->"
PARTS = runs.PARTS | files.PARTS
TRIES = {"kills": 200, "stops": 20, "deaths": 10, "disks": 20, "recipes": 5000, "damage": 500,
         "hostile": 1}  # fmt: skip


def table(known: dict[str, list[dict[str, Any]]]) -> str:
    """The lines of every part that was measured, in the order of the parts."""
    lines = ["| fault | tried | survived | what the user sees |", "| --- | ---: | ---: | --- |"]
    for part in PARTS:
        for row in known.get(part, []):
            took = "" if row["longest_s"] is None else f"; {row['longest_s']:.1f} s at most"
            cells = row["fault"], f"{row['tried']:,}", f"{row['survived']:,}", row["seen"] + took
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="*", metavar="PART", default=list(PARTS))
    parser.add_argument("--tries", action="append", default=[], metavar="PART=N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=Path, help="where the runs lie [a temporary folder]")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"{', '.join(unknown)} is no part; allowed: {', '.join(PARTS)}")
    tries = TRIES | {part: int(n) for part, _, n in (each.partition("=") for each in given.tries)}
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        for part in given.parts:
            place = (given.place or Path(temporary)) / part
            place.mkdir(parents=True, exist_ok=True)
            outcomes = PARTS[part](place, tries[part], given.seed)
            for outcome in outcomes:
                print(f"{outcome.fault}: {outcome.survived} of {outcome.tried}", flush=True)
                failures += outcome.failures
            known[part] = [asdict(outcome) for outcome in outcomes]
            write_json(RESULTS, known)
            before, _, rest = PAGE.read_text().partition(BEGIN)
            after = rest.partition(END)[2]
            write_text(PAGE, f"{before}{BEGIN}\n{table(known)}\n{END}{after}")
    print("\n".join(failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
