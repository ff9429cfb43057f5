"""Counts of a server, as Prometheus reads them."""

from collections import Counter
from collections.abc import Iterator, Mapping

_BOUNDS = (0.01, 0.025, 0.05, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
_HELP = {
    "lightgpt2_requests_total": ("counter", "Answers by path and status."),
    "lightgpt2_tokens_total": ("counter", "Tokens that were read and written."),
    "lightgpt2_request_seconds": ("histogram", "Time from a request to the end of its answer."),
    "lightgpt2_waiting_requests": ("gauge", "Requests that wait for the model."),
    "lightgpt2_running_requests": ("gauge", "Requests that are computed."),
}


class Metrics:
    """Counts by name and labels. It is used by one thread."""

    def __init__(self) -> None:
        self._counts = Counter[tuple[str, str]]()

    def add(self, name: str, amount: float = 1, **labels: str | int) -> None:
        """Add to a count."""
        self._counts[name, _written(labels)] += amount  # type: ignore[assignment]

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.add("lightgpt2_requests_total", path=path, status=status)
        for bound in [*_BOUNDS, float("inf")]:
            if seconds <= bound:
                le = "+Inf" if bound == float("inf") else str(bound)
                self.add("lightgpt2_request_seconds_bucket", path=path, le=le)
        self.add("lightgpt2_request_seconds_sum", seconds, path=path)
        self.add("lightgpt2_request_seconds_count", path=path)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All counts, and gauges as they are now, in Prometheus' text format."""
        return "\n".join([*self._lines(gauges), ""])

    def _lines(self, gauges: Mapping[str, float]) -> Iterator[str]:
        values = {**self._counts, **{(name, ""): value for name, value in gauges.items()}}
        for name, (kind, text) in _HELP.items():
            yield f"# HELP {name} {text}"
            yield f"# TYPE {name} {kind}"
            named = sorted(key for key in values if key[0] == name or (kind == "histogram" and key[0].startswith(name)))
            yield from (f"{each}{labels} {values[each, labels]:g}" for each, labels in named)


def _written(labels: Mapping[str, str | int]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""
