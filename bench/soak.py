"""Calls that come and go for an hour: whether memory, descriptors, threads or tasks grow.

    python -m bench.soak --minutes 60 --streams 6

Every stream is a call at the pace of speech that ends as calls do: closed by its client, hung up in the middle, or cut off
while the daemon keeps it for a client that never comes back; then another begins. Samples are taken every quarter of a minute.
Growth is the slope of a straight line (Theil and Sen) through those behind the warm-up; its 95 % interval comes from a
bootstrap over successive parts of them. Before and after are counts of the idle daemon.
"""

import argparse
import asyncio
import contextlib
import re
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import uvloop

from bench.document import Row, add_json, made, write
from bench.speech import speaker, utterances
from bench.under_test import UnderTest, daemon_under_test
from daemon.client import paced, stream
from model.audio import SAMPLE_RATE_HZ, Samples

_EVERY_S: Final = 15.0
_PARTS: Final = 10
_RESAMPLES: Final = 1000
_WARM_UP: Final = 0.25
_SETTLED_S: Final = 5.0
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a daemon holds at a moment: resident memory (MiB), open descriptors, threads, tasks, streams."""

    memory: float
    descriptors: float
    threads: float
    tasks: float
    streams: float


def taken(daemon: UnderTest) -> Sample:
    """A sample of a running daemon."""
    proc = Path(f"/proc/{daemon.pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    with urllib.request.urlopen(daemon.url.replace("ws://", "http://").partition("/v1")[0] + "/metrics") as answer:
        page = answer.read().decode()
    tasks, streams = (re.search(rf"^medusa_{name} (\S+)", page, re.MULTILINE) for name in ("tasks", "streams"))
    assert tasks is not None
    assert streams is not None
    descriptors = len(list((proc / "fd").iterdir()))
    memory = int(status["VmRSS"].split()[0]) / 1024
    return Sample(memory, descriptors, int(status["Threads"]), float(tasks[1]), float(streams[1]))


def slope(hours: Values, values: Values) -> float:
    """The median of the slopes of all pairs of points: few far ones do not move it. Source: Sen (1968)."""
    first, second = np.array(list(combinations(range(len(hours)), 2))).T
    return float(np.median((values[second] - values[first]) / (hours[second] - hours[first])))


def growth(hours: Values, values: Values) -> tuple[float, float, float]:
    """The slope per hour and its 95 % interval, by a bootstrap over successive parts: neighbours are not independent."""
    parts = np.array_split(np.arange(len(hours)), min(_PARTS, len(hours) // 2))
    rng = np.random.default_rng(0)
    found = []
    for _ in range(_RESAMPLES):
        rows = np.concatenate([parts[part] for part in rng.integers(len(parts), size=len(parts))])
        if len(set(hours[rows])) > len(rows) / len(parts):  # one part alone over and over has no slope to speak of
            found.append(np.polyfit(hours[rows], values[rows], 1)[0])
    low, high = np.percentile(found, [2.5, 97.5])
    return slope(hours, values), float(low), float(high)


async def _call(daemon: UnderTest, voices: list[Samples], rng: np.random.Generator) -> str:
    """One call, and how it ended."""
    audio = speaker(voices, rng.uniform(15, 60), int(rng.integers(2**31)))
    end = rng.choice(["closed", "hung up", "cut"], p=[0.6, 0.3, 0.1])
    until = rng.uniform(0.2, 1.0) * audio.shape[1] / SAMPLE_RATE_HZ
    interim_ms, resume = int(rng.choice([0, 1000])), int(end == "cut")
    messages = stream(daemon.url, paced(audio), sample_rate=SAMPLE_RATE_HZ, interim_ms=interim_ms, resume=resume)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if end == "closed" else until):
            async for _ in messages:
                pass
    return str(end)


async def _calls(daemon: UnderTest, voices: list[Samples], seed: int, ended: "Counter[str]") -> None:
    rng = np.random.default_rng(seed)
    while True:
        ended[await _call(daemon, voices, rng)] += 1


async def _samples(daemon: UnderTest, seconds: float) -> AsyncIterator[tuple[float, Sample]]:
    begun = time.monotonic()
    while (at := time.monotonic() - begun) < seconds:
        yield at, await asyncio.to_thread(taken, daemon)
        await asyncio.sleep(_EVERY_S)


async def _idle(daemon: UnderTest, window_s: float) -> Sample:
    await asyncio.sleep(window_s)
    while (found := await asyncio.to_thread(taken, daemon)).streams:  # noqa: ASYNC110  # another process
        await asyncio.sleep(1)
    return found


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long calls come")
    parser.add_argument("--streams", type=int, default=6, help="calls at a time")
    add_json(parser)
    options = parser.parse_args()
    voices, ended = utterances(), Counter[str]()
    async with daemon_under_test("MEDUSA_LIMITS__RESUME_WINDOW_S=5") as daemon:
        before = await _idle(daemon, _SETTLED_S)
        calls = [asyncio.create_task(_calls(daemon, voices, seed, ended)) for seed in range(options.streams)]
        rows = [{"at_s": at, **asdict(sample)} async for at, sample in _samples(daemon, options.minutes * 60)]
        for call in calls:
            call.cancel()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        after = await _idle(daemon, 3 * _SETTLED_S)
    _print(rows, before, after, ended)
    facts = {"streams": options.streams, "ended": dict(ended), "before": asdict(before), "after": asdict(after)}
    write(options.json, made("soak", rows, **facts))


def settled(rows: Sequence[Row], field: str) -> tuple[Values, Values]:
    """Hours and values of the samples behind the warm-up."""
    kept = [row for row in rows if row["at_s"] >= _WARM_UP * rows[-1]["at_s"]]
    return np.array([row["at_s"] / 3600 for row in kept]), np.array([float(row[field]) for row in kept])


def _print(rows: Sequence[Row], before: Sample, after: Sample, ended: "Counter[str]") -> None:
    hours, _ = settled(rows, "memory")
    print(f"{ended.total()} calls: " + ", ".join(f"{count} {how}" for how, count in ended.items()))  # noqa: T201  # a program
    print(f"{len(hours)} samples over {hours[-1] - hours[0]:.2f} h, after a warm-up of {hours[0]:.2f} h")  # noqa: T201
    for field in fields(Sample):
        _, values = settled(rows, field.name)
        found, low, high = growth(hours, values)
        print(  # noqa: T201
            f"{field.name:12} idle before {getattr(before, field.name):7.1f}, median {np.median(values):7.1f}, "
            f"most {values.max():7.1f}, idle after {getattr(after, field.name):7.1f}, "
            f"growth per hour {found:+.2f} [{low:+.2f}, {high:+.2f}]"
        )


if __name__ == "__main__":
    uvloop.run(_main())
