"""A daemon in its own process, to measure from outside, and figures with their intervals. Linux only (/proc)."""

import asyncio
import os
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from daemon.embedded import EmbeddedRedis

DAEMON = ("daemon", "serve")
_START_S = 60.0
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class UnderTest:
    """A running daemon: its stream URL, its Redis, its process id."""

    url: str
    redis: str
    pid: int

    def peak_mb(self) -> float:
        """Highest resident memory so far, MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def cpu_s(self) -> float:
        """Processor time used so far, seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def daemon_under_test(*settings: str, program: Sequence[str] = DAEMON) -> AsyncIterator[UnderTest]:
    """A daemon with the default bundle and a Redis of its own.

    Args:
        settings: more of its environment, "NAME=value".
        program: what takes its place: a Python module and its arguments.

    Raises:
        RuntimeError: if it is not ready within a minute.
    """
    port = free_port()
    async with EmbeddedRedis.start() as redis:
        with tempfile.TemporaryDirectory(prefix="medusa-bench-") as spool:
            environment = os.environ | dict(pair.split("=", 1) for pair in settings)
            environment |= {"MEDUSA_STREAMS__SPOOL_DIR": spool, "MEDUSA_LIMITS__MAX_STREAMS": "1000"}
            command = [sys.executable, "-m", *program, "--port", str(port), "--redis", redis.url]
            process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.DEVNULL)
            try:
                await asyncio.wait_for(_ready(port), _START_S)
                yield UnderTest(f"ws://127.0.0.1:{port}/v1/stream", redis.url, process.pid)
            finally:
                process.terminate()
                await process.wait()


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


async def _ready(port: int) -> None:
    while not await asyncio.to_thread(answers, f"http://127.0.0.1:{port}/ready"):  # noqa: ASYNC110  # another process has no event for us
        await asyncio.sleep(0.1)


def answers(url: str) -> bool:
    """Whether a GET of `url` gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def percentile(values: Sequence[float], q: float) -> str:
    """The q-th percentile with its 95 % bootstrap interval, as text."""
    array = np.asarray(values)
    rng = np.random.default_rng(0)
    drawn = np.percentile(rng.choice(array, (_RESAMPLES, len(array))), q, axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{np.percentile(array, q):6.0f} [{low:.0f}, {high:.0f}]"
