"""The work between gateways and workers, in Redis: what each of them may do to it, one method each.

Every method is one round trip (reading a batch: two). None of them retries: its caller knows whether that makes sense.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from daemon.errors import UpstreamError
from daemon.fleet import scripts
from daemon.fleet.card import Card, read_card
from daemon.fleet.keys import GROUP, FleetKeys, channel_name
from daemon.fleet.settings import FleetSettings
from daemon.fleet.wire import Failure, Result, Work, encode_history, encode_result, encode_work
from daemon.sinks.redis import connect

AWAY: Final = (RedisError, OSError)
"""What a Redis that cannot be reached, or that refuses, looks like."""

_BLOCK_MS: Final = 1_000
"""How long a request for work waits for some: short, because a worker that stops waits for it too."""
_REPLY_S: Final = 10.0
_FORGET_S: Final = 3_600.0
"""A consumer without work for this long is forgotten."""

Accepted = Literal["stored", "waiting", "done", "gap"]
_Arguments = list[bytes | str | int]


class ExpiredError(UpstreamError):
    """An utterance waited for a worker for so long that Redis has forgotten it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A channel whose turn it is, as a worker was given it.

    Attributes:
        id: of the entry in the stream of work.
        channel: `daemon.fleet.keys.channel_name`.
    """

    id: str
    channel: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """Whose an utterance is: what there is to say of it where the utterance itself cannot be read."""

    event_id: str
    gateway: str
    call: str
    session: str
    channel: int
    index: int
    samples: int
    bundle: str

    @classmethod
    def of(cls, work: Work) -> "Ticket":
        """The ticket of an utterance."""
        info, u = work.info, work.utterance
        return cls(work.event_id, work.gateway, info.call, info.session, u.channel, u.index, len(u.audio), info.model)


@dataclass(frozen=True, slots=True)
class Taken:
    """What there is to do for an entry.

    Attributes:
        ticket: whose it is.
        data: the utterance, as `daemon.fleet.wire` writes it.
        history: of its channel, likewise.
        waited_ms: since it was accepted.
        attempt: how often it was begun, this time included.
        reason: why the attempt before failed, "" where it was the first, or its worker just died.
    """

    ticket: Ticket
    data: bytes
    history: bytes
    waited_ms: float
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """How much there is to do.

    Attributes:
        waiting: channels whose next utterance no worker has taken; what workers are scaled by.
        held: channels whose next utterance is with a worker.
        oldest_ms: how long the oldest of both has been on the stream.
        waiting_ms: how long the oldest of those that no worker has taken has been there.
        workers: that were heard of lately.
        interims: interim utterances that wait.
        dead: utterances that were given up, so far.
    """

    waiting: int
    held: int
    oldest_ms: float
    waiting_ms: float
    workers: int
    interims: int
    dead: int


class WorkStore:
    """The work of one bundle.

    Args:
        client: gives bytes, not text.
        keys: of the bundle.
        settings: limits and times.
    """

    def __init__(self, client: "Redis", keys: FleetKeys, settings: FleetSettings) -> None:
        self.keys = keys
        self.settings = settings
        self._redis = client
        register = client.register_script
        self._accept = register(scripts.ACCEPT)
        self._take = register(scripts.TAKE)
        self._finish = register(scripts.FINISH)
        self._release = register(scripts.RELEASE)
        self._beat = register(scripts.BEAT)
        self._leave = register(scripts.LEAVE)
        self._offer = register(scripts.OFFER)
        self._answer = register(scripts.ANSWER)
        self._status = register(scripts.STATUS)

    # --- gateways

    async def accept(self, work: Work, *, fenced: bool) -> Accepted:
        """Puts a final utterance behind the others of its channel; again and again is once.

        Args:
            work: what to score.
            fenced: whether it is refused ("gap") where the channel's utterance before it is not known to Redis.
        """
        name = _channel_of(work)
        history = b"" if work.history.deviation is None else encode_history(work.history)
        keys = [self.keys.work, self.keys.channel(name)]
        ticket = json.dumps(asdict(Ticket.of(work)))
        expiry_s = self.settings.expiry_s
        data = encode_work(work)
        arguments: _Arguments = [name, work.utterance.index, int(fenced), data, history, expiry_s, ticket]
        answer: bytes = await self._accept(keys, arguments)
        match answer:
            case b"stored":
                return "stored"
            case b"waiting":
                return "waiting"
            case b"done":
                return "done"
            case b"gap":
                return "gap"
            case _:
                raise UpstreamError(f"Redis says {answer!r} to an utterance: that is none of our answers")

    async def look(self, work: Work) -> tuple[bytes | None, bool]:
        """The result of a final utterance if it is there, and whether the utterance waits to be scored."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.get(self.keys.result(work.event_id))
            pipeline.hexists(self.keys.channel(_channel_of(work)), f"i:{work.utterance.index}")
            result, waiting = await pipeline.execute()
            return result, bool(waiting)

    async def result(self, event_id: str) -> bytes | None:
        """The result of an utterance if it is there."""
        found: Any = await self._redis.get(self.keys.result(event_id))
        return None if found is None else bytes(found)

    async def forget(self, event_id: str) -> None:
        """Drops a result that was read."""
        await self._redis.unlink(self.keys.result(event_id))

    async def notices(self, gateway: str, after: str) -> list[tuple[str, str]]:
        """Ids of the events whose results are there, each with what to ask `after` next time; waits for some."""
        found: Any = await self._redis.xread({self.keys.notices(gateway): after}, block=_BLOCK_MS)
        return [(at.decode(), fields[b"id"].decode()) for _, rows in found or () for at, fields in rows]

    async def offer(self, work: Work) -> bool:
        """Hands in an interim utterance; False where there is no room for it."""
        s, event_id = self.settings, work.event_id
        keys = [self.keys.interims, self.keys.interim(event_id), self.keys.workers]
        arguments: _Arguments = [event_id, encode_work(work), _ms(s.interim_s), s.interims_per_worker, _ms(s.alive_s)]
        return bool(await self._offer(keys, arguments))

    async def card(self) -> Card | None:
        """What workers say about their models; None where there never was one."""
        found: Any = await self._redis.get(self.keys.card)
        return None if found is None else read_card(found)

    # --- workers

    async def prepare(self) -> None:
        """Makes the group of workers, if there is none."""
        try:
            await self._redis.xgroup_create(self.keys.work, GROUP, "0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def read(self, consumer: str, count: int) -> list[Entry]:
        """Takes at most `count` channels from the stream; waits for some."""
        found: Any = await self._redis.xreadgroup(GROUP, consumer, {self.keys.work: ">"}, count=count, block=_BLOCK_MS)
        return _entries(row for _, rows in found or () for row in rows)

    async def claim(self, consumer: str, count: int) -> list[Entry]:
        """Takes at most `count` channels over from workers that were not heard of for the visibility timeout."""
        idle_ms = _ms(self.settings.visibility_s)
        found: Any = await self._redis.xautoclaim(self.keys.work, GROUP, consumer, idle_ms, "0-0", count=count)
        return _entries(found[1])

    async def take(self, entry: Entry, *, alone: bool) -> Taken | Literal["alone"] | None:
        """Begins an attempt; None where somebody else has done it.

        Args:
            entry: what was read or claimed.
            alone: whether the worker scores nothing beside it. Where it may be what ends its workers the last attempt has to
                be; it is not begun then, and the answer is "alone".

        Raises:
            ExpiredError: if nobody did, in time.
        """
        keys = [self.keys.work, self.keys.channel(entry.channel)]
        found: Any = await self._take(keys, [GROUP, entry.id, self.settings.attempts, int(alone)])
        if found is None:
            return None
        if found == b"alone":
            return "alone"
        if found == b"expired":
            raise ExpiredError(
                f"an utterance of {entry.channel} is lost: no worker took it for {self.settings.expiry_s} s"
            )
        ticket, data, history, waited_ms, attempt, reason = found
        return Taken(Ticket(**json.loads(ticket)), data, history, float(waited_ms), int(attempt), reason.decode())

    async def finish(self, entry: Entry, ticket: Ticket, result: Result) -> bool:
        """Hands in a result and lets the channel go on; False where somebody else has done so.

        A failure is a dead letter as well, and leaves the channel's history as it was.
        """
        s, k, name = self.settings, self.keys, entry.channel
        letter: list[str] = []
        history = b""
        if isinstance(result, Failure):
            fields = asdict(ticket) | {"reason": result.reason, "ts": time.time_ns() // 1_000_000}
            letter = [str(part) for field in fields.items() for part in field]
        elif result.history.deviation is not None:
            history = encode_history(result.history)
        keys = [k.work, k.channel(name), k.result(ticket.event_id), k.notices(ticket.gateway), k.dead]
        arguments: _Arguments = [GROUP, entry.id, name, ticket.index, ticket.event_id, encode_result(result), history]
        limits = [s.expiry_s, s.notices, s.dead_letters]
        return bool(await self._finish(keys, [*arguments, *limits, *letter]))

    async def release(self, entry: Entry, consumer: str, reason: str = "", *, begun: bool = True) -> None:
        """Gives an entry back.

        Args:
            entry: what we do not finish.
            consumer: who we are.
            reason: why our attempt failed: another is made a little later. "" where nothing is wrong with it: our attempt does
                not count, and anybody can take it at once.
            begun: whether there was an attempt.
        """
        keys = [self.keys.work, self.keys.channel(entry.channel)]
        visibility_ms = _ms(self.settings.visibility_s)
        arguments: _Arguments = [GROUP, entry.id, consumer, entry.channel, visibility_ms, reason, int(begun)]
        await self._release(keys, arguments)

    async def beat(self, consumer: str, card: bytes, held: Sequence[Entry]) -> None:
        """Says that a worker is there and still at work on what it holds."""
        keys = [self.keys.work, self.keys.workers, self.keys.card]
        arguments: _Arguments = [GROUP, consumer, _ms(self.settings.alive_s), card, *(entry.id for entry in held)]
        await self._beat(keys, arguments)

    async def leave(self, consumer: str) -> None:
        """Says that a worker ends."""
        await self._leave([self.keys.work, self.keys.workers], [GROUP, consumer, _ms(_FORGET_S)])

    async def next_interim(self) -> bytes | None:
        """An interim utterance that is still worth something, the newest first; waits for one; it is gone from Redis then."""
        found: Any = await self._redis.blpop([self.keys.interims], timeout=_BLOCK_MS / 1000)
        if found is None:
            return None
        data: Any = await self._redis.getdel(self.keys.interim(found[1].decode()))
        return None if data is None else bytes(data)

    async def answer(self, work: Work, result: Result) -> None:
        """Hands in the result of an interim utterance."""
        s, event_id = self.settings, work.event_id
        keys = [self.keys.result(event_id), self.keys.notices(work.gateway)]
        kept_ms = _ms(s.interim_s) + _BLOCK_MS
        await self._answer(keys, [event_id, encode_result(result), kept_ms, s.notices, s.expiry_s])

    # --- both

    async def status(self) -> Status:
        """How much there is to do."""
        k = self.keys
        found: list[int] = await self._status(
            [k.work, k.workers, k.interims, k.dead], [GROUP, _ms(self.settings.alive_s)]
        )
        waiting, held, oldest_ms, waiting_ms, workers, interims, dead = map(int, found)
        return Status(waiting, held, float(oldest_ms), float(waiting_ms), workers, interims, dead)


@asynccontextmanager
async def connected(url: str, bundle: str, settings: FleetSettings) -> AsyncIterator[tuple["Redis", WorkStore]]:
    """A connection to the Redis at `url`, and a bundle's work there; nothing is asked of it yet.

    Raises:
        ConfigError: if `url` is no Redis URL.
    """
    check = connect(url, reply_timeout_s=_REPLY_S)
    await check.aclose()
    options = check.connection_pool.connection_kwargs | {"decode_responses": False}
    client = Redis.from_url(url, **options)
    try:
        yield client, WorkStore(client, FleetKeys(bundle), settings)
    finally:
        await client.aclose()


def end_if_cancelled() -> None:
    """Ends a task that was cancelled: redis-py swallows a cancellation that meets it while it connects.

    Raises:
        CancelledError: if the running task was cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _channel_of(work: Work) -> str:
    return channel_name(work.info.session, work.utterance.channel)


def _entries(rows: Any) -> list[Entry]:
    """Entries without their fields were trimmed: there is nothing to do for them."""
    return [Entry(at.decode(), fields[b"channel"].decode()) for at, fields in rows if fields]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
