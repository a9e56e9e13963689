"""Events to Redis Streams: one entry per event, in order, also across a Redis that goes away and comes back.

    publish -> Spool -> writer task -> batches of Lua calls -> `medusa:events` and `medusa:call:<call>`
                 ^                          |
                 '------- acknowledged -----'

Entries leave the spool once both of their streams have them. Everything else is a retry of the oldest batch, with
growing pauses, for as long as it takes: also for an entry that Redis refuses for good (a key of another type, say),
which would otherwise be lost silently. `healthy` then says what an operator has to repair.

An entry whose acknowledgement was lost on its way is sent again once Redis can be reached, and must be recognised then,
however long that took. So its seen keys live `unsure_ttl_s`, a month, until we know that Redis has it; after that,
`seen_ttl_s`, an hour, is enough for a late repetition, and Redis need not remember a month of events. Only an outage longer
than the month can repeat the entries of the one batch that was under way when it began.
"""

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha1
from itertools import takewhile
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from daemon.errors import ConfigError, UpstreamError
from daemon.messages import Event
from daemon.sinks.spool import Fields, Spool
from daemon.wire import redis_fields

_log = logging.getLogger(__name__)

APPEND: Final = """
-- KEYS: the stream, then one seen key per entry.
-- ARGV: longest stream, seconds until the stream expires (0: never), seconds that a seen key lives until we
--       acknowledge the entry; then per entry the number of its fields and values, and those.
-- XADD comes before SET: where it fails (no memory, read-only), the script ends, and the retry is no repetition.
local at = 4
for entry = 2, #KEYS do
  local count = tonumber(ARGV[at])
  if redis.call('EXISTS', KEYS[entry]) == 0 then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, at + 1, at + count))
    redis.call('SET', KEYS[entry], '', 'EX', ARGV[3])
  else
    redis.call('EXPIRE', KEYS[entry], ARGV[3])
  end
  at = at + count + 1
end
if ARGV[2] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return #KEYS - 1
"""
APPEND_SHA: Final = sha1(APPEND.encode(), usedforsecurity=False).hexdigest()

_TIMEOUT_S: Final = 5.0
"""For connecting and for a reply: a Redis that is slower than this counts as away."""

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_QUIET_S: Final = 5.0
"""Without events, the connection is tried this often, so that readiness notices a Redis that went away."""

_LAST_BATCH_S: Final = 2.0
"""How long `close` waits for the batch that is under way."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How the streams are named and kept.

    Attributes:
        events_key: the stream of all calls.
        call_prefix: with the call's id, the stream of one call.
        maxlen: entries that a stream keeps, approximately.
        call_ttl_s: a call's stream goes this long after its last entry; 0 for never.
        seen_ttl_s: how long a repeated event is recognised once its delivery was acknowledged.
        unsure_ttl_s: how long one is recognised whose acknowledgement did not reach us: the longest outage that
            repeats nothing.
        batch: entries per round trip.
    """

    events_key: str = "medusa:events"
    call_prefix: str = "medusa:call:"
    maxlen: int = 100_000
    call_ttl_s: int = 86_400
    seen_ttl_s: int = 3_600
    unsure_ttl_s: int = 30 * 86_400
    batch: int = 64

    def call_key(self, call: str) -> str:
        """The stream of one call. Braces in a client's call id would choose the Cluster slot: they are escaped."""
        return self.call_prefix + call.replace("{", "%7B").replace("}", "%7D")

    def seen_key(self, stream: str, event_id: str) -> str:
        """The key that tells that `stream` has the event; in the stream's own Cluster slot."""
        return f"{_tagged(stream)}:seen:{event_id}"

    @property
    def open_key(self) -> str:
        """The hash of streams that have not ended, see `daemon.calls.leases`."""
        return f"{_tagged(self.events_key)}:open"

    def alive_key(self, daemon: str) -> str:
        """The key that is there while a daemon lives."""
        return f"{_tagged(self.events_key)}:alive:{daemon}"

    def ending_key(self, daemon: str) -> str:
        """The key of whoever ends the streams of a daemon that is dead."""
        return f"{_tagged(self.events_key)}:ending:{daemon}"


def _tagged(key: str) -> str:
    """A beginning of key names that share the Cluster slot of `key`."""
    return key if "{" in key else f"{{{key}}}"


DEFAULT_STREAMS: Final = StreamSettings()


class RedisSink:
    """A `Sink` that publishes to Redis Streams.

    Args:
        url: `redis://` or `rediss://`, with user and password if need be.
        spool: where events wait; closed together with the sink.
        settings: names and limits of the streams.

    Attributes:
        published: entries that Redis took.
        retries: batches that failed and were tried again.

    Raises:
        ConfigError: if `url` is no Redis URL.
    """

    def __init__(self, url: str, *, spool: Spool, settings: StreamSettings = DEFAULT_STREAMS) -> None:
        self.published = 0
        self.retries = 0
        self._spool = spool
        self._settings = settings
        self._client = connect(url, reply_timeout_s=_TIMEOUT_S)
        self._writer: asyncio.Task[None] | None = None
        self._problem: str | None = "not connected to Redis yet"
        self._keeping = True
        self._quiet = False
        self._stopping = False
        self._settled: list[str] = []
        """Seen keys of entries that are acknowledged since the last round trip: they may go earlier."""
        self._arrived = asyncio.Event()
        self._empty = asyncio.Event()
        self._hurry = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Entries that Redis has not taken yet."""
        return len(self._spool)

    @property
    def spooled(self) -> int:
        """Entries that went to the disk, so far."""
        return self._spool.spooled

    @property
    def dropped_interims(self) -> int:
        """Interim events lost because the spool was full, so far."""
        return self._spool.dropped_interims

    @property
    def refused(self) -> int:
        """Final events lost because the spool was full of finals, so far."""
        return self._spool.refused

    async def start(self) -> None:
        """Begins to deliver, what an earlier process left on disk first."""
        self._writer = asyncio.create_task(self._run(), name="redis-writer")

    def publish(self, event: Event) -> None:
        """Accepts an event; never blocks."""
        kept = self._spool.append(redis_fields(event), interim=event.type == "emotion.interim")
        if self._keeping and not kept:
            _log.error("the spool takes no more: event %s is lost, more may follow", event.event_id)
        self._keeping = kept
        self._empty.clear()
        self._arrived.set()

    def healthy(self) -> str | None:
        """None where Redis takes events, else what is wrong."""
        return self._problem or self._spool.problem()

    async def drain(self, timeout_s: float) -> int:
        """Waits until everything accepted is delivered; returns how many events were still waiting at the end.

        What waits is on disk from here on, and so is what is published later: we may be killed while we wait.
        """
        self._spool.secure()
        if len(self._spool):
            self._hurry.set()
            await _within(self._empty, timeout_s)
        return len(self._spool)

    async def close(self) -> None:
        """Lets the batch under way end, then stops; what was not delivered stays on disk.

        Raises:
            UpstreamError: if the disk did not take it.
        """
        self._stopping = True
        self._arrived.set()
        self._hurry.set()
        try:
            if self._writer is not None:
                await asyncio.wait({self._writer}, timeout=_LAST_BATCH_S)
                self._writer.cancel()
                await asyncio.wait({self._writer})
            await self._client.aclose()
        finally:
            self._spool.close()

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                await self._step()
            except Exception as error:  # the boundary, one per batch: whatever it was, the batch waits in the spool
                failures += 1
                self.retries += 1
                self._tell(_reason(error))
                if await _within(self._hurry, _pause_s(failures)):
                    self._hurry.clear()
                    failures = 0
            else:
                failures = 0

    async def _step(self) -> None:
        """Delivers one batch; without one, waits for it."""
        if self._problem is not None:
            # The address may lead elsewhere by now: a read-only replica stays one for as long as we hold on to it.
            with suppress(Exception):
                await self._client.connection_pool.disconnect()
        if batch := self._spool.peek(self._settings.batch):
            await self._deliver(batch)
        elif self._problem is not None or self._quiet:
            await self._client.ping()
            await self._call("EVALSHA", APPEND_SHA, {})
        self._tell(None)
        if not len(self._spool):
            self._arrived.clear()
            self._empty.set()
            if not self._stopping:
                self._quiet = not await _within(self._arrived, _QUIET_S)

    async def _deliver(self, batch: Sequence[Fields]) -> None:
        """Adds the batch to its streams, and acknowledges it up to the first entry that one of them refused.

        Raises:
            UpstreamError: if a stream refused its entries.
        """
        streams: dict[str, list[Fields]] = {}
        for fields in batch:
            for key in self._keys(fields):
                streams.setdefault(key, []).append(fields)
        results = await self._call("EVALSHA", APPEND_SHA, streams)
        if any(isinstance(result, NoScriptError) for result in results):
            results = await self._call("EVAL", APPEND, streams)
        failed = {key: result for key, result in zip(streams, results, strict=True) if isinstance(result, Exception)}
        taken = sum(1 for _ in takewhile(lambda fields: failed.keys().isdisjoint(self._keys(fields)), batch))
        self._spool.ack(taken)
        self.published += taken
        for fields in batch[:taken]:
            self._settled += (self._settings.seen_key(key, fields["event_id"]) for key in self._keys(fields))
        for key, error in failed.items():
            raise UpstreamError(f"{_reason(error)} (stream {key!r})") from error

    async def _call(self, command: str, script: str, streams: Mapping[str, Sequence[Fields]]) -> list[Any]:
        """One call per stream, so that a stream has all of its entries or, where one fails, none behind that one.

        The seen keys of the batches before go along, to live no longer than they need to.
        """
        settled, self._settled = self._settled, []
        async with self._client.pipeline(transaction=False) as pipeline:
            for key, entries in streams.items():
                seen = [self._settings.seen_key(key, fields["event_id"]) for fields in entries]
                pipeline.execute_command(command, script, 1 + len(seen), key, *seen, *self._arguments(key, entries))
            for name in settled:
                pipeline.expire(name, self._settings.seen_ttl_s)
            results: list[Any] = await pipeline.execute(raise_on_error=False)
            return results[: len(streams)]

    def _arguments(self, key: str, entries: Sequence[Fields]) -> list[str | int]:
        settings = self._settings
        ttl_s = 0 if key == settings.events_key else settings.call_ttl_s
        arguments: list[str | int] = [settings.maxlen, ttl_s, settings.unsure_ttl_s]
        for fields in entries:
            arguments.append(2 * len(fields))
            for name, value in fields.items():
                arguments += (name, value)
        return arguments

    def _keys(self, fields: Fields) -> tuple[str, ...]:
        """The entry's streams; a gap that stands for several calls has no call of its own."""
        events, call = self._settings.events_key, fields["call"]
        return (events, self._settings.call_key(call)) if call else (events,)

    def _tell(self, problem: str | None) -> None:
        """Remembers the state for `healthy`, and logs where it changed."""
        if problem != self._problem:
            if problem is None:
                _log.info("Redis takes events, %d wait", len(self._spool))
            else:
                _log.warning("%s; %d events wait", problem, len(self._spool))
        self._problem = problem


def connect(url: str, *, reply_timeout_s: float) -> "Redis":
    """A client for `url` that leaves retrying to its caller.

    Raises:
        ConfigError: if `url` is no Redis URL.
    """
    try:
        client = Redis.from_url(
            url,
            protocol=2,
            decode_responses=True,
            # Half a surrogate pair in a client's text must not stop the stream.
            encoding_errors="replace",
            socket_connect_timeout=_TIMEOUT_S,
            socket_timeout=reply_timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        # This connects nothing, but only here redis-py notices an option that it does not know.
        client.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
    except TypeError as error:
        unknown = str(error).rpartition("() ")[2]
        raise ConfigError(f"not a Redis URL: an option behind its question mark is not known ({unknown})") from error
    except ValueError as error:
        # Not the URL itself: it may hold a password.
        raise ConfigError(f"not a Redis URL (redis://host:port/db expected): {error}") from error
    return client


def without_password(url: str) -> str:
    """A Redis URL as it may be shown: without user, password and options; also of a URL that is none."""
    address = url.partition("?")[0]
    _, at, host = address.rpartition("@")
    scheme, found, _ = address.partition("://")
    return f"{scheme}://***@{host}" if at and found else f"***@{host}" if at else address


def _reason(error: Exception) -> str:
    """What went wrong, for an operator. The first match counts: some of redis-py's errors are kinds of others."""
    match error:
        case UpstreamError():
            return str(error)
        case AuthenticationError() | AuthorizationError() | NoPermissionError():
            return f"Redis refuses our credentials: {error}"
        case BusyLoadingError():
            return "Redis is loading its data"
        case ReadOnlyError():
            return "Redis is a read-only replica"
        case OutOfMemoryError():
            return "Redis is out of memory (see maxmemory)"
        case ResponseError():
            return f"Redis refuses events: {error}"
        case RedisError() | OSError():
            return f"cannot reach Redis: {type(error).__name__}: {error}"
        case _:
            # A mistake of ours; its message may quote the event.
            return f"events cannot be sent: {type(error).__name__}"


def _pause_s(failures: int) -> float:
    """Doubles with every failure up to the cap; up to half of it is left to chance, so that many daemons spread out."""
    pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16))
    return pause * random.uniform(0.5, 1.0)


async def _within(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether the event comes in time."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
