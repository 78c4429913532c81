"""What a part of the soak says of each fault it tried."""

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """One line of the table: how often a fault was tried, how often all was well, what is seen."""

    fault: str
    seen: str
    tried: int = 0
    survived: int = 0
    failures: list[str] = field(default_factory=list)  # what was not as wanted
    longest_s: float | None = None  # where time counts

    def count(self, is_well: bool, what: str) -> None:
        """One more try; `what` says which, where it was not well."""
        self.tried += 1
        self.survived += is_well
        if not is_well:
            self.failures.append(what)
