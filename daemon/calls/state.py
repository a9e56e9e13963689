"""One call, folded from the entries of its streams. Sans-IO: no clock, no Redis.

Several sessions may share a call: one per party, or a stream that was connected again. Each session counts its audio from
0; on the call's clock it begins as much later than the first one as its `call.started` was made later. That is as exact as the
parties' connections are quick; one stream with two channels is exact to the sample.

Folding entries again, or those of one session before or after those of another, gives the same call, as long as it
has at most `MAX_SAID` results.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from math import isfinite
from typing import Final, Literal

from daemon.calls.said import Said
from model.labels import CLASSES

Status = Literal["live", "lost", "ended", "failed"]

LOST_AFTER_MS: Final = 30 * 60_000
"""A live call that says nothing for this long is called lost: the process that served it may have been killed. The next
event of it makes it live again."""

MAX_ROLES: Final = 8
"""Roles beyond this are left out: a call id that everybody uses must not grow without end."""
MAX_SESSIONS: Final = 256
MAX_SAID: Final = 2_000
"""Utterances that are kept, about two hours; the oldest go first."""
MAX_ALERTS: Final = 200


@dataclass(slots=True)
class Session:
    """One stream of a call.

    Attributes:
        begun_ms: when it began, ms since 1970.
        seen_begin: whether its `call.started` was seen; else `begun_ms` is reckoned from its first result.
        end: how it ended; None while it lasts.
        ended_ms: when, ms since 1970.
        reason: why.
        received_ms: audio received, known at its end.
    """

    begun_ms: int
    seen_begin: bool = False
    end: Literal["ended", "failed"] | None = None
    ended_ms: int = 0
    reason: str = ""
    received_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Raised:
    """An alert of the call.

    Attributes:
        event_id: of its entry.
        rule: its name.
        role: about whom.
        at_ms: the end of the utterance that raised it, on the call's clock.
        start_ms: the beginning of what raised it, on the call's clock.
        emotions: of the rule.
        score: mean of the rule's emotions over what raised it.
        ts: when, ms since 1970.
    """

    event_id: str
    rule: str
    role: str
    at_ms: float
    start_ms: float
    emotions: str
    score: float
    ts: int


@dataclass(frozen=True, slots=True)
class Now:
    """The newest result of a role, interim or final; made at `ts`, ms since 1970."""

    top: str
    confidence: float
    abstained: bool
    final: bool
    ts: int


@dataclass(slots=True)
class CallState:
    """What is known of one call.

    Attributes:
        call: its id.
        model: id of the bundle that scored it last.
        updated_ms: when its newest event was made, ms since 1970.
        metadata: the client's own pairs.
        sessions: by id.
        now: newest result per role.
        dropped: results left out because there were too many.
    """

    call: str
    max_said: int = MAX_SAID
    model: str = ""
    updated_ms: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    now: dict[str, Now] = field(default_factory=dict)
    dropped: int = 0
    _roles: dict[str, None] = field(default_factory=dict)
    _said: dict[tuple[str, int, int], Said] = field(default_factory=dict)
    """On their own session's clock; moved to the call's where they are asked for."""
    _alerts: dict[str, tuple[str, Raised]] = field(default_factory=dict)
    """Session and alert, by event id."""

    def fold(self, fields: Mapping[str, str]) -> bool:
        """Takes an entry; whether it changed anything that is shown.

        Raises:
            ValueError: if the entry is none of ours; the state is as before.
            KeyError: likewise.
        """
        kind, ts = fields["type"], int(fields["ts"])
        match kind:
            case "call.started" | "call.ended" | "call.failed":
                changed = self._fold_session(kind, fields, ts)
            case "emotion" | "emotion.interim":
                changed = self._fold_result(fields, ts, final=kind == "emotion")
            case "alert":
                changed = self._fold_alert(fields, ts)
            case _:
                return False
        if changed:
            self.updated_ms = max(self.updated_ms, ts)
            self.model = fields["model"]
        return changed

    @property
    def begun_ms(self) -> int:
        """When its first stream began, ms since 1970."""
        return min((session.begun_ms for session in self.sessions.values()), default=self.updated_ms)

    @property
    def roles(self) -> tuple[str, ...]:
        """In the order in which they came."""
        return tuple(self._roles)

    @property
    def open_sessions(self) -> int:
        """Streams that have not ended."""
        return sum(session.end is None for session in self.sessions.values())

    def status(self, now_ms: int) -> Status:
        """Live while a stream lasts; failed if any did not end well."""
        if self.open_sessions:
            return "lost" if now_ms - self.updated_ms > LOST_AFTER_MS else "live"
        return "failed" if any(session.end == "failed" for session in self.sessions.values()) else "ended"

    @property
    def duration_ms(self) -> float:
        """From the beginning of the first stream to the end of what is known of any."""
        begun = self.begun_ms
        received = [s.begun_ms - begun + s.received_ms for s in self.sessions.values()]
        heard = [self._offset(key[0]) + said.end_ms for key, said in self._said.items()]
        return max((*received, *heard), default=0.0)

    @property
    def count(self) -> int:
        """Final results so far, those that are not kept any more included."""
        return len(self._said) + self.dropped

    def said(self) -> list[Said]:
        """Final results on the call's clock, in order of their beginnings."""
        offsets = {session: self._offset(session) for session in self.sessions}
        moved = (_moved(one, offsets.get(key[0], 0.0)) for key, one in self._said.items())
        return sorted(moved, key=lambda one: (one.start_ms, one.role))

    def newest(self, count: int) -> list[Said]:
        """The last `count` final results to arrive, on the call's clock, in order of arrival."""
        keys = list(islice(reversed(self._said), count))
        return [_moved(self._said[key], self._offset(key[0])) for key in reversed(keys)]

    def alerts(self) -> list[Raised]:
        """On the call's clock, in order."""
        moved = []
        for session, raised in self._alerts.values():
            by_ms = self._offset(session)
            moved.append(replace(raised, at_ms=raised.at_ms + by_ms, start_ms=raised.start_ms + by_ms))
        return sorted(moved, key=lambda raised: raised.at_ms)

    def absorb(self, other: "CallState") -> None:
        """Takes what only `other`, the same call read elsewhere, knows already."""
        for session, known in other.sessions.items():
            self.sessions.setdefault(session, known)
        self._roles |= {role: None for role in other._roles if len(self._roles) < MAX_ROLES}
        if not self.dropped:
            for key, one in other._said.items():
                self._said.setdefault(key, one)
        self._alerts = {**self._alerts, **other._alerts}
        for role, now in other.now.items():
            if role not in self.now or self.now[role].ts < now.ts:
                self.now[role] = now
        self.updated_ms = max(self.updated_ms, other.updated_ms)

    def _offset(self, session: str) -> float:
        known = self.sessions.get(session)
        return float(known.begun_ms - self.begun_ms) if known else 0.0

    def _session(self, fields: Mapping[str, str], begun_ms: int) -> Session:
        found = self.sessions.get(fields["session"])
        if found is None:
            while len(self.sessions) >= MAX_SESSIONS:
                self._forget(next(iter(self.sessions)))
            found = self.sessions[fields["session"]] = Session(begun_ms)
        return found

    def _knows(self, role: str) -> bool:
        """Whether the role is one of the call's, now if not before."""
        if role not in self._roles and len(self._roles) < MAX_ROLES:
            self._roles[role] = None
        return role in self._roles

    def _forget(self, session: str) -> None:
        del self.sessions[session]
        gone = [key for key in self._said if key[0] == session]
        for key in gone:
            del self._said[key]
        self.dropped += len(gone)

    def _fold_session(self, kind: str, fields: Mapping[str, str], ts: int) -> bool:
        received_ms = _number(fields["total_received_ms"])
        known = self.sessions.get(fields["session"])
        session = self._session(fields, round(ts - received_ms))
        before = (session.seen_begin, session.end)
        for role in fields["role"].split(","):
            self._knows(role)
        self.metadata |= {name.removeprefix("meta_"): fields[name] for name in fields if name.startswith("meta_")}
        if kind == "call.started":
            session.begun_ms, session.seen_begin = ts, True
        else:
            session.end = "ended" if kind == "call.ended" else "failed"
            session.ended_ms, session.reason, session.received_ms = ts, fields["reason"], received_ms
        return known is None or before != (session.seen_begin, session.end)

    def _fold_result(self, fields: Mapping[str, str], ts: int, *, final: bool) -> bool:
        key = fields["session"], int(fields["channel"]), int(fields["utterance"])
        one = _said_of(key, fields)
        if not self._knows(one.role):
            return False
        self._session(fields, round(ts - one.end_ms))
        changed = self._newer(one, ts, final=final)
        if final and key not in self._said:
            self._said[key] = one
            changed = True
            while len(self._said) > self.max_said:
                del self._said[next(iter(self._said))]
                self.dropped += 1
        return changed

    def _newer(self, one: Said, ts: int, *, final: bool) -> bool:
        """Remembers the newest result of a role; one that is read again is not newer."""
        old = self.now.get(one.role)
        if old is not None and (ts, final) <= (old.ts, old.final):
            return False
        self.now[one.role] = Now(one.top, one.confidence, one.abstained, final, ts)
        return True

    def _fold_alert(self, fields: Mapping[str, str], ts: int) -> bool:
        if fields["event_id"] in self._alerts:
            return False
        raised = Raised(
            fields["event_id"],
            fields["rule"],
            fields["role"],
            _number(fields["end_ms"]),
            _number(fields["start_ms"]),
            fields["emotions"],
            _number(fields["score"]),
            ts,
        )
        self._session(fields, round(ts - raised.at_ms))
        self._alerts[raised.event_id] = fields["session"], raised
        while len(self._alerts) > MAX_ALERTS:
            del self._alerts[next(iter(self._alerts))]
        return True


def _said_of(key: tuple[str, int, int], fields: Mapping[str, str]) -> Said:
    """A result on its session's clock."""
    return Said(
        key,
        fields["role"],
        _number(fields["start_ms"]),
        _number(fields["end_ms"]),
        tuple(_number(fields[f"p_{name}"]) for name in CLASSES),
        _known(fields["arousal"]),
        _known(fields["valence"]),
        fields["abstained"] == "1",
        fields["text"],
        fields["text_trusted"] == "1",
    )


def _known(text: str) -> float | None:
    return _number(text) if text else None


def _number(text: str) -> float:
    """A finite one: an entry of somebody else's may hold anything."""
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text!r} is no number that an entry of ours holds")
    return value


def _moved(one: Said, by_ms: float) -> Said:
    return replace(one, start_ms=one.start_ms + by_ms, end_ms=one.end_ms + by_ms) if by_ms else one
