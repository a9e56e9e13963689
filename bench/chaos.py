"""Kills, cuts and stalls everything at random moments, under load, and counts what that lost, repeated or changed.

    python -m bench.chaos --calls 6 --seconds 120 --workers 2      gateway, workers, Redis and clients' connections
    python -m bench.chaos --calls 6 --seconds 120 --workers 0      one daemon that does everything

Every call is the demo call at the pace of speech, through a network that is cut, over our client, which reconnects. Afterwards
Redis must hold, for every call, every utterance of the recording scored offline:

lost       utterances that no final result of their call overlaps
repeated   entries of one event id beside the first, in the stream of all events
wrong      whole utterances of sessions that heard the recording from its first sample, more than 1e-4 from the offline ones
short      utterances of such sessions that were cut because their server stopped
again      utterances that were scored in two sessions: what a client sends again where its server is gone for good

Exit status 0 means that nothing was lost, repeated or wrong.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.document import add_json, made, write
from bench.entries import entries
from bench.under_test import answers, free_port
from daemon.client import paced, stream
from daemon.config import load_config
from daemon.demo import OWN_CALL
from daemon.embedded import EmbeddedRedis
from daemon.offline import score_recording
from daemon.wire import emotion_message
from model.recording import read_recording
from tests.daemon.cutting import Network, network

Message = dict[str, Any]

_START_S: Final = 60.0
_PATIENCE_S: Final = 120.0
"""How long clients try to come back."""
_REDIAL_S: Final = 0.5
_QUIET_S: Final = 6.0
"""Without an entry for so long, nothing more comes."""
_TOLERANCE: Final = 1e-4
_COUNTED: Final = ("utterances", "results", "lost", "repeated", "wrong", "again", "short")


class Server:
    """A `serve` process that is started again whenever it ends.

    Args:
        role: all, gateway or worker.
        redis_url: where it publishes.
        folder: for its spool.
    """

    def __init__(self, role: str, redis_url: str, folder: Path) -> None:
        self.role = role
        self.port = free_port()
        self.starts = 0
        self._command = [sys.executable, "-m", "daemon", "serve", "--role", role, "--redis", redis_url]
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Runs it for ever; cancel it to stop."""
        environment = os.environ | {
            "MEDUSA_STREAMS__SPOOL_DIR": str(self._folder),
            "MEDUSA_FLEET__VISIBILITY_S": "3",
            "MEDUSA_LIMITS__MAX_WAIT_MS": "60000",
        }
        while True:
            command = [*self._command, "--port", str(self.port)]
            self._process = await asyncio.create_subprocess_exec(
                *command, env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
            )
            self.starts += 1
            try:
                await self._process.wait()
            finally:
                if self._process.returncode is None:
                    self._process.kill()
                    await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, if there is a process at this moment."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def ready(self) -> None:
        """Waits until it serves.

        Raises:
            TimeoutError: if that takes more than a minute.
        """
        async with asyncio.timeout(_START_S):
            while not await asyncio.to_thread(answers, f"http://127.0.0.1:{self.port}/ready"):  # noqa: ASYNC110  # another process has no event for us
                await asyncio.sleep(0.1)


class Store:
    """A Redis that is killed and comes back with its data.

    Args:
        folder: of its data.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._held = contextlib.AsyncExitStack()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Starts it."""
        await self._held.enter_async_context(EmbeddedRedis.start(port=self.port, data_dir=self._folder))

    async def stop(self) -> None:
        """Stops it."""
        await self._held.aclose()

    def signal(self, number: signal.Signals) -> None:
        """Sends the server a signal."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self._folder / "valkey.pid").read_text()), number)


@dataclass(frozen=True, slots=True)
class Told:
    """What a client heard of one call: its sessions, each with where it begins on the recording, ms."""

    call: str
    sessions: dict[str, float]


async def _call(port: int, call: str, begin_s: float, speed: float) -> Told:
    await asyncio.sleep(begin_s)
    audio = read_recording(OWN_CALL)
    sessions: dict[str, float] = {}
    url = f"ws://127.0.0.1:{port}/v1/stream"
    while True:
        messages = stream(url, paced(audio, speed), reconnect_s=_PATIENCE_S, channels=len(audio), call_id=call)
        try:
            async for message in messages:
                if message["type"] == "session.created":
                    sessions[message["session"]] = message["begins_ms"]
        except ConnectionError:
            if sessions:
                raise
            await asyncio.sleep(_REDIAL_S)  # nobody has picked up yet: it may be down at this very moment
        else:
            return Told(call, sessions)


async def _trouble(
    chance: random.Random, line: Network, store: Store, servers: list[Server], done: Counter[str]
) -> None:
    """Makes trouble for ever, one thing at a time."""

    async def cut() -> None:
        line.cut()

    async def stall() -> None:
        line.stall()
        await asyncio.sleep(chance.uniform(0.5, 2.0))
        line.cut()

    async def freeze_redis() -> None:
        store.signal(signal.SIGSTOP)
        await asyncio.sleep(chance.uniform(0.5, 3.0))
        store.signal(signal.SIGCONT)

    async def kill_redis() -> None:
        store.signal(signal.SIGKILL)
        await store.stop()
        await asyncio.sleep(chance.uniform(0.0, 2.0))
        await store.start()

    def one(role: str, number: signal.Signals) -> Callable[[], Awaitable[None]]:
        async def end() -> None:
            victim = chance.choice([server for server in servers if server.role == role])
            starts = victim.starts
            victim.signal(number)
            async with asyncio.timeout(_START_S):
                while victim.starts == starts:  # noqa: ASYNC110  # another process has no event for us
                    await asyncio.sleep(0.05)
            if role != "worker":
                await victim.ready()

        return end

    front = servers[0].role
    kinds: dict[str, tuple[float, Callable[[], Awaitable[None]]]] = {
        "connections cut": (5.0, cut),
        "connections stalled": (2.0, stall),
        "redis frozen": (2.0, freeze_redis),
        "redis killed": (1.0, kill_redis),
        f"{front} killed": (1.0, one(front, signal.SIGKILL)),
        f"{front} stopped": (1.0, one(front, signal.SIGTERM)),
    }
    if any(server.role == "worker" for server in servers):
        kinds |= {
            "worker killed": (4.0, one("worker", signal.SIGKILL)),
            "worker stopped": (2.0, one("worker", signal.SIGTERM)),
        }
    names, weights = list(kinds), [weight for weight, _ in kinds.values()]
    while True:
        await asyncio.sleep(chance.uniform(0.2, 2.0))
        (name,) = chance.choices(names, weights)
        done[name] += 1
        await kinds[name][1]()


@asynccontextmanager
async def _running(servers: list[Server]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(server.run()) for server in servers]
    try:
        for server in servers:
            await server.ready()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _settled(url: str) -> list[dict[str, str]]:
    """All entries, once nothing more comes."""
    before = -1
    while True:
        found = await entries(url)
        if len(found) == before:
            return found
        before = len(found)
        await asyncio.sleep(_QUIET_S)


def _judge(calls: list[Told], entries: list[dict[str, str]], offline: list[Message]) -> Counter[str]:
    found: Counter[str] = Counter()
    ids = Counter(entry["event_id"] for entry in entries)
    found["repeated"] = sum(count - 1 for count in ids.values())
    for call in calls:
        finals = [entry for entry in entries if entry["call"] == call.call and entry["type"] == "emotion"]
        for wanted in offline:
            found["utterances"] += 1
            over = {entry["session"] for entry in finals if _overlaps(entry, wanted, call.sessions)}
            found["lost"] += not over
            found["again"] += len(over) > 1
        for entry in finals:
            found["results"] += 1
            if call.sessions.get(entry["session"]) == 0.0 and _whole(entry, offline):
                found["wrong"] += not any(_equal(entry, wanted) for wanted in offline)
            elif call.sessions.get(entry["session"]) == 0.0:
                found["short"] += 1
    return found


def _overlaps(entry: dict[str, str], wanted: Message, sessions: dict[str, float]) -> bool:
    begins_ms = sessions.get(entry["session"], 0.0)
    start, end = float(entry["start_ms"]) + begins_ms, float(entry["end_ms"]) + begins_ms
    here = int(entry["channel"]) == wanted["channel"]
    return bool(here and start < wanted["end_ms"] and end > wanted["start_ms"])


def _equal(entry: dict[str, str], wanted: Message) -> bool:
    same = (int(entry["channel"]), int(entry["utterance"])) == (wanted["channel"], wanted["utterance"])
    probabilities: dict[str, float] = wanted["probabilities"]
    return same and all(abs(float(entry[f"p_{name}"]) - p) <= _TOLERANCE for name, p in probabilities.items())


def _whole(entry: dict[str, str], offline: list[Message]) -> bool:
    """Whether it is an utterance of the recording from its begin to its end."""
    bounds = (int(entry["channel"]), float(entry["start_ms"]), float(entry["end_ms"]))
    return any(bounds == one for one in _bounds(offline))


def _bounds(offline: list[Message]) -> list[tuple[int, float, float]]:
    return [(wanted["channel"], wanted["start_ms"], wanted["end_ms"]) for wanted in offline]


async def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=6, help="calls")
    parser.add_argument("--seconds", type=float, default=60.0, help="time over which they begin")
    parser.add_argument("--workers", type=int, default=2, help="workers behind one gateway; 0 for one daemon")
    parser.add_argument("--speed", type=float, default=1.0, help="of speech")
    parser.add_argument("--seed", type=int, default=0, help="of the trouble")
    add_json(parser)
    options = parser.parse_args()
    chance, done = random.Random(options.seed), Counter[str]()
    messages = [emotion_message(event) for event in await score_recording(OWN_CALL, load_config(None, {}))]
    offline = [message for message in messages if message["final"]]
    with tempfile.TemporaryDirectory(prefix="medusa-chaos-") as folder:
        store = Store(Path(folder) / "redis")
        await store.start()
        roles = ["gateway", *["worker"] * options.workers] if options.workers else ["all"]
        servers = [Server(role, store.url, Path(folder) / f"{role}-{n}") for n, role in enumerate(roles)]
        async with _running(servers), network(servers[0].port) as line:
            trouble = asyncio.create_task(_trouble(chance, line, store, servers, done))
            begins = [n * options.seconds / options.calls for n in range(options.calls)]
            calls = await asyncio.gather(
                *(_call(line.port, f"call-{n}", at, options.speed) for n, at in enumerate(begins))
            )
            trouble.cancel()
            await asyncio.wait({trouble})
            if not trouble.cancelled():
                trouble.result()
            store.signal(signal.SIGCONT)
            left = await _settled(store.url)
        await store.stop()
    found = _judge(calls, left, offline)
    print(f"{sum(done.values())} troubles: " + ", ".join(f"{count} {name}" for name, count in sorted(done.items())))  # noqa: T201  # a program
    print(  # noqa: T201
        f"{options.calls} calls in {sum(len(call.sessions) for call in calls)} sessions over {line.connections} connections: "
        f"{found['utterances']} utterances, {found['results']} results, {found['lost']} lost, {found['repeated']} repeated, "
        f"{found['wrong']} wrong; {found['again']} scored again, {found['short']} cut short"
    )
    rows = [{"trouble": name, "count": count} for name, count in sorted(done.items())]
    facts = {
        "calls": options.calls,
        "sessions": sum(len(call.sessions) for call in calls),
        "connections": line.connections,
    }
    write(options.json, made("chaos", rows, **facts, **{name: found[name] for name in _COUNTED}))
    return int(bool(found["lost"] or found["repeated"] or found["wrong"]))


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
