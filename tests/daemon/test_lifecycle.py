"""How a daemon begins and ends: signals, a Redis that is not there yet, a bundle that is damaged, a port that is taken."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from daemon.client import stream
from daemon.config import DEFAULT_BUNDLE
from daemon.embedded import EmbeddedRedis
from daemon.events import read_events
from daemon.sinks.redis import DEFAULT_STREAMS
from daemon.wire import redis_fields
from model.audio import SAMPLE_RATE_HZ
from tests.daemon.conftest import ASSETS, CALL, Message, each, events_of, finals, linear16_of, of_type, pieces, serving
from tests.factories import make_call_event
from tests.ports import free_port
from tests.waiting import until

TWO = ASSETS / "two_sentences.flac"
WITHIN_S = 60.0
ENVIRONMENT = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(Path(__file__).parents[2]), "MEDUSA_PORT": "0"}
"""Port 0: another daemon may have the default one."""


async def program(folder: Path, *arguments: str, env: dict[str, str] = ENVIRONMENT) -> Process:
    """`python -m daemon` with arguments, in a folder of its own (its spool lies there)."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemon", *arguments),
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def outcome(process: Process) -> tuple[int | None, str]:
    """Exit status and everything said on standard error."""
    async with asyncio.timeout(WITHIN_S):
        _, said = await process.communicate()
    return process.returncode, said.decode()


@asynccontextmanager
async def serve_program(
    folder: Path, *arguments: str, env: dict[str, str] = ENVIRONMENT
) -> AsyncIterator[tuple[Process, str]]:
    """`python -m daemon serve`, and the URL of its streams as it prints it."""
    process = await program(folder, "serve", "--port", "0", *arguments, env=env)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            while not (line := (await process.stdout.readline()).decode()).startswith("stream"):
                assert line, "the daemon ended before it served"
        yield process, line.split()[1]
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_every_stream_finish(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle of a sentence: it is scored, sent, published; the totals follow; the status is 0."""
    messages: list[dict[str, Any]] = []
    async with EmbeddedRedis.start() as redis, serve_program(tmp_path, "--redis", redis.url) as (process, url):
        async with asyncio.timeout(WITHIN_S), connect(f"{url}?call_id=cut&interim_ms=500") as connection:
            await connection.send(linear16_of(TWO)[: 2 * 32_000])
            while not messages or messages[-1]["type"] != "speech.started":
                messages.append(json.loads(await connection.recv()))
            process.send_signal(number)
            try:
                async for text in connection:
                    messages.append(json.loads(text))
            except ConnectionClosed:
                pass  # the code says what it was
            assert connection.close_code == 1001
        status, said = await outcome(process)
        events = await events_of(redis.url, "cut")
    assert (status, "Traceback" in said) == (0, False), said
    (final,) = finals(messages)
    assert final["text"]
    assert (messages[-1]["type"], messages[-1]["reason"]) == ("session.closed", "going_away")
    assert messages[-1]["totals"]["finals"] == messages[-1]["totals"]["utterances"] == 1
    assert [fields["event_id"] for fields in events[1:-1]] == [
        message["event_id"] for message in of_type(messages, "emotion")
    ]
    assert (events[-1]["type"], events[-1]["reason"]) == ("call.ended", "going_away")


async def test_a_redis_that_comes_late_misses_nothing(tmp_path: Path) -> None:
    """Until then the daemon serves, says that it is not ready and why, and keeps the events."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    async with serving(tmp_path, redis=url) as served:
        status, body = await served.get("/ready")
        assert (status, json.loads(body)["ready"]) == (503, False)
        assert "Redis" in json.loads(body)["problem"]
        assert (await served.get("/health"))[0] == 200
        streams = [
            await served.stream(pieces(linear16_of(TWO)), call_id=f"early-{number}", interim_ms=300)
            for number in range(2)
        ]
        assert all(len(finals(messages)) == 2 for messages in streams)
        assert f"{port}" in json.loads((await served.get("/ready"))[1])["problem"]
        async with EmbeddedRedis.start(port=port):
            await until(lambda: served.daemon.sink.healthy() is None, within_s=30)
            assert (await served.get("/ready"))[0] == 200
            for number, messages in enumerate(streams):
                begun, *stored, ended = await events_of(url, f"early-{number}")
                assert (begun["type"], ended["type"]) == ("call.started", "call.ended")
                wanted = [message["event_id"] for message in of_type(messages, "emotion")]
                assert [fields["event_id"] for fields in stored] == wanted


async def test_events_that_redis_never_took_wait_for_the_next_daemon(tmp_path: Path) -> None:
    """On disk: a daemon that stops without its Redis loses nothing either."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    async with serving(tmp_path, redis=url, drain_timeout_s=0.2) as served:
        messages = await served.stream(pieces(linear16_of(TWO)), call_id="kept", interim_ms=0)
    async with EmbeddedRedis.start(port=port), serving(tmp_path, redis=url):
        _, *stored, _ = await events_of(url, "kept")
    assert [fields["event_id"] for fields in stored] == [message["event_id"] for message in finals(messages)]


def linked_bundle(folder: Path) -> Path:
    """The default bundle with every file a link, so that a test may replace some."""
    shutil.copytree(DEFAULT_BUNDLE, folder, copy_function=os.symlink)
    return folder


@pytest.mark.parametrize("command", ["serve", "check"])
async def test_a_damaged_bundle_is_named_and_not_served(tmp_path: Path, command: str) -> None:
    """One byte is enough."""
    bundle = linked_bundle(tmp_path / "bundle")
    (bundle / "ensemble.onnx").unlink()
    content = bytearray((DEFAULT_BUNDLE / "ensemble.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "ensemble.onnx").write_bytes(content)
    status, said = await outcome(await program(tmp_path, command, "--bundle", str(bundle)))
    assert (status, "Traceback" in said) == (2, False), said
    assert f"{bundle / 'ensemble.onnx'} is damaged" in said


@pytest.mark.parametrize("command", ["serve", "check"])
async def test_a_bundle_with_a_file_missing_is_not_served(tmp_path: Path, command: str) -> None:
    bundle = linked_bundle(tmp_path / "bundle")
    (bundle / "meta.onnx").unlink()
    status, said = await outcome(await program(tmp_path, command, "--bundle", str(bundle)))
    assert (status, "Traceback" in said) == (2, False), said
    assert f"{bundle} lacks meta.onnx" in said


@pytest.mark.parametrize("name", ["nowhere", "with [brackets] and [/closing]"])
async def test_a_bundle_that_is_not_there(tmp_path: Path, name: str) -> None:
    """The message shows the path as it is, whatever characters it holds."""
    status, said = await outcome(await program(tmp_path, "check", "--bundle", str(tmp_path / name)))
    assert (status, "Traceback" in said) == (2, False), said
    assert f"{tmp_path / name} is no bundle" in said


async def test_a_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, said = await outcome(
            await program(tmp_path, "serve", "--port", str(port), "--redis", "redis://127.0.0.1:1/0")
        )
    assert (status, "Traceback" in said) == (2, False), said
    assert f"port {port}" in said
    assert "in use" in said


async def test_a_client_faster_than_we_read_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """Its next message is always there already: what else happens must be looked at all the same."""
    half_an_hour = pieces(bytes(2 * SAMPLE_RATE_HZ * 1800), 1 << 16)
    opened = asyncio.Event()
    messages: list[Message] = []

    async def flood(url: str) -> None:
        async for message in stream(url, each(half_an_hour), sample_rate=SAMPLE_RATE_HZ, call_id="flood"):
            messages.append(message)
            opened.set()

    async with serving(tmp_path, drain_timeout_s=5.0) as served:
        flooding = asyncio.create_task(flood(served.url))
        await asyncio.wait_for(opened.wait(), 20)
    await flooding
    assert messages[-1]["type"] == "session.closed"
    assert messages[-1]["reason"] == "going_away"
    assert messages[-1]["totals"]["received_ms"] < 1_800_000


async def test_what_is_given_up_is_counted(tmp_path: Path) -> None:
    """More speech than can be scored in time: the call fails, its totals say what is missing, nothing hangs."""
    hurry = {**ENVIRONMENT, "MEDUSA_DRAIN_TIMEOUT_S": "0.05"}
    async with (
        EmbeddedRedis.start() as redis,
        serve_program(tmp_path, "--redis", redis.url, env=hurry) as (process, url),
    ):
        speech = pieces(linear16_of(CALL) * 10, 1 << 16)
        first = asyncio.Event()

        async def flood() -> None:
            async for message in stream(url, each(speech), sample_rate=SAMPLE_RATE_HZ, channels=2, call_id="late"):
                if message["type"] == "emotion":
                    first.set()

        flooding = asyncio.create_task(flood())
        await asyncio.wait_for(first.wait(), WITHIN_S)
        process.send_signal(signal.SIGTERM)
        status, said = await outcome(process)
        await asyncio.wait({flooding})
        flooding.exception()
        events = await events_of(redis.url, "late")
    assert (status, "Traceback" in said) == (1, False), said
    assert (events[-1]["type"], events[-1]["reason"]) == ("call.failed", "going_away")
    results = [fields for fields in events if fields["type"] == "emotion"]
    assert int(events[-1]["total_finals"]) == len(results) < int(events[-1]["total_utterances"])


async def said(process: Process, what: str, stream: str = "stderr") -> str:
    """Reads until a line says `what`, and gives that line."""
    reader = process.stderr if stream == "stderr" else process.stdout
    assert reader is not None
    async with asyncio.timeout(WITHIN_S):
        while what not in (line := (await reader.readline()).decode()):
            assert line, f"the program ended without saying {what!r}"
    return line


@pytest.mark.parametrize(
    ("number", "status", "says"),
    [(signal.SIGTERM, 1, "the server ended the call early (going_away), after "), (None, 130, "")],
)
async def test_stream_fails_where_the_server_goes_and_ends_with_ctrl_c(
    tmp_path: Path, number: signal.Signals | None, status: int, says: str
) -> None:
    """In the middle of a call: a signal to the server, or else a Ctrl-C for the client."""
    async with EmbeddedRedis.start() as redis, serve_program(tmp_path, "--redis", redis.url) as (server, url):
        client = await program(tmp_path, "stream", str(CALL), "--url", url, "--reconnect", "0")
        await said(client, "…", "stdout")
        (client if number is None else server).send_signal(number or signal.SIGINT)
        found, problem = await outcome(client)
    assert (found, "Traceback" in problem) == (status, False), problem
    assert problem.startswith(says)
    assert problem.count("\n") == (1 if says else 0)


@pytest.mark.parametrize(
    ("number", "status", "says"),
    [(signal.SIGTERM, 1, "the server ended the call early (going_away)"), (signal.SIGINT, 130, "")],
)
async def test_demo_fails_where_it_is_stopped_in_the_middle(
    tmp_path: Path, number: signal.Signals, status: int, says: str
) -> None:
    """It never calls half a call a success."""
    process = await program(tmp_path, "demo", str(CALL))
    await said(process, "…", "stdout")
    process.send_signal(number)
    async with asyncio.timeout(WITHIN_S):
        out, problem = await process.communicate()
    assert (process.returncode, problem) == (status, b"")
    assert says in out.decode()
    assert "equal those" not in out.decode()


async def test_ctrl_c_ends_a_stream_of_a_silent_input(tmp_path: Path) -> None:
    """At once, and not when the next byte comes."""
    async with serving(tmp_path / "spool") as served:
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "daemon", "stream", "-", "--url", f"{served.url}?call_id=silent"),
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with aclosing(read_events(served.daemon.redis_url, start="0")) as entries:
            await asyncio.wait_for(anext(entries), WITHIN_S)
            client.send_signal(signal.SIGINT)
            async with asyncio.timeout(10):
                status = await client.wait()
        assert client.stdin is not None
        client.stdin.close()
    assert status == 130


async def test_tail_says_that_it_waits_and_reads_the_configuration_of_serve(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "daemon.toml").write_text(f'redis = "redis://user:secret@127.0.0.1:{port}/0"\n', encoding="utf-8")
    tail = await program(tmp_path, "tail", "--config", "daemon.toml", env={**ENVIRONMENT, "COLUMNS": "20"})
    try:
        waiting = await said(tail, "waiting for")
        assert waiting.startswith(f"waiting for redis://***@127.0.0.1:{port}/0: ")
        async with EmbeddedRedis.start(port=port) as server, Redis.from_url(server.url) as client:
            await client.acl_setuser("user", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all"])
            assert await said(tail, "watching") == f"watching redis://***@127.0.0.1:{port}/0\n"
            await client.xadd(DEFAULT_STREAMS.events_key, dict[Any, Any](redis_fields(make_call_event())))
            await said(tail, "call call-1 started", "stdout")
        await said(tail, "waiting for")
        tail.send_signal(signal.SIGINT)
        status, problem = await outcome(tail)
        assert (status, "Traceback" in problem) == (130, False), problem
    finally:
        if tail.returncode is None:
            tail.kill()
            await tail.communicate()


async def test_a_connection_that_says_nothing_holds_up_no_shutdown(tmp_path: Path) -> None:
    """It has no stream to finish: it is sent away."""
    async with serving(tmp_path) as served:
        silent = await connect(served.url)
        await until(lambda: served.daemon.streams.connections == 1)
        begun = time.monotonic()
    await silent.wait_closed()
    assert silent.close_code == 1001
    assert time.monotonic() - begun < 5.0


async def test_a_kill_in_the_middle_of_a_shutdown_loses_nothing(tmp_path: Path) -> None:
    """While it finishes streams, with Redis away: what was published before is on disk by then."""
    port = free_port()
    redis = f"redis://127.0.0.1:{port}/0"
    async with serve_program(tmp_path, "--redis", redis) as (process, url):
        messages = [
            message async for message in stream(url, each(pieces(linear16_of(TWO))), call_id="killed", interim_ms=0)
        ]
        spooled = tmp_path / ".medusa" / "spool" / "spool.jsonl"
        busy, first = pieces(linear16_of(CALL) * 10, 1 << 16), asyncio.Event()

        async def flood() -> None:
            async for message in stream(url, each(busy), sample_rate=SAMPLE_RATE_HZ, channels=2):
                if message["type"] == "emotion":
                    first.set()

        flooding = asyncio.create_task(flood())
        await asyncio.wait_for(first.wait(), WITHIN_S)
        assert spooled.stat().st_size == 0
        process.send_signal(signal.SIGTERM)
        await until(lambda: spooled.stat().st_size > 0)
        assert not flooding.done()
        process.kill()
        await process.communicate()
        with pytest.raises(ConnectionError):
            await flooding
    async with EmbeddedRedis.start(port=port), serving(tmp_path / ".medusa" / "spool", redis=redis):
        _, *stored, ended = await events_of(redis, "killed")
    assert [fields["event_id"] for fields in stored] == [message["event_id"] for message in finals(messages)]
    assert ended["type"] == "call.ended"


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "localhost"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
async def test_the_urls_that_serve_prints_can_be_opened(tmp_path: Path, host: str, shown: str) -> None:
    """A wildcard is an address to listen on, none to go to."""
    password = "redis://user:secret@127.0.0.1:1/0"
    async with serve_program(tmp_path, "--redis", password, "--host", host, "--insecure") as (process, url):
        assert url.startswith(f"ws://{shown}:")
        assert await said(process, "events", "stdout") == "events  redis://***@127.0.0.1:1/0  (stream medusa:events)\n"
        async with connect(f"{url}?channels=1") as connection:
            assert json.loads(await connection.recv())["type"] == "session.created"
        process.kill()
        await process.communicate()
