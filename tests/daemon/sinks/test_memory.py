"""The sink for tests and offline scoring."""

from daemon.interfaces import Sink
from daemon.messages import Event
from daemon.sinks.memory import MemorySink
from tests.factories import make_call_event, make_emotion_event


async def test_keeps_every_event_once_in_order() -> None:
    """As the Redis sink would publish them."""
    memory = MemorySink()
    sink: Sink = memory
    await sink.start()
    events: list[Event] = [make_call_event(), make_emotion_event(0, interim=1), make_emotion_event(0)]
    for event in [*events, *events]:
        sink.publish(event)
    assert await sink.drain(0.0) == 0
    assert sink.healthy() is None
    await sink.close()
    assert memory.events == events
