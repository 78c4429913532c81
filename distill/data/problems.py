"""Report several problems of a data set in one message."""

from collections.abc import Sequence

from distill.errors import UserError

LISTED = 10  # a screen's worth; the rest is counted


def data_error(source: str, faults: Sequence[str], advice: str) -> UserError:
    """Return an error that names the data source, up to ten faults and what to do next."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    lines = [f"{count} in {source}:", *(f"  {fault}" for fault in faults[:LISTED])]
    if len(faults) > LISTED:
        lines.append(f"  and {len(faults) - LISTED} more")
    return UserError("\n".join([*lines, advice]))
