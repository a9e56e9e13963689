"""A sink that keeps its events: for tests, and for scoring files without a Redis."""

from daemon.messages import Event


class MemorySink:
    """A `Sink` whose other side is a list, which is always there.

    Attributes:
        events: everything published, in order, one entry per event id.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._seen: set[str] = set()

    @property
    def waiting(self) -> int:
        """Always 0."""
        return 0

    async def start(self) -> None:
        """Nothing to begin."""

    def publish(self, event: Event) -> None:
        """Keeps the event; one that was published before is not kept twice, as in Redis."""
        if event.event_id not in self._seen:
            self._seen.add(event.event_id)
            self.events.append(event)

    def healthy(self) -> str | None:
        """Always None."""
        return None

    async def drain(self, timeout_s: float) -> int:
        """Always 0: nothing waits."""
        return 0

    async def close(self) -> None:
        """Nothing to free; `events` stays readable."""
