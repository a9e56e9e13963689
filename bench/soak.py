"""Calls that come and go for an hour: whether memory, descriptors, threads or tasks grow.

    python -m bench.soak --minutes 60 --streams 6

Every stream is a call at the pace of speech that ends as calls do: closed by its client, hung up in the middle, or cut off
while the daemon keeps it for a client that never comes back; then another begins. Calls come in waves: between two, all are
hung up, and what the idle daemon holds is noted, once it has handed back what malloc kept free. Samples under load, every
quarter of a minute, swing by what the models compute at that moment; growth is therefore the slope of a straight line (Theil
and Sen) through the idle ones behind the warm-up, with the 95 % interval of a bootstrap over successive parts of them.
"allocated" is what malloc has given out and not got back, "blocks" what Python's small objects hold, which malloc does not see.
"""

import argparse
import asyncio
import contextlib
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations, count
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import uvloop

from bench.document import Document, Row, add_json, made, write
from bench.speech import speaker, utterances
from bench.under_test import UnderTest, daemon_under_test
from daemon.client import paced, stream
from model.audio import SAMPLE_RATE_HZ, Samples

_EVERY_S: Final = 15.0
_PARTS: Final = 10
_RESAMPLES: Final = 1000
_WARM_UP: Final = 0.25
_SETTLED_S: Final = 5.0
_TRIMMED_S: Final = 65.0
"""A daemon hands free memory back once a minute."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a daemon holds at a moment.

    Resident memory and what malloc gave out in MiB, blocks of Python's small objects in thousands; the others are counts.
    """

    memory: float
    allocated: float
    blocks: float
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
    told = dict(re.findall(r"^medusa_(tasks|streams|allocated_bytes|python_blocks) (\S+)", page, re.MULTILINE))
    allocated, blocks = float(told.get("allocated_bytes", "nan")) / 2**20, float(told["python_blocks"]) / 1000
    descriptors = len(list((proc / "fd").iterdir()))
    memory = int(status["VmRSS"].split()[0]) / 1024
    threads, tasks, streams = float(status["Threads"]), float(told["tasks"]), float(told["streams"])
    return Sample(memory, allocated, blocks, descriptors, threads, tasks, streams)


def slope(hours: Values, values: Values) -> float:
    """The median of the slopes of all pairs of points: few far ones do not move it. Source: Sen (1968)."""
    first, second = np.array(list(combinations(range(len(hours)), 2))).T
    return float(np.median((values[second] - values[first]) / (hours[second] - hours[first])))


def growth(hours: Values, values: Values) -> tuple[float, float, float]:
    """The slope per hour and its 95 % interval, by a bootstrap over successive parts: neighbours are not independent.

    Raises:
        ValueError: if there are fewer than three points: no interval follows from two.
    """
    if len(hours) < 3:
        raise ValueError(
            f"growth of {len(hours)} samples behind the warm-up; it takes at least 3: let calls come for longer"
        )
    parts = np.array_split(np.arange(len(hours)), max(2, min(_PARTS, len(hours) // 2)))
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


class _Soak:
    """Waves of calls on one daemon, and what it holds meanwhile.

    Args:
        daemon: that takes the calls.
        streams: calls at a time.

    Attributes:
        rows: samples under load.
        idle: samples between waves.
        ended: calls by how they ended.
    """

    def __init__(self, daemon: UnderTest, streams: int) -> None:
        self._daemon, self._streams, self._voices = daemon, streams, utterances()
        self._begun, self._seeds = time.monotonic(), count()
        self.rows: list[Row] = []
        self.idle: list[Row] = []
        self.ended: Counter[str] = Counter()

    @property
    def passed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begun

    async def wave(self, seconds: float) -> None:
        """Calls for so long, then a pause."""
        calls = [
            asyncio.create_task(_calls(self._daemon, self._voices, next(self._seeds), self.ended))
            for _ in range(self._streams)
        ]
        end = self.passed_s + seconds
        while (left := end - self.passed_s) > 0:
            await asyncio.sleep(min(_EVERY_S, left))
            self.rows.append(await self._sample())
        for call in calls:
            call.cancel()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await settle(self._daemon, _TRIMMED_S)
        self.idle.append(await self._sample())

    async def _sample(self) -> Row:
        return {"at_s": self.passed_s, **asdict(await asyncio.to_thread(taken, self._daemon))}


async def settle(daemon: UnderTest, window_s: float) -> None:
    """Waits until no stream is left, and so long behind that."""
    while (await asyncio.to_thread(taken, daemon)).streams:  # noqa: ASYNC110  # another process
        await asyncio.sleep(1)
    await asyncio.sleep(window_s)


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long waves begin")
    parser.add_argument("--streams", type=int, default=6, help="calls at a time")
    parser.add_argument(
        "--wave", type=float, default=150.0, metavar="SECONDS", help="how long calls come until a pause"
    )
    add_json(parser)
    options = parser.parse_args()
    async with daemon_under_test("MEDUSA_LIMITS__RESUME_WINDOW_S=5") as daemon:
        await settle(daemon, _SETTLED_S)
        before, soak = taken(daemon), _Soak(daemon, options.streams)
        while soak.passed_s < options.minutes * 60:
            await soak.wave(options.wave)
    facts = {"streams": options.streams, "ended": dict(soak.ended), "before": asdict(before), "idle": soak.idle}
    document = made("soak", soak.rows, **facts)
    write(options.json, document)
    _print(document)


def settled(rows: Sequence[Row], field: str) -> tuple[Values, Values]:
    """Hours and values of the samples behind the warm-up."""
    kept = [row for row in rows if row["at_s"] >= _WARM_UP * rows[-1]["at_s"]]
    return np.array([row["at_s"] / 3600 for row in kept]), np.array([float(row[field]) for row in kept])


def _print(document: Document) -> None:
    ended, idle = document.facts["ended"], document.facts["idle"]
    hours, _ = settled(idle, "memory")
    print(f"{sum(ended.values())} calls: " + ", ".join(f"{many} {how}" for how, many in ended.items()))  # noqa: T201  # a program
    print(f"{len(hours)} pauses over {hours[-1] - hours[0]:.2f} h, after a warm-up of {hours[0]:.2f} h")  # noqa: T201
    for name in (field.name for field in fields(Sample)):
        loaded = [row[name] for row in document.rows]
        found, low, high = growth(*settled(idle, name))
        print(  # noqa: T201
            f"{name:12} idle before {document.facts['before'][name]:7.1f}, median under load {np.median(loaded):7.1f}, "
            f"most {max(loaded):7.1f}, idle after {idle[-1][name]:7.1f}, "
            f"growth of idle per hour {found:+.2f} [{low:+.2f}, {high:+.2f}]"
        )


if __name__ == "__main__":
    uvloop.run(_main())
