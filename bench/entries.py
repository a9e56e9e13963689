"""What stands in Redis once calls are over, and what of it is lost, there twice, or nobody's."""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from redis.asyncio import Redis

from daemon.config import Config
from daemon.offline import cut
from model.audio import Samples, ms_from_samples

EVENTS: Final = "medusa:events"
_ENDS: Final = ("call.ended", "call.failed")
_POLL_S: Final = 0.5

Entry = dict[str, str]
Bounds = tuple[int, float, float]
"""An utterance: its channel, where it begins and where it ends, ms."""


async def entries(url: str, key: str = EVENTS) -> list[Entry]:
    """All entries of a stream."""
    async with Redis.from_url(url, decode_responses=True, protocol=2) as client:
        rows: Any = await client.xrange(key)
        return [fields for _, fields in rows]


async def ended_entries(url: str, calls: Collection[str], patience_s: float) -> list[Entry]:
    """All entries, once every one of `calls` has ended, or `patience_s` later."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience_s
    while True:
        found = await entries(url)
        if loop.time() > until or set(calls) <= {entry["call"] for entry in found if entry["type"] in _ENDS}:
            return found
        await asyncio.sleep(_POLL_S)


def finals_of(found: Iterable[Entry], call: str) -> list[Entry]:
    """A call's final results."""
    return [entry for entry in found if entry["call"] == call and entry["type"] == "emotion"]


def end_of(found: Iterable[Entry], call: str) -> Entry | None:
    """How a call ended; None if it did not."""
    return next((entry for entry in found if entry["call"] == call and entry["type"] in _ENDS), None)


def bounds_of(entry: Mapping[str, Any]) -> Bounds:
    """Where the utterance of an entry, or of an `emotion` message, lies."""
    return int(entry["channel"]), float(entry["start_ms"]), float(entry["end_ms"])


def wanted_of(audio: Samples) -> list[Bounds]:
    """Where the utterances of `float32 [channels, T]` at 16 kHz lie, found offline."""
    found = cut(audio, Config())
    return [(one.channel, ms_from_samples(one.start), ms_from_samples(one.end)) for one in found]


@dataclass(frozen=True, slots=True)
class Tally:
    """Results of calls, counted.

    Attributes:
        utterances: that there should be results of.
        lost: utterances without one in Redis, or, where results are told on the connection, there.
        repeated: results beside the first one of their event id, in Redis or on the connection, and, where utterances are
            known, of the same utterance under another id.
        unexpected: results of utterances that the same audio does not have offline.
        unended: calls without an end in Redis.
    """

    utterances: int = 0
    lost: int = 0
    repeated: int = 0
    unexpected: int = 0
    unended: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        mine, others = asdict(self), asdict(other)
        return Tally(**{name: mine[name] + others[name] for name in mine})

    @property
    def clean(self) -> bool:
        """Whether everything is there, once."""
        return not (self.lost or self.repeated or self.unexpected or self.unended)


def tally(
    found: Collection[Entry], call: str, wanted: Collection[Bounds] | None, heard: Collection[str] | None
) -> Tally:
    """Counts the results of one call.

    Args:
        found: all entries of the stream of all events.
        call: its id.
        wanted: its utterances found offline; None where the codec changes them: then the server's own total counts.
        heard: event ids of the finals on its connection; None where nothing is told there.
    """
    finals, end = finals_of(found, call), end_of(found, call)
    ids = Counter(entry["event_id"] for entry in finals)
    there = {bounds_of(entry) for entry in finals}
    repeated = _more_than_once(ids) + _more_than_once(Counter(heard or ()))
    if wanted is None:
        total = int(end["total_utterances"]) if end else len(ids)
        lost, unexpected = max(0, total - len(ids)), max(0, len(ids) - total)
    else:
        total = len(wanted)
        lost, unexpected = len(set(wanted) - there), len(there - set(wanted))
        repeated += len(ids) - len(there)
    if heard is not None:
        lost += len(set(ids) - set(heard))  # what is not in Redis either is counted already
    return Tally(total, lost, repeated, unexpected, int(end is None))


def _more_than_once(counts: "Counter[str]") -> int:
    return sum(count - 1 for count in counts.values())
