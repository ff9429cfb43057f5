"""How many cases the attacks have tried: `make faults` prints it at the end."""

from collections import Counter
from collections.abc import Callable

import pytest

Tried = Callable[[str], None]


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Tried:
    """Counts a case under the name of its attack."""
    return lambda attack: record_property("tried", attack)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line for each attack: its cases, and how many of them have failed."""
    cases, failed = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            names = [value for name, value in report.user_properties if name == "tried"]
            cases.update(names)
            failed.update(names[-1:] if outcome == "failed" else [])
    if cases and terminalreporter.config.getoption("--faults") == "large":
        lines = [f"| {name} | {count} | {failed[name]} |" for name, count in sorted(cases.items())]
        terminalreporter.write("\n".join(["", "| attack | cases | failed |", "| --- | --- | --- |", *lines, ""]))
