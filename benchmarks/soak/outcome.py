"""Count the results of trying one kind of fault many times."""

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """The results of trying one kind of fault: one row of the table in docs/reliability.md."""

    fault: str  # description of the fault
    seen: str  # what the user sees
    tried: int = 0  # number of tries
    survived: int = 0  # number of tries in which the program behaved as required
    failures: list[str] = field(default_factory=list)  # descriptions of the other tries
    longest_s: float | None = None  # the longest time until the process exited, if it is measured

    def count(self, is_well: bool, failure: str) -> None:
        """Count one try.

        `is_well`: whether the program behaved as required. `failure`: describes the try if not.
        """
        self.tried += 1
        self.survived += is_well
        if not is_well:
            self.failures.append(failure)
