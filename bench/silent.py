"""What a line costs on which nobody speaks: the event loop, and the threads that look for speech.

    python -m bench.silent --streams 25 --seconds 20

Every stream sends quiet noise at the pace of speech, in messages of 40 ms, to a daemon of its own. Nothing is heard in it, so
no model but the detector runs: what threads other than the event loop's use is detection. Processor time is read from /proc,
in percent of one core and stream, with the 95 % interval of a bootstrap over the seconds; the first two are left out.
"""

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

from bench.under_test import UnderTest, daemon_under_test
from daemon.client import paced, stream
from model.audio import SAMPLE_RATE_HZ, Samples

_LEVEL: Final = 0.002
_LEFT_OUT: Final = 2
_RESAMPLES: Final = 1000


def thread_seconds(pid: int) -> dict[int, float]:
    """Thread -> processor time so far; the event loop's has the number of its process."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        found[int(task.name)] = (int(fields[11]) + int(fields[12])) / ticks
    return found


async def _second(daemon: UnderTest) -> tuple[float, float]:
    """Processor time within a second: of the event loop, of all other threads."""
    loop = asyncio.get_running_loop()
    before, begun = thread_seconds(daemon.pid), loop.time()
    await asyncio.sleep(1)
    took, after = loop.time() - begun, thread_seconds(daemon.pid)
    spent = {thread: (seconds - before.get(thread, 0.0)) / took for thread, seconds in after.items()}
    return spent[daemon.pid], sum(spent.values()) - spent[daemon.pid]


async def _silence(daemon: UnderTest, audio: Samples) -> None:
    async for message in stream(daemon.url, paced(audio), sample_rate=SAMPLE_RATE_HZ, interim_ms=1000):
        if message["type"] == "emotion":
            raise RuntimeError(f"something was heard in the noise: {message}")


def told(values: Sequence[float], streams: int) -> str:
    """The mean in percent of a core and stream, with its interval."""
    rows, rng = 100 * np.asarray(values) / streams, np.random.default_rng(0)
    means = rng.choice(rows, (_RESAMPLES, len(rows))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{rows.mean():.2f} [{low:.2f}, {high:.2f}] %"


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=25, help="at the same time")
    parser.add_argument("--seconds", type=int, default=20, help="that are measured")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    length = (1, (options.seconds + 2 * _LEFT_OUT) * SAMPLE_RATE_HZ)
    noises = [_LEVEL * rng.standard_normal(length, np.float32) for _ in range(options.streams)]
    async with daemon_under_test() as daemon:
        calls = [asyncio.create_task(_silence(daemon, noise)) for noise in noises]
        await asyncio.sleep(_LEFT_OUT)
        seconds = [await _second(daemon) for _ in range(options.seconds)]
        await asyncio.gather(*calls)
    loop, others = zip(*seconds, strict=True)
    both = [sum(parts) for parts in seconds]
    print(  # noqa: T201  # a program
        f"{options.streams} silent streams, of a core and stream: {told(both, options.streams)}, event loop "
        f"{told(loop, options.streams)}, detection {told(others, options.streams)}"
    )


if __name__ == "__main__":
    uvloop.run(_main())
