"""The result of trying one kind of fault many times."""

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """One row of the table in docs/reliability.md."""

    fault: str
    seen: str  # what the user sees
    tried: int = 0
    survived: int = 0
    failures: list[str] = field(default_factory=list)  # one line per failed try
    longest_s: float | None = None  # the longest time until the process exited, if it is measured

    def count(self, is_well: bool, failure: str) -> None:
        """Count one try; `failure` describes it if it was not well."""
        self.tried += 1
        self.survived += is_well
        if not is_well:
            self.failures.append(failure)
