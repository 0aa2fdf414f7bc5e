"""What tests did to break things, counted, for the table that a run ends with."""

from collections import Counter
from collections.abc import Iterable

import pytest

PROPERTY = "fault"


class Faults:
    """The faults of one test: `faults.count("a picture cut short", "named and left out", times=3)`."""

    def __init__(self, request: pytest.FixtureRequest):
        self._properties = request.node.user_properties

    def count(self, what: str, outcome: str, times: int = 1) -> None:
        """Say that a fault was made, and how it ended. That nothing was lost is the test's to assert."""
        self._properties.append((PROPERTY, (what, outcome, times)))  # reaches the report from any process


def table(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Return the rows of a Markdown table: a fault, how often, how it ended, the command that repeats it."""
    ends: dict[tuple[str, str], Counter[str]] = {}
    for report in reports:
        for what, outcome, times in (value for name, value in report.user_properties if name == PROPERTY):
            test = report.nodeid.split("[")[0]
            ends.setdefault((what, test), Counter())[outcome] += times
    rows = ["| what was done | times | how it ended | the test |", "|---|---|---|---|"]
    for (what, test), outcomes in ends.items():
        counted = [f"{times:,}: {outcome}" for outcome, times in outcomes.most_common()]
        ended = "; ".join(counted if len(outcomes) > 1 else outcomes)
        rows.append(f"| {what} | {outcomes.total():,} | {ended} | `{test}` |")
    return rows if ends else []
