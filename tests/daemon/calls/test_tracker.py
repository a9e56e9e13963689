"""Calls followed in the process: alerts behind the results that raise them, a summary behind the last end."""

import asyncio

from daemon import wire
from daemon.calls.alerts import AlertRule, AlertRules
from daemon.calls.tracker import CallTracker
from daemon.messages import AlertEvent, Event, SummaryEvent
from daemon.sinks.memory import MemorySink
from model.labels import CLASSES
from tests.factories import make_call_event, make_emotion_event, make_info

RULE = AlertRule("upset", "customer", ("angry",), 0.5, None, 2, 0.0)


class Tracked:
    """A tracker, and everything that came out of it."""

    def __init__(self) -> None:
        self.sink = MemorySink()
        self.delivered: list[AlertEvent] = []
        self.calls = CallTracker(self.sink, AlertRules([RULE], CLASSES), self.delivered.append)

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.sink.events]

    def publish(self, *events: Event) -> None:
        for event in events:
            self.calls.publish(event)

    @property
    def summary(self) -> SummaryEvent:
        (found,) = [event for event in self.sink.events if isinstance(event, SummaryEvent)]
        return found


async def test_everything_passes_and_a_summary_ends_it() -> None:
    tracked = Tracked()
    events: list[Event] = [
        make_call_event("call.started"),
        make_emotion_event(0, top="happy"),
        make_emotion_event(1, interim=1, top="angry"),
        make_emotion_event(1, channel=1, top="neutral"),
        make_call_event("call.ended"),
    ]
    tracked.publish(*events)
    assert tracked.sink.events[:-1] == events
    summary = tracked.summary
    assert summary.event_id == "session-1:call.summary"
    assert [(role.role, role.utterances, role.speech_ms) for role in summary.summary.roles] == [
        ("customer", 1, 400.0),
        ("agent", 1, 400.0),
    ]
    assert summary.summary.roles[0].shares["happy"] == 1
    assert (summary.totals.finals, summary.reason) == (2, "the client closed")
    assert tracked.calls.following == 0


async def test_an_alert_follows_the_result_that_raises_it() -> None:
    tracked = Tracked()
    tracked.publish(make_call_event(), make_emotion_event(0), make_emotion_event(1), make_call_event("call.ended"))
    assert tracked.types == ["call.started", "emotion", "emotion", "alert", "call.ended", "call.summary"]
    assert [alert.event_id for alert in tracked.delivered] == ["session-1:0:1:alert:upset"]
    assert tracked.summary.summary.alerts == 1


async def test_interim_results_raise_nothing() -> None:
    tracked = Tracked()
    tracked.publish(make_call_event(), *(make_emotion_event(0, interim=n) for n in range(1, 5)))
    assert "alert" not in tracked.types


async def test_the_client_is_told_behind_its_result() -> None:
    tracked = Tracked()
    told: list[wire.Message] = []
    tracked.calls.listen("session-1", told.append)
    tracked.publish(make_call_event(), make_emotion_event(0), make_emotion_event(1))
    told.append({"type": "emotion"})  # as the pipeline does, once the event is published
    await asyncio.sleep(0)
    assert [message["type"] for message in told] == ["emotion", "alert"]
    tracked.publish(make_call_event("call.ended"), make_emotion_event(2), make_emotion_event(3))
    await asyncio.sleep(0)
    assert len(told) == 2, "a stream that ended is not told anything"


async def test_the_last_stream_of_a_call_gives_its_summary() -> None:
    tracked = Tracked()
    customer, agent = make_info(session="a", roles=("customer",)), make_info(session="b", roles=("agent",))
    tracked.publish(
        make_call_event(info=customer),
        make_call_event(info=agent),
        make_emotion_event(0, info=customer),
        make_call_event("call.ended", info=customer),
    )
    assert "call.summary" not in tracked.types
    tracked.publish(make_emotion_event(0, info=agent, top="happy"), make_call_event("call.failed", info=agent))
    summary = tracked.summary
    assert (summary.info.session, summary.info.roles, summary.summary.sessions) == ("b", ("customer", "agent"), 2)
    assert summary.reason == "the connection was lost"


async def test_a_call_that_comes_back_is_a_new_one_to_its_summary() -> None:
    tracked = Tracked()
    for session in ("a", "b"):
        info = make_info(session=session)
        ended = make_call_event("call.ended", info=info)
        tracked.publish(make_call_event(info=info), make_emotion_event(0, info=info), ended)
    summaries = [event for event in tracked.sink.events if isinstance(event, SummaryEvent)]
    assert [(event.event_id, event.summary.sessions) for event in summaries] == [
        ("a:call.summary", 1),
        ("b:call.summary", 1),
    ]
