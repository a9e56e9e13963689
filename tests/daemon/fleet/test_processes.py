"""The programs themselves: gateways and workers as processes of their own, one of which is killed in the middle."""

import asyncio
import contextlib
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis

from daemon.client import paced, stream
from daemon.config import DEFAULT_BUNDLE, load_config
from daemon.embedded import EmbeddedRedis
from daemon.fleet.keys import GROUP, FleetKeys
from daemon.offline import score_recording
from daemon.wire import emotion_message
from model.bundle import read_bundle
from model.recording import read_recording
from tests.daemon.conftest import CALL, Message, assert_same_results, finals
from tests.daemon.fleet.running import published
from tests.ports import free_port

ROOT: Final = Path(__file__).parents[3]
GATEWAYS: Final = 1
WORKERS: Final = 2
"""More change nothing but how long it takes to start them."""
CALLS: Final = 2
SPEED: Final = 8.0
WITHIN_S: Final = 90.0


@dataclass(slots=True)
class Process:
    """A running `medusa-daemon serve`."""

    port: int
    process: asyncio.subprocess.Process

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(_get, f"http://127.0.0.1:{self.port}{path}")

    async def ready(self) -> None:
        async with asyncio.timeout(WITHIN_S):
            while (await self.get("/ready"))[0] != 200:
                assert self.process.returncode is None, "it ended before it was ready"
                await asyncio.sleep(0.1)

    async def value(self, metric: str) -> float:
        _, page = await self.get("/metrics")
        return float(dict(line.rsplit(" ", 1) for line in page.splitlines())[metric])


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


@contextlib.asynccontextmanager
async def serving(role: str, redis_url: str, folder: Path) -> AsyncIterator[Process]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemon", "serve", "--role", role, "--redis", redis_url, "--port", str(port)),
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        env={"OMP_NUM_THREADS": "1", "MEDUSA_FLEET__VISIBILITY_S": "1", "MEDUSA_STREAMS__SPOOL_DIR": str(folder)},
    )
    try:
        yield Process(port, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def call_at(gateway: Process, call: str) -> list[Message]:
    chunks = paced(read_recording(CALL), speed=SPEED)
    async with asyncio.timeout(WITHIN_S):
        url = f"ws://127.0.0.1:{gateway.port}/v1/stream"
        return [message async for message in stream(url, chunks, channels=2, sample_rate=16_000, call_id=call)]


async def killed_at_work(victim: Process, redis_url: str) -> None:
    """Kills a worker that holds utterances: it is stopped to make sure that it does."""
    work = FleetKeys(read_bundle(DEFAULT_BUNDLE).id).work
    async with Redis.from_url(redis_url, decode_responses=True, protocol=2) as client, asyncio.timeout(WITHIN_S):
        while True:
            victim.process.send_signal(signal.SIGSTOP)
            consumers: Any = await client.xinfo_consumers(work, GROUP)
            (me,) = [consumer for consumer in consumers if f"-{victim.process.pid}-" in consumer["name"]]
            if me["pending"]:
                victim.process.send_signal(signal.SIGKILL)
                return
            victim.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.02)


async def test_one_of_the_workers_is_killed(tmp_path: Path) -> None:
    """Every client and Redis have the results of the recording scored here, once each, in order."""
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(EmbeddedRedis.start())
        roles = ["worker"] * WORKERS + ["gateway"] * GATEWAYS
        processes = [
            await stack.enter_async_context(serving(role, redis.url, tmp_path / f"{role}-{number}"))
            for number, role in enumerate(roles)
        ]
        victim, workers, gateways = processes[0], processes[1:WORKERS], processes[WORKERS:]
        for process in processes:
            await process.ready()
        calls = [asyncio.create_task(call_at(gateways[n % GATEWAYS], f"call-{n}")) for n in range(CALLS)]
        await killed_at_work(victim, redis.url)
        got = [await call for call in calls]
        offline = finals([emotion_message(event) for event in await score_recording(CALL, load_config(None, {}))])
        assert len(offline) >= 6
        for number, messages in enumerate(got):
            assert_same_results(finals(messages), offline)
            entries = [e for e in await published(redis.url, f"medusa:call:call-{number}") if e["type"] == "emotion"]
            in_order = sorted(entries, key=lambda entry: entry["channel"])
            assert [entry["event_id"] for entry in in_order] == [message["event_id"] for message in finals(messages)]
        assert sum([await worker.value("medusa_worker_claimed_total") for worker in workers]) >= 1
        assert sum([await worker.value("medusa_work_dead_total") for worker in workers]) == 0
        for process in processes[1:]:
            process.process.send_signal(signal.SIGTERM)
        for process in processes[1:]:
            assert await asyncio.wait_for(process.process.wait(), WITHIN_S) == 0
