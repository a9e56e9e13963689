"""The calls of this process while they last: a sink in front of the sink, which adds alerts and summaries to the events.

A call is followed from the first of its streams in this process to the end of the last one; then its summary is published
and it is forgotten. A call whose streams come to several processes gets a summary from each, about the streams that it served.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from daemon import wire
from daemon.calls.alerts import AlertRules
from daemon.calls.attention import attention
from daemon.calls.state import CallState
from daemon.calls.summary import summarise
from daemon.interfaces import Sink
from daemon.messages import AlertEvent, CallEvent, CallInfo, EmotionEvent, Event, SummaryEvent, Totals
from daemon.wire import redis_fields
from model.audio import SAMPLES_PER_MS

Tell = Callable[[wire.Message], None]
Deliver = Callable[[AlertEvent], None]

_ENDS: Final = ("call.ended", "call.failed")


class CallTracker:
    """A `Sink`: what it is given goes on to `sink`, alerts and summaries behind it.

    Args:
        sink: where events go.
        rules: which results raise an alert.
        deliver: gets every alert too; never blocks.
    """

    def __init__(self, sink: Sink, rules: AlertRules, deliver: Deliver = lambda alert: None) -> None:
        self._sink = sink
        self._rules = rules
        self._deliver = deliver
        self._calls: dict[str, CallState] = {}
        self._listeners: dict[str, Tell] = {}
        self.start, self.healthy, self.drain, self.close = sink.start, sink.healthy, sink.drain, sink.close

    @property
    def waiting(self) -> int:
        """Events that the sink has not delivered yet."""
        return self._sink.waiting

    @property
    def following(self) -> int:
        """Calls that have not ended."""
        return len(self._calls)

    def listen(self, session: str, tell: Tell) -> None:
        """Has a stream's client told of its alerts, until the stream ends."""
        self._listeners[session] = tell

    def publish(self, event: Event) -> None:
        """Passes an event on, and what follows from it."""
        self._sink.publish(event)
        if isinstance(event, CallEvent):
            self._session(event)
        elif isinstance(event, EmotionEvent) and event.utterance.final:
            self._result(event)

    def _session(self, event: CallEvent) -> None:
        call = event.info.call
        state = self._calls.setdefault(call, CallState(call))
        state.fold(redis_fields(event))
        if event.type not in _ENDS:
            return
        self._listeners.pop(event.info.session, None)
        if not state.open_sessions:
            del self._calls[call]
            self._rules.forget(call)
            self._sink.publish(summary_of(state, event))

    def _result(self, event: EmotionEvent) -> None:
        call = event.info.call
        state = self._calls.setdefault(call, CallState(call))
        state.fold(redis_fields(event))
        (said,) = state.newest(1)
        for alert in self._rules.heard(said, event):
            state.fold(redis_fields(alert))
            self._sink.publish(alert)
            self._deliver(alert)
            if (tell := self._listeners.get(event.info.session)) is not None:
                # The client gets the result itself once we return, and its alert behind it.
                asyncio.get_running_loop().call_soon(tell, wire.alert_message(alert))


def summary_of(state: CallState, last: CallEvent) -> SummaryEvent:
    """What there is to say of a call, when its stream `last` has ended."""
    info = last.info
    roles = state.roles
    received = round(max(session.received_ms for session in state.sessions.values()) * SAMPLES_PER_MS)
    return SummaryEvent(
        info=CallInfo(info.call, info.session, roles, info.model, info.language),
        summary=summarise(
            state.said(),
            roles,
            duration_ms=state.duration_ms,
            sessions=len(state.sessions),
            alerts=len(state.alerts()),
            attention=attention(state, last.created_ms),
        ),
        totals=Totals(received_samples=received, finals=state.count),
        reason=last.reason,
        created_ms=last.created_ms,
    )
