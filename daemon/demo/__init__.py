"""The demonstration: a real daemon, a real call through a real WebSocket, events read back from Redis and compared."""

import asyncio
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from daemon.client import paced, stream
from daemon.config import load_config
from daemon.events import read_call, read_events
from daemon.live import ending, show
from daemon.server import Daemon, serve
from model.recording import read_recording

OWN_CALL: Final = Path(__file__).parent / "call.flac"
_READ_BACK_S: Final = 10.0


@dataclass(slots=True)
class _Seen:
    """What the client received, by event id."""

    emotions: dict[str, dict[str, Any]] = field(default_factory=dict)
    closed: dict[str, Any] | None = None


async def run_demo(recording: Path, console: Console, speed: float) -> int:
    """Streams a call at the pace it was spoken and shows each event as it comes back from Redis.

    Returns:
        0 if the whole call was streamed and the events read back from Redis equal those that the client received, else 1.

    Raises:
        ConfigError: if the daemon cannot start.
        RecordingError: if the recording cannot be read.
    """
    audio = await asyncio.to_thread(read_recording, recording)
    ready: asyncio.Future[tuple[Daemon, int]] = asyncio.get_running_loop().create_future()
    with tempfile.TemporaryDirectory(prefix="medusa-demo-") as spool:
        config = load_config(None, {"port": 0, "streams": {"embedded_port": 0, "spool_dir": spool}})
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        serving = asyncio.create_task(serve(config, lambda daemon, port: ready.set_result((daemon, port)), stop))
        waited: set[asyncio.Future[Any]] = {serving, ready}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                return await serving
            daemon, port = ready.result()
            console.print(
                f"daemon: ws://127.0.0.1:{port}/v1/stream   redis: {daemon.redis_url}   bundle: {daemon.bundle_id}"
            )
            console.print(f"call: {recording.name}, {audio.shape[1] / 16000:.0f} s, {len(audio)} channel(s)\n")
            return await _stream_and_compare(audio, daemon, port, console, speed)
        finally:
            stop.set()
            await serving


async def _stream_and_compare(audio: Any, daemon: Daemon, port: int, console: Console, speed: float) -> int:
    call = f"demo-{uuid.uuid4().hex[:8]}"
    showing = asyncio.create_task(_show_until_end(daemon.redis_url, call, console))
    seen = _Seen()
    url = f"ws://127.0.0.1:{port}/v1/stream"
    async for message in stream(url, paced(audio, speed), channels=len(audio), sample_rate=16_000, call_id=call):
        if message["type"] == "emotion":
            seen.emotions[message["event_id"]] = message
        elif message["type"] == "session.closed":
            seen.closed = message
        elif message["type"] == "error":
            console.print(message["message"], style="red", markup=False)
    try:
        await asyncio.wait_for(showing, _READ_BACK_S)
    except TimeoutError:
        console.print(f"[red]Redis did not show the end of the call within {_READ_BACK_S:g} s[/red]")
        return 1
    return _verdict(seen, await read_call(daemon.redis_url, call), console)


async def _show_until_end(url: str, call: str, console: Console) -> None:
    async for fields in _events_of(url, call):
        show(console, fields)
        if fields["type"] in ("call.ended", "call.failed"):
            return


async def _events_of(url: str, call: str) -> AsyncIterator[dict[str, str]]:
    async for _, fields in read_events(url, start="0"):
        if fields.get("call") == call:
            yield fields


def _verdict(seen: _Seen, entries: list[dict[str, str]], console: Console) -> int:
    """Compares what Redis holds with what the client received."""
    stored = {fields["event_id"]: fields for fields in entries if fields["type"].startswith("emotion")}
    finals = sum(message["final"] for message in seen.emotions.values())
    problems = []
    if set(stored) != set(seen.emotions):
        problems.append(f"Redis holds {len(stored)} results, the client received {len(seen.emotions)}")
    for event_id in set(stored) & set(seen.emotions):
        problems += [
            f"{event_id}: {name} differs"
            for name, probability in seen.emotions[event_id]["probabilities"].items()
            if abs(float(stored[event_id][f"p_{name}"]) - probability) > 1e-6
        ]
    if seen.closed is None or seen.closed["totals"]["finals"] != finals:
        problems.append("the totals of session.closed do not fit what was received")
    line, good = ending(seen.closed) if seen.closed else (None, True)
    if line is not None and not good:
        problems.append(line)
    elif finals == 0:
        problems.append("no utterance was found in the recording")
    for problem in problems[:5]:
        console.print(problem, style="red", markup=False)
    if not problems:
        console.print(f"[green]{len(stored)} events read back from Redis equal those the client received.[/green]")
    return 1 if problems else 0
