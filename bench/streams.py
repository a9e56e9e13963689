"""How many streams at the pace of speech one machine holds before their scores take longer than they may.

    python -m bench.streams --streams 10 20 30 --seconds 60
    python -m bench.streams --streams 10 --door native twilio whip
    python -m bench.streams --streams 10 20 40 --server daemon fleet
    python -m bench.streams --streams 1 2 4 8 16 20 --server daemon naive per-client
    python -m bench.streams --streams 4 8 12 16 20 24 --server daemon fleet --cores-each 0.3

Every stream speaks 40 % of the time (utterances of the demo call with silence between them) and begins at its own moment.
The programs that send share the machine with the daemon, so the figures are a lower bound. The doors are those of
`bench.senders`. "wait" runs from the decision that an utterance ended to its scores; "work" is queue, Whisper, other encoders
and ensemble, whenever they were done: with work ahead most of it lies in the silence that ends the utterance, and in its queue
it lets more urgent work pass. Twilio's door tells nothing, so its waits are read from Redis and its work is not known.
"slowest stream" is the largest median wait of a stream over that of all, or over 50 ms where that is less. Interim results are
those given, of those due.

lost         utterances without a final result in Redis, or on the connection where it tells results. Those there should be are
             found offline in the audio as the server decodes it; behind Opus they are those that the server found itself
repeated     final results beside the first of their event id, or of their utterance where it is found offline
unexpected   final results that the same audio does not have offline
failed       calls that ended before their audio did
missing      audio that did not arrive, as WebRTC's door tells it: "lost" on the way, "dropped" because nobody took it in time,
             or "paused", the sender's own doing or that of a machine too slow for it

Processor time and memory are those of the processes under test, without Redis: the peak is that since the streams began, and
per stream counts what it lies above the idle processes; of "per-client" all of it, whose models are its clients'. "fleet" is
two gateways, to which the streams are dealt out in turn, and three workers. Other servers are those of `bench.baselines`,
which have the native door alone; the first number of streams that one does not hold is its last. With --cores-each no process
gets more of the processors than that, as if each had a small machine to itself: what more machines are worth cannot be seen
where all of them share one. A run is held if nothing is missing and p95 of the wait lies below 500 ms.
"""

import argparse
import asyncio
import functools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import uvloop

from bench.document import Row, add_json, made, write
from bench.entries import Bounds, Entry, Tally, ended_entries, finals_of, tally, wanted_of
from bench.quota import limited
from bench.senders import DOORS, Heard, native, through_telephone, twilio, twilio_frames
from bench.speech import speaker, utterances
from bench.under_test import (
    BASELINES,
    CLIENTS,
    UnderTest,
    Usage,
    daemon_under_test,
    fleet_under_test,
    interval,
    told,
)
from bench.whip import Job, whip_callers
from model.audio import Samples

_LIMIT_MS = 500.0
_SOON_MS = 50.0
_PATIENCE_S = 60.0
_PERCENTILES = (50, 95, 99)

Servers = Callable[..., AbstractAsyncContextManager[UnderTest]]
"""Takes settings of the environment."""
Sent = Callable[[], Awaitable[list[Heard]]]

SERVERS: dict[str, Servers] = {
    "daemon": daemon_under_test,
    "fleet": fleet_under_test,
    **{kind: functools.partial(daemon_under_test, program=("bench.baselines", kind)) for kind in BASELINES},
}


@dataclass(frozen=True, slots=True)
class Load:
    """What is put on a server.

    Attributes:
        server: of `SERVERS`.
        door: of `bench.senders.DOORS`.
        streams: at the same time.
        seconds: of audio, each.
        interim_ms: distance of interim results.
        cores_each: that a process of the server may use; None leaves it all there is.
    """

    server: str
    door: str
    streams: int
    seconds: float
    interim_ms: int
    cores_each: float | None = None

    @property
    def calls(self) -> list[str]:
        """Their ids; the index is the speaker's seed."""
        return [f"{self.door}-{seed}" for seed in range(self.streams)]


@asynccontextmanager
async def _senders(load: Load, under_test: UnderTest, audio: Sequence[Samples]) -> AsyncIterator[Sent]:
    """All calls of a load, ready to be made: what costs the senders much is done before."""
    dealt = [under_test.ports[seed % len(under_test.ports)] for seed in range(load.streams)]
    if load.door == "whip":
        seeds = {port: {load.calls[seed]: seed for seed, to in enumerate(dealt) if to == port} for port in set(dealt)}
        jobs = [Job(port, calls, load.seconds, load.interim_ms) for port, calls in seeds.items()]
        async with whip_callers(jobs) as call:
            yield call
        return
    frames = [twilio_frames(one) for one in audio] if load.door == "twilio" else []

    async def send() -> list[Heard]:
        if load.door == "twilio":
            parts = zip(dealt, load.calls, frames, strict=True)
            return await asyncio.gather(*(twilio(*part, load.interim_ms) for part in parts))
        calls = zip(dealt, load.calls, audio, strict=True)
        return await asyncio.gather(*(native(*part, load.interim_ms) for part in calls))

    yield send


def wanted_at(door: str, audio: Samples) -> list[Bounds] | None:
    """The utterances that a server should find in `float32 [1, T]`; None behind Opus, which is not the same twice."""
    if door == "whip":
        return None
    return wanted_of(through_telephone(audio) if door == "twilio" else audio)


def row_of(load: Load, heard: Sequence[Heard], found: Sequence[Entry], wanted: Sequence[list[Bounds] | None]) -> Row:
    """What a run comes to, but for what its processes used."""
    counts, waits, work = Tally(), [], []
    for one, bounds in zip(heard, wanted, strict=True):
        if not one.failed:
            counts += tally(found, one.call, bounds, one.ids)
        elif any(entry["call"] == one.call for entry in found):  # what was taken before it failed must still be there
            counts += tally(found, one.call, None, None)
        silent = one.ids is None
        in_redis = [float(entry["lat_ms"]) for entry in finals_of(found, one.call)] if silent else []
        waits.append(in_redis if silent else [wait for wait, _ in one.times])
        work += [took for _, took in one.times]
    together = [wait for part in waits for wait in part]
    medians = [float(np.median(part)) for part in waits if part]
    row = asdict(load) | asdict(counts)
    row["failed"] = sorted(one.failed for one in heard if one.failed)
    for name, values in (("wait_ms", together), ("work_ms", work)):
        row[name] = {f"p{q}": interval(values, q) for q in _PERCENTILES} if values else {}
    row["slowest_stream"] = max(medians) / max(_SOON_MS, float(np.median(together))) if medians else None
    row["interims"] = sum(one.interims for one in heard)
    row["dropped_interims"] = sum(one.dropped for one in heard)
    missing = sum((Counter(one.missing_ms) for one in heard), Counter())
    row["missing_s"] = {reason: missing_ms / 1000 for reason, missing_ms in sorted(missing.items())}
    whole = counts.clean and not row["failed"] and not row["missing_s"]
    row["held"] = whole and bool(together) and row["wait_ms"]["p95"]["value"] < _LIMIT_MS
    return row


def line_of(row: Row) -> str:
    """A row in words."""
    parts = [f"{row['server']}, {row['door']}, {row['streams']:4} streams: {row['utterances']:5} utterances"]
    for name in ("wait", "work"):
        if spans := row[f"{name}_ms"]:
            parts.append(f"{name} " + ", ".join(f"{q} {told(span).strip()}" for q, span in spans.items()) + " ms")
    if row["slowest_stream"] is not None:
        parts.append(f"slowest stream {row['slowest_stream']:.1f}")
    if due := row["interims"] + row["dropped_interims"]:
        parts.append(f"interim results {row['interims']} of {due}")
    parts += [f"{row[name]} {name}" for name in ("lost", "repeated", "unexpected")]
    parts += [f"{missing_s:.1f} s of audio {reason}" for reason, missing_s in row["missing_s"].items()]
    parts += [f"{row['unended']} calls without an end"] if row["unended"] else []
    parts += [f"{len(row['failed'])} calls failed ({row['failed'][0]})"] if row["failed"] else []
    parts.append(f"{row['cores']:.2f} cores, {row['cpu_percent_per_stream']:.2f} % of one per stream")
    parts.append(f"peak {row['peak_mb']:.0f} MiB, {row['mb_per_stream']:.1f} MiB per stream")
    return ", ".join(parts) + (": held" if row["held"] else ": NOT held")


async def _measured(load: Load) -> Row:
    voices = utterances()
    audio = [speaker(voices, load.seconds, seed) for seed in range(load.streams)]
    settings = [f"{CLIENTS}={load.streams}"] if load.server in BASELINES else []
    async with SERVERS[load.server](*settings) as under_test, _senders(load, under_test, audio) as send:
        with nullcontext() if load.cores_each is None else limited(under_test.pids, load.cores_each):
            usage = Usage(under_test)
            heard = await send()
            used = usage.taken(load.streams)
        found = await ended_entries(under_test.redis, [one.call for one in heard if not one.failed], _PATIENCE_S)
    # What should be there is found afterwards: it is work that the streams would have felt.
    if load.server == "per-client":
        used["mb_per_stream"] = used["peak_mb"] / load.streams
    return row_of(load, heard, found, [wanted_at(load.door, one) for one in audio]) | used


def arguments_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options; without `arguments` those of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[10, 20, 30], help="numbers of streams to try")
    parser.add_argument("--seconds", type=float, default=60.0, help="audio per stream")
    parser.add_argument(
        *("--server", "--servers"),
        dest="servers",
        nargs="+",
        choices=list(SERVERS),
        default=["daemon"],
        help="what holds them",
    )
    parser.add_argument("--door", dest="doors", nargs="+", choices=DOORS, default=["native"], help="how they come in")
    parser.add_argument("--interim-ms", type=int, default=1000, help="distance of interim results, 0 for none")
    parser.add_argument("--cores-each", type=float, help="that each process of the server may use; it takes root")
    add_json(parser)
    options = parser.parse_args(arguments)
    if options.cores_each is not None and not options.cores_each > 0:
        parser.error(f"--cores-each is above 0, got {options.cores_each}")
    if (others := set(options.servers) & set(BASELINES)) and set(options.doors) != {"native"}:
        parser.error(f"{' and '.join(sorted(others))} have the native door alone, not {' '.join(options.doors)}")
    return options


async def _main() -> None:
    options = arguments_of()
    rows, held = [], {}
    for server in options.servers:
        for door in options.doors:
            held[server, door] = 0
            for count in options.streams:
                load = Load(server, door, count, options.seconds, options.interim_ms, options.cores_each)
                row = await _measured(load)
                rows.append(row)
                print(line_of(row), flush=True)  # noqa: T201  # a program
                if not row["held"]:
                    break
                held[server, door] = count
    counts = ", ".join(f"{server} {count} ({door})" for (server, door), count in held.items())
    print(f"streams held: {counts}")  # noqa: T201
    write(options.json, made("streams", rows))


if __name__ == "__main__":
    uvloop.run(_main())
