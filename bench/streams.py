"""How many streams at the pace of speech one machine holds before their scores take longer than they may.

    python -m bench.streams --streams 10 20 30 --seconds 60
    python -m bench.streams --streams 1 2 4 8 16 20 --servers daemon naive per-client

Every stream speaks 40 % of the time (utterances of the demo call with silence between them) and begins at its own moment.
The programs that send share the machine with the daemon, so the figures are a lower bound. "wait" runs from the decision that
an utterance ended to its scores; "work" is queue, Whisper, other encoders and ensemble, whenever they were done. "slowest
stream" is the largest median wait of a stream over that of all. Interim results are those that were given, of those due.
Other servers are those of `bench.baselines`; the first number of streams that one does not hold is its last.
"""

import argparse
import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import uvloop

from bench.baselines import KINDS
from bench.under_test import DAEMON, UnderTest, daemon_under_test, percentile
from daemon.client import paced, stream
from daemon.config import Config
from daemon.demo import OWN_CALL
from daemon.offline import cut
from model.audio import SAMPLE_RATE_HZ, Samples
from model.recording import read_recording

_SERVERS = {"daemon": DAEMON, **{kind: ("bench.baselines", kind) for kind in KINDS}}
_TALK = 0.4
_LIMIT_MS = 500.0


def utterances() -> list[Samples]:
    """What is said in the demo call, each `float32 [T]`."""
    return [utterance.audio for utterance in cut(read_recording(OWN_CALL), Config())]


def speaker(voices: list[Samples], seconds: float, seed: int) -> Samples:
    """One speaker, `float32 [1, T]`: utterances in random order, silences that leave 40 % speech."""
    rng = np.random.default_rng(seed)

    def parts() -> Iterator[Samples]:
        yield np.zeros(rng.integers(0, 5 * SAMPLE_RATE_HZ), np.float32)
        while True:
            speech = voices[rng.integers(len(voices))]
            yield speech
            pause = len(speech) * (1 / _TALK - 1) * rng.uniform(0.5, 1.5)
            yield np.zeros(int(pause), np.float32)

    wanted, joined = int(seconds * SAMPLE_RATE_HZ), np.zeros(0, np.float32)
    for part in parts():
        if len(joined) + len(part) > wanted:
            break  # nobody is cut off: the ends of all streams at once are no load that a day brings
        joined = np.concatenate([joined, part])
    return np.pad(joined, (0, wanted - len(joined)))[None]


@dataclass(slots=True)
class _Heard:
    """Of one stream: wait and work of every utterance (ms), and its interim results."""

    times: list[tuple[float, float]] = field(default_factory=list)
    interims: int = 0
    dropped: int = 0


async def _one(daemon: UnderTest, audio: Samples, interim_ms: int) -> _Heard:
    heard = _Heard()
    async for message in stream(daemon.url, paced(audio), sample_rate=SAMPLE_RATE_HZ, interim_ms=interim_ms):
        if message["type"] == "emotion" and message["final"]:
            latency = message["latency_ms"]
            work = sum(latency[stage] for stage in ("queue", "asr", "encoders", "fusion"))
            heard.times.append((latency["total"], work))
        elif message["type"] == "session.closed":
            heard.interims, heard.dropped = message["totals"]["interims"], message["totals"]["dropped_interims"]
    return heard


async def _hold(server: str, count: int, seconds: float, interim_ms: int) -> bool:
    voices = utterances()
    audio = [speaker(voices, seconds, seed) for seed in range(count)]
    async with daemon_under_test(program=_SERVERS[server]) as daemon:
        before = daemon.cpu_s()
        heard = await asyncio.gather(*(_one(daemon, a, interim_ms) for a in audio))
        parts = [one.times for one in heard]
        wait, work = (list(values) for values in zip(*(pair for part in parts for pair in part), strict=True))
        slowest = max(float(np.median([wait for wait, _ in part])) for part in parts if part) / float(np.median(wait))
        given, dropped = sum(one.interims for one in heard), sum(one.dropped for one in heard)
        cores = (daemon.cpu_s() - before) / seconds
        p95 = max(float(np.percentile(values, 95)) for values in (wait, work))
        print(  # noqa: T201  # a program
            f"{server} {count:4} streams: {len(work):5} utterances, "
            f"wait p50 {percentile(wait, 50)} ms, p95 {percentile(wait, 95)} ms, "
            f"work p50 {percentile(work, 50)} ms, p95 {percentile(work, 95)} ms, slowest stream {slowest:.1f}, "
            f"interim results {given} of {given + dropped}, {cores:.2f} cores, peak {daemon.peak_mb():.0f} MiB: "
            f"{'held' if p95 < _LIMIT_MS else 'NOT held'}"
        )
    return p95 < _LIMIT_MS


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[10, 20, 30], help="numbers of streams to try")
    parser.add_argument("--seconds", type=float, default=60.0, help="audio per stream")
    parser.add_argument("--servers", nargs="+", choices=list(_SERVERS), default=["daemon"], help="what holds them")
    parser.add_argument("--interim-ms", type=int, default=1000, help="distance of interim results, 0 for none")
    options = parser.parse_args()
    held = dict.fromkeys(options.servers, 0)
    for server in options.servers:
        for count in options.streams:
            if not await _hold(server, count, options.seconds, options.interim_ms):
                break
            held[server] = count
    print("streams held: " + ", ".join(f"{server} {count}" for server, count in held.items()))  # noqa: T201  # a program


if __name__ == "__main__":
    uvloop.run(_main())
