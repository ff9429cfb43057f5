"""What the attacks share."""

import pytest


def cases(config: pytest.Config, small: int, large: int) -> range:
    """The seeds of an attack's cases: `--faults large` tries all of them, the suite the first few."""
    return range(large if config.getoption("--faults") == "large" else small)
