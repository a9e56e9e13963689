"""What stands between the calls and their sink: every event is counted there, and told to who watches."""

import logging
from collections.abc import Callable

from daemon.interfaces import Sink
from daemon.messages import AlertEvent, EmotionEvent, Event
from daemon.metrics import Metrics

_log = logging.getLogger(__name__)


class WatchedSink:
    """A `Sink` that passes events on.

    Args:
        sink: where they go.
        metrics: counts them.

    Attributes:
        observers: told of every event behind its publication; they never block.
    """

    def __init__(self, sink: Sink, metrics: Metrics) -> None:
        self.observers: list[Callable[[Event], None]] = []
        self._sink = sink
        self._metrics = metrics
        self.start, self.healthy, self.drain, self.close = sink.start, sink.healthy, sink.drain, sink.close

    @property
    def waiting(self) -> int:
        """Events that the sink has not delivered yet."""
        return self._sink.waiting

    def publish(self, event: Event) -> None:
        """Passes an event on, then tells of it."""
        if isinstance(event, EmotionEvent):
            self._metrics.scored(event)
        elif isinstance(event, AlertEvent):
            self._metrics.alerted(event)
        self._sink.publish(event)
        for observe in self.observers:
            try:
                observe(event)
            except Exception:  # the boundary, one per observer: who only watches must not end a stream
                _log.exception("not all who watch were told of %s", event.event_id)
