"""The limits of a server, and whom it answers."""

from dataclasses import dataclass, replace

LOCAL = frozenset({"127.0.0.1", "localhost", "[::1]"})


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Args:
        key: What clients send as `Authorization: Bearer KEY`; None: they need none.
        hosts: The hosts that a request may be for, without port, against DNS rebinding; None: any, as the key protects.
        origins: Other origins whose pages may ask, as browsers name them.
        waiting: How many requests may wait.
        seconds: How long a request may take, with the time that it waits.
        body: The most bytes of a request's body.
        body_seconds: How long a body may take to come.
    """

    key: str | None = None
    hosts: frozenset[str] | None = LOCAL
    origins: tuple[str, ...] = ()
    waiting: int = 64
    seconds: float = 60.0
    body: int = 1 << 20
    body_seconds: float = 10.0

    def on(self, hosts: frozenset[str] | None) -> "Settings":
        """The same settings for other hosts."""
        return replace(self, hosts=hosts)
