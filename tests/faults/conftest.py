"""How many cases the attacks try: a few in the suite, all by `make faults`, which prints their numbers at the end."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

Tried = Callable[[str], None]
Case = TypeVar("Case")


def cases(config: pytest.Config, every: Sequence[Case], few: int) -> Sequence[Case]:
    """The cases of an attack: `--faults large` tries all of them, the suite the first few."""
    return every if config.getoption("--faults") == "large" else every[:few]


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
