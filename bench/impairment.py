"""Calls over bad networks, and whether their neighbours notice.

    python -m bench.impairment --calls 4 --neighbours 4 --seconds 60
    python -m bench.impairment --only loss half-open

One daemon, and for each impairment so many calls at the pace of speech that suffer from it, beside neighbours that do not:

alone            nobody is beside the neighbours
unimpaired       the other calls have good networks too: what they cost by being there
loss             WebRTC, 5 % of the packets never arrive
heavy-loss       WebRTC, 20 % of them
jitter           WebRTC, packets are late by up to 120 ms and overtake each other
loss-and-jitter  WebRTC, both of it: 5 %, up to 120 ms
delay            WebSocket, 300 ms away in each direction, and now and then up to 300 ms more
half-open        WebSocket, in the middle of the call the network is silent for good, without a word to either side
slow-reader      WebSocket, the client speaks and never reads; interim results every 100 ms

Of each, what became of the calls: how much of their audio the daemon counted, utterances found of those that lie in it (a
final result overlaps each), finals with other probabilities than the offline score where the audio is the same (TCP changes
none), audio that was told to be missing, and how the calls ended. Of the neighbours: results that are lost, there twice,
unexpected, or more than 1e-4 from the offline score, and the wait for their scores, p95, over that of "alone".

The daemon gives up clients that say nothing or take nothing for ten seconds (limits.idle_timeout_s), and those for whom 16
messages wait (limits.outbox). Exit status 0 means that no neighbour's results were anything but right, and no result wrong.
"""

import argparse
import asyncio
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Final

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from bench.document import Row, add_json, made, write
from bench.entries import Bounds, Entry, Tally, bounds_of, end_of, ended_entries, finals_of, tally, wanted_of
from bench.relay import relay
from bench.senders import Heard, native
from bench.speech import speaker, utterances
from bench.under_test import UnderTest, daemon_under_test, interval, stream_url, told
from bench.whip import Job, whip_callers
from daemon.client import paced
from daemon.client import stream_url as with_parameters
from daemon.config import load_config
from daemon.offline import score_samples
from daemon.wire import redis_fields
from model.audio import SAMPLE_RATE_HZ, Samples
from model.labels import CLASSES

_SETTINGS: Final = ("MEDUSA_LIMITS__IDLE_TIMEOUT_S=10", "MEDUSA_LIMITS__OUTBOX=16")
_PATIENCE_S: Final = 60.0
_TOLERANCE: Final = 1e-4
_INTERIM_MS: Final = 1000
_OFTEN_MS: Final = 100
_FIRST_IMPAIRED: Final = 1000
"""Seeds of the calls that suffer; their neighbours' begin at 0."""

Offline = dict[Bounds, dict[str, float]]
"""Probabilities of the utterances of one recording."""
Calls = Callable[[], Awaitable[list[Heard]]]


@dataclass(frozen=True, slots=True)
class Impairment:
    """What is wrong with the network of some calls.

    Attributes:
        door: through which they come: native, whip, or none where there are no such calls.
        loss: share of the packets that are lost.
        delay_ms: how long everything takes.
        jitter_ms: how much longer it may take.
        silent: whether it goes silent in the middle of the call.
        reads: whether the client reads what it is told.
    """

    door: str
    loss: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    silent: bool = False
    reads: bool = True


IMPAIRMENTS: Final = {
    "alone": Impairment("none"),
    "unimpaired": Impairment("native"),
    "loss": Impairment("whip", loss=0.05),
    "heavy-loss": Impairment("whip", loss=0.2),
    "jitter": Impairment("whip", jitter_ms=120),
    "loss-and-jitter": Impairment("whip", loss=0.05, jitter_ms=120),
    "delay": Impairment("native", delay_ms=300, jitter_ms=300),
    "half-open": Impairment("native", silent=True),
    "slow-reader": Impairment("native", reads=False),
}


@dataclass(frozen=True, slots=True)
class Speaker:
    """A caller: the audio, `float32 [1, T]`, and what it scores offline."""

    seed: int
    audio: Samples
    offline: Offline


@dataclass(frozen=True, slots=True)
class Cast:
    """Who calls in every part of the run.

    Attributes:
        neighbours: whose networks are good.
        impaired: whose networks are not.
        seconds: of audio of each.
    """

    neighbours: list[Speaker]
    impaired: list[Speaker]
    seconds: float


async def never_reading(port: int, call: str, audio: Samples, interim_ms: int) -> Heard:
    """A call over `/v1/stream` whose client only ever sends."""
    heard = Heard(call)
    parameters = {"sample_rate": SAMPLE_RATE_HZ, "interim_ms": interim_ms, "call_id": call}
    narrow = socket.socket()
    # Before it connects, for these are agreed upon then: the system's own buffers would hold all results of an hour.
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    narrow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", port))
    url = with_parameters(stream_url(port), parameters)
    try:
        connection = await connect(url, sock=narrow, max_queue=1, ping_interval=None, compression=None)
        try:
            async for chunk in paced(audio):
                await connection.send(chunk)
            await connection.send('{"type": "close"}')
        finally:
            connection.transport.abort()
    except (OSError, ConnectionClosed, InvalidHandshake) as error:
        heard.failed = str(error)
    return heard


async def _through_relay(port: int, call: str, speaks: Speaker, impairment: Impairment, seconds: float) -> Heard:
    delay_s, jitter_s = impairment.delay_ms / 1000, impairment.jitter_ms / 1000
    async with relay(port, delay_s, jitter_s, speaks.seed) as network:
        calling = asyncio.create_task(native(network.port, call, speaks.audio, _INTERIM_MS))
        if not impairment.silent:
            return await calling
        await asyncio.sleep(seconds / 2)
        network.go_silent()
        done, _ = await asyncio.wait({calling}, timeout=seconds / 2)
        if done:
            return calling.result()
        calling.cancel()
        await asyncio.wait({calling})
        return Heard(call, "the network went silent")


@asynccontextmanager
async def _impaired(name: str, under_test: UnderTest, cast: Cast) -> AsyncIterator[Calls]:
    """The calls of an impairment, ready to be made."""
    impairment, port = IMPAIRMENTS[name], under_test.ports[0]
    calls = {f"{name}-{speaks.seed}": speaks for speaks in cast.impaired} if impairment.door != "none" else {}
    if impairment.door == "whip":
        seeds = {call: speaks.seed for call, speaks in calls.items()}
        job = Job(port, seeds, cast.seconds, _INTERIM_MS, impairment.loss, impairment.jitter_ms)
        async with whip_callers([job]) as call_all:
            yield call_all
        return

    async def one(call: str, speaks: Speaker) -> Heard:
        if not impairment.reads:
            return await never_reading(port, call, speaks.audio, _OFTEN_MS)
        if impairment.silent or impairment.delay_ms:
            return await _through_relay(port, call, speaks, impairment, cast.seconds)
        return await native(port, call, speaks.audio, _INTERIM_MS)

    async def all_of_them() -> list[Heard]:
        return await asyncio.gather(*(one(*pair) for pair in calls.items()))

    yield all_of_them


def wrong_of(finals: Collection[Entry], offline: Offline) -> int:
    """Final results of known utterances whose probabilities are not those of the offline score."""
    return sum(not _equal(entry, offline[bounds_of(entry)]) for entry in finals if bounds_of(entry) in offline)


def _equal(entry: Entry, wanted: dict[str, float]) -> bool:
    return all(abs(float(entry[f"p_{name}"]) - wanted[name]) <= _TOLERANCE for name in CLASSES)


def found_of(finals: Collection[Entry], wanted: Collection[Bounds]) -> int:
    """Utterances that a final result overlaps: behind lost packets, an utterance does not lie exactly where it lay."""
    there = [bounds_of(entry) for entry in finals]
    return sum(any(c == channel and a < end and b > start for c, a, b in there) for channel, start, end in wanted)


def impaired_row(name: str, found: Collection[Entry], heard: Sequence[Heard], cast: Cast) -> Row:
    """What became of the calls that suffered."""
    ends: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    received_ms = 0.0
    for one, speaks in zip(heard, cast.impaired, strict=False):  # nobody suffers where nobody is beside the neighbours
        finals, end = finals_of(found, one.call), end_of(found, one.call)
        ends[end["reason"] if end else "no end"] += 1
        arrived_ms = float(end["total_received_ms"]) if end else 1000 * cast.seconds
        received_ms += arrived_ms
        there = [bounds for bounds in speaks.offline if bounds[2] <= arrived_ms]
        counts["utterances"] += len(there)
        counts["found"] += found_of(finals, there)
        counts["wrong"] += wrong_of(finals, speaks.offline) if IMPAIRMENTS[name].door == "native" else 0
        counts["gaps"] += one.gaps
    keys = ("utterances", "found", "wrong", "gaps")
    return {
        "impairment": name,
        **asdict(IMPAIRMENTS[name]),
        "calls": len(heard),
        "received_s": received_ms / 1000,
        "sent_s": len(heard) * cast.seconds,
        **{key: counts[key] for key in keys},
        "missing_ms": sum(sum(one.missing_ms.values()) for one in heard),
        "ends": dict(ends),
        "failed": sorted({one.failed for one in heard if one.failed}),
    }


def neighbours_row(found: Collection[Entry], heard: Sequence[Heard], cast: Cast) -> Row:
    """What became of the others."""
    counts, wrong = Tally(), 0
    for one, speaks in zip(heard, cast.neighbours, strict=True):
        counts += tally(found, one.call, speaks.offline.keys(), one.ids)
        wrong += wrong_of(finals_of(found, one.call), speaks.offline)
    waits = [wait for one in heard for wait, _ in one.times]
    failed = sorted(one.failed for one in heard if one.failed)
    return {
        **asdict(counts),
        "wrong": wrong,
        "failed": failed,
        "wait_ms": {f"p{q}": interval(waits, q) for q in (50, 95)} if waits else {},
        "right": counts.clean and not wrong and not failed,
    }


async def _measured(name: str, under_test: UnderTest, cast: Cast) -> Row:
    port = under_test.ports[0]
    names = [f"{name}-neighbour-{speaks.seed}" for speaks in cast.neighbours]
    async with _impaired(name, under_test, cast) as suffering:
        calls = zip(names, cast.neighbours, strict=True)
        beside = asyncio.gather(*(native(port, call, speaks.audio, _INTERIM_MS) for call, speaks in calls))
        heard, well = await asyncio.gather(suffering(), beside)
    found = await ended_entries(under_test.redis, [*names, *(one.call for one in heard)], _PATIENCE_S)
    return impaired_row(name, found, heard, cast) | {"neighbours": neighbours_row(found, well, cast)}


def lines_of(row: Row, alone_ms: float | None) -> list[str]:
    """A row in words.

    Args:
        row: of one impairment.
        alone_ms: p95 of the neighbours' waits with nobody beside them.
    """
    lines = []
    if row["calls"]:
        ends = ", ".join(f"{count} {reason}" for reason, count in sorted(row["ends"].items()))
        lines.append(
            f"{row['impairment']:16}{row['calls']:3} calls, {row['received_s']:.0f} of {row['sent_s']:.0f} s of audio, "
            f"{row['found']} of {row['utterances']} utterances found, {row['wrong']} wrong, "
            f"{row['gaps']} gaps ({row['missing_ms']:.0f} ms), ended: {ends}"
        )
    beside = row["neighbours"]
    p95 = beside["wait_ms"].get("p95")
    waits = f"wait p95 {told(p95)} ms" if p95 else "nothing heard"
    ratio = (
        f" = {p95['value'] / alone_ms:.2f} of that alone" if p95 and alone_ms and row["impairment"] != "alone" else ""
    )
    troubles = ", ".join(f"{beside[key]} {key}" for key in ("lost", "repeated", "unexpected", "wrong"))
    failed = f", {len(beside['failed'])} failed ({beside['failed'][0]})" if beside["failed"] else ""
    head = "" if row["calls"] else row["impairment"]
    lines.append(f"{head:16}    neighbours: {beside['utterances']} utterances, {troubles}{failed}, {waits}{ratio}")
    return lines


def status_of(rows: Sequence[Row]) -> int:
    """The exit status: 1 where a neighbour's results are not right, or probabilities of a call that suffers are wrong."""
    return int(not all(row["neighbours"]["right"] and not row["wrong"] for row in rows))


async def _speakers(seeds: Sequence[int], seconds: float) -> list[Speaker]:
    voices, config, made_up = utterances(), load_config(None, {}), []
    for seed in seeds:
        audio = speaker(voices, seconds, seed)
        entries = [redis_fields(event) for event in await score_samples(audio, config)]
        offline = {bounds_of(entry): {name: float(entry[f"p_{name}"]) for name in CLASSES} for entry in entries}
        assert set(offline) == set(wanted_of(audio))
        made_up.append(Speaker(seed, audio, offline))
    return made_up


def arguments_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options; without `arguments` those of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4, help="calls that suffer, of each impairment")
    parser.add_argument("--neighbours", type=int, default=4, help="calls that do not")
    parser.add_argument("--seconds", type=float, default=60.0, help="audio per call")
    parser.add_argument("--only", nargs="+", choices=[name for name in IMPAIRMENTS if name != "alone"], metavar="NAME")
    add_json(parser)
    return parser.parse_args(arguments)


async def _main() -> int:
    options = arguments_of()
    first, most = _FIRST_IMPAIRED, _FIRST_IMPAIRED + options.calls
    neighbours = await _speakers(range(options.neighbours), options.seconds)
    cast = Cast(neighbours, await _speakers(range(first, most), options.seconds), options.seconds)
    rows, alone_ms = [], None
    async with daemon_under_test(*_SETTINGS) as under_test:
        for name in ["alone", *(options.only or list(IMPAIRMENTS)[1:])]:
            row = await _measured(name, under_test, cast)
            rows.append(row)
            if name == "alone" and row["neighbours"]["wait_ms"]:
                alone_ms = row["neighbours"]["wait_ms"]["p95"]["value"]
            for line in lines_of(row, alone_ms):
                print(line, flush=True)  # noqa: T201  # a program
    write(options.json, made("impairment", rows, neighbours=options.neighbours, seconds=options.seconds))
    return status_of(rows)


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
