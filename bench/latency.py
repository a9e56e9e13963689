"""One stream at the pace of speech: how long after somebody stops speaking its emotion stands in Redis, and why.

    python -m bench.latency --seconds 120

end of speech      the last sample of the last speech window is spoken; a message leaves once its last sample is spoken
endpoint wait      silence that must pass before the utterance counts as ended (`endpoint_silence_ms`), in audio time
endpoint to score  from there to the scores: the work, or what is left of it where it was done ahead, in the silence
rest               the network, decoding, speech detection, Redis
work               queue, Whisper, other encoders, ensemble, whenever it was done

The same audio is streamed with work ahead (`ahead_silence_ms`) and without; the last line is the ratio of the two.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np

from bench.under_test import UnderTest, daemon_under_test, percentile
from daemon.client import paced, stream
from daemon.demo import OWN_CALL
from daemon.events import read_events
from model.audio import POST_PAD, SAMPLE_RATE_HZ, Samples, ms_from_samples
from model.recording import read_recording

_CHUNK_MS = 40


def _speech(seconds: float) -> Samples:
    """The demo call's customer over and over, `float32 [1, T]`."""
    voice = read_recording(OWN_CALL)[:1]
    return np.tile(voice, (1, int(np.ceil(seconds * SAMPLE_RATE_HZ / voice.shape[1]))))[
        :, : int(seconds * SAMPLE_RATE_HZ)
    ]


async def _timed(chunks: AsyncIterator[bytes], begun: "asyncio.Future[float]") -> AsyncIterator[bytes]:
    async for chunk in chunks:
        if not begun.done():
            begun.set_result(time.monotonic())
        yield chunk


async def _measure(daemon: UnderTest, seconds: float, interim_ms: int) -> float:
    """Prints a table; returns the median from end of speech to Redis, ms."""
    begun: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    arrived: list[tuple[float, dict[str, str]]] = []

    async def read() -> None:
        async for _, fields in read_events(daemon.redis, start="0"):
            if fields["type"] == "emotion":
                arrived.append((time.monotonic(), fields))
            if fields["type"] == "call.ended":
                return

    reading = asyncio.create_task(read())
    endpoint: dict[str, dict[str, float]] = {}
    chunks = _timed(paced(_speech(seconds), chunk_ms=_CHUNK_MS), begun)
    async for message in stream(daemon.url, chunks, sample_rate=SAMPLE_RATE_HZ, interim_ms=interim_ms):
        if message["type"] == "emotion" and message["final"]:
            endpoint[message["event_id"]] = message["latency_ms"]
    await reading
    rows = []
    for when, fields in arrived:
        spoken = float(fields["end_ms"]) - ms_from_samples(POST_PAD)
        total = (when - begun.result()) * 1000 + _CHUNK_MS - spoken
        latency = endpoint[fields["event_id"]]
        wait = latency["endpoint"] + ms_from_samples(POST_PAD)
        length = float(fields["end_ms"]) - float(fields["start_ms"])
        work = sum(latency[stage] for stage in ("queue", "asr", "encoders", "fusion"))
        rows.append((total, wait, latency["total"], total - wait - latency["total"], work, length))
    _print(np.array(rows), daemon, seconds)
    return float(np.median(np.array(rows)[:, 0]))


def _print(rows: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", daemon: UnderTest, seconds: float) -> None:
    names = ("end of speech to Redis", "endpoint wait", "endpoint to score", "rest", "work")
    print(f"{len(rows)} utterances, median length {np.median(rows[:, 5]) / 1000:.1f} s")  # noqa: T201  # a program
    for column, name in enumerate(names):
        values = rows[:, column].tolist()
        print(f"{name:24} p50 {percentile(values, 50)} ms   p95 {percentile(values, 95)} ms")  # noqa: T201
    share = np.median(rows[:, 4] / rows[:, 5])
    print(f"work / length of the utterance: {share:.3f}")  # noqa: T201
    print(f"processor time / audio time: {daemon.cpu_s() / seconds:.3f}; peak memory {daemon.peak_mb():.0f} MiB")  # noqa: T201


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="audio to stream")
    parser.add_argument("--interim-ms", type=int, default=1000, help="distance of interim results, 0 for none")
    parser.add_argument("--ahead-silence-ms", type=int, default=160, help="silence after which work begins ahead")
    options = parser.parse_args()
    medians = []
    for ahead_ms in (0, options.ahead_silence_ms):
        print(f"\nwork ahead after {ahead_ms} ms of silence" if ahead_ms else "\nno work ahead")  # noqa: T201  # a program
        async with daemon_under_test(f"MEDUSA_AHEAD_SILENCE_MS={ahead_ms}") as daemon:
            medians.append(await _measure(daemon, options.seconds, options.interim_ms))
    print(f"\nend of speech to Redis, with work ahead over without: {medians[1] / medians[0]:.2f}")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_main())
