"""Daemons in processes of their own, to measure from outside, and figures with their intervals. Linux only (/proc)."""

import asyncio
import os
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from daemon.embedded import EmbeddedRedis

DAEMON = ("daemon", "serve")
BASELINES = ("naive", "per-client")
"""Servers of `bench.baselines`; named here, for it takes torch to import that."""
CLIENTS = "BENCH_CLIENTS"
"""In a baseline's environment: how many clients will come."""
GATEWAYS = 2
WORKERS = 3
_START_S = 180.0
_RESAMPLES = 1000

Span = Mapping[str, float]
"""An estimate with its 95 % interval: value, low, high."""


@dataclass(frozen=True, slots=True)
class UnderTest:
    """Running processes that serve together.

    Attributes:
        ports: where clients connect, of one daemon or of every gateway.
        redis: URL of their Redis.
        pids: of all processes; the first one's door is `ports[0]`. Redis is none of them.
    """

    ports: tuple[int, ...]
    redis: str
    pids: tuple[int, ...]

    @property
    def url(self) -> str:
        """Of the first door's native streams."""
        return stream_url(self.ports[0])

    @property
    def pid(self) -> int:
        """Of the first process."""
        return self.pids[0]

    def memory_mb(self) -> float:
        """Resident memory now, of all processes, MiB."""
        return sum(_status_mb(pid, "VmRSS") for pid in self.pids)

    def peak_mb(self) -> float:
        """Highest resident memory of every process so far, added up, MiB."""
        return sum(_status_mb(pid, "VmHWM") for pid in self.pids)

    def forget_peak(self) -> None:
        """The peak counts from here on: loading models takes more than serving with them."""
        for pid in self.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def cpu_s(self) -> float:
        """Processor time used so far, seconds."""
        return sum(_cpu_s(pid) for pid in self.pids)


class Usage:
    """What processes use from now on, beyond what they hold idle.

    Args:
        under_test: ready, and idle at this moment.
    """

    def __init__(self, under_test: UnderTest) -> None:
        under_test.forget_peak()
        self._under_test = under_test
        self._idle_mb, self._cpu_s, self._begun = under_test.memory_mb(), under_test.cpu_s(), time.monotonic()

    def taken(self, streams: int) -> dict[str, float]:
        """Cores, highest memory (MiB), and both per stream; processor time in percent of a core."""
        cores = (self._under_test.cpu_s() - self._cpu_s) / (time.monotonic() - self._begun)
        peak = self._under_test.peak_mb()
        return {
            "cores": cores,
            "cpu_percent_per_stream": 100 * cores / streams,
            "idle_mb": self._idle_mb,
            "peak_mb": peak,
            "mb_per_stream": (peak - self._idle_mb) / streams,
        }


def _status_mb(pid: int, name: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stream_url(port: int) -> str:
    """Of the native streams of a daemon here."""
    return f"ws://127.0.0.1:{port}/v1/stream"


@asynccontextmanager
async def daemon_under_test(*settings: str, program: Sequence[str] = DAEMON) -> AsyncIterator[UnderTest]:
    """A daemon with the default bundle and a Redis of its own.

    Args:
        settings: more of its environment, "NAME=value".
        program: what takes its place: a Python module and its arguments.

    Raises:
        RuntimeError: if it ends instead of becoming ready.
        TimeoutError: if it is not ready within three minutes.
    """
    async with _running([program], 1, settings) as under_test:
        yield under_test


@asynccontextmanager
async def fleet_under_test(
    *settings: str, gateways: int = GATEWAYS, workers: int = WORKERS
) -> AsyncIterator[UnderTest]:
    """Gateways and workers with the default bundle on a Redis of their own; clients choose their gateway.

    Args:
        settings: more of their environment, "NAME=value".
        gateways: how many; each has a port.
        workers: how many.

    Raises:
        RuntimeError: if one ends instead of becoming ready.
        TimeoutError: if one is not ready within three minutes.
    """
    roles = ["gateway"] * gateways + ["worker"] * workers
    async with _running([(*DAEMON, "--role", role) for role in roles], gateways, settings) as under_test:
        yield under_test


@asynccontextmanager
async def _running(programs: Sequence[Sequence[str]], doors: int, settings: Sequence[str]) -> AsyncIterator[UnderTest]:
    """Processes on one Redis; clients are for the first `doors` of them."""
    environment = os.environ | dict(pair.split("=", 1) for pair in settings)
    environment["MEDUSA_LIMITS__MAX_STREAMS"] = "1000"
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(EmbeddedRedis.start())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medusa-bench-")))
        processes, ports = [], []
        for number, program in enumerate(programs):
            port = free_port()
            command = [sys.executable, "-m", *program, "--port", str(port), "--redis", redis.url]
            own = environment | {"MEDUSA_STREAMS__SPOOL_DIR": str(folder / str(number))}
            process = await asyncio.create_subprocess_exec(*command, env=own, stdout=asyncio.subprocess.DEVNULL)
            stack.push_async_callback(_stop, process)
            processes.append(process)
            ports.append(port)
        async with asyncio.timeout(_START_S):
            for process, port in zip(processes, ports, strict=True):
                await _ready(process, port)
        yield UnderTest(tuple(ports[:doors]), redis.url, tuple(process.pid for process in processes))


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()


async def _ready(process: asyncio.subprocess.Process, port: int) -> None:
    while not await asyncio.to_thread(answers, f"http://127.0.0.1:{port}/ready"):
        if process.returncode is not None:
            raise RuntimeError(f"a server under test ended with {process.returncode} before it was ready")
        await asyncio.sleep(0.1)


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a GET of `url` gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def interval(values: Sequence[float], q: float) -> Span:
    """The q-th percentile with its 95 % bootstrap interval.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("a percentile of no values; it takes at least one")
    array = np.asarray(values)
    rng = np.random.default_rng(0)
    drawn = np.percentile(rng.choice(array, (_RESAMPLES, len(array))), q, axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": float(np.percentile(array, q)), "low": float(low), "high": float(high)}


def told(span: Span) -> str:
    """An estimate as text."""
    return f"{span['value']:6.0f} [{span['low']:.0f}, {span['high']:.0f}]"


def percentile(values: Sequence[float], q: float) -> str:
    """The q-th percentile with its 95 % bootstrap interval, as text."""
    return told(interval(values, q))
