"""`medusa-daemon`: serve, stream a file, watch events, check a configuration, demonstrate."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from daemon.client import DEFAULT_URL, paced
from daemon.client import stream as stream_messages
from daemon.config import Config, load_config
from daemon.demo import OWN_CALL, run_demo
from daemon.engine import load_models, pick_device
from daemon.errors import DaemonError
from daemon.events import read_events
from daemon.live import flat, show
from daemon.offline import score_recording
from daemon.server import Daemon
from daemon.server import serve as serve_forever
from daemon.wire import redis_fields
from model.recording import RecordingError, read_recording

app = typer.Typer(help="Streaming speech emotion recognition.", no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()
errors = Console(stderr=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file.", dir_okay=False)]
BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Bundle to serve.", file_okay=False)]
RedisOption = Annotated[str | None, typer.Option("--redis", help="redis:// URL, or `embedded`.")]
FileArgument = Annotated[Path, typer.Argument(help="Recording in any format.", dir_okay=False)]


def _complain(problem: object) -> None:
    """Prints an error as it is: a path may hold brackets, and must not be broken into lines."""
    errors.print(str(problem), style="red", markup=False, highlight=False, soft_wrap=True)


def _run(work: Coroutine[Any, Any, int]) -> None:
    """Runs a command; our own errors become one message and exit status 2."""
    try:
        status = asyncio.run(work)
    except (DaemonError, RecordingError) as error:
        _complain(error)
        raise typer.Exit(2) from error
    except (ConnectionError, OSError) as error:
        _complain(f"cannot reach the server: {error}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    raise typer.Exit(status)


def _config(path: Path | None, **flags: Any) -> Config:
    try:
        return load_config(path, flags)
    except DaemonError as error:
        _complain(error)
        raise typer.Exit(2) from error


@app.command()
def serve(
    config: ConfigOption = None,
    redis: RedisOption = None,
    bundle: BundleOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Serve streams until Ctrl-C or SIGTERM.

    Example: medusa-daemon serve --redis redis://localhost:6379/0 --port 8765
    """
    settings = _config(config, redis=redis, bundle=bundle, host=host, port=port)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def ready(daemon: Daemon, listening: int) -> None:
        console.print(f"page    http://{settings.host}:{listening}/", highlight=False)
        console.print(f"stream  ws://{settings.host}:{listening}/v1/stream", highlight=False)
        console.print(f"events  {daemon.redis_url}  (stream medusa:events)", highlight=False)
        console.print(f"bundle  {daemon.bundle_id}", highlight=False)

    _run(serve_forever(settings, ready))


@app.command()
def stream(
    file: Annotated[
        str, typer.Argument(help="Recording in any format; - for 16 kHz linear16 mono from standard input.")
    ],
    url: Annotated[str, typer.Option(help="Stream URL.")] = DEFAULT_URL,
    speed: Annotated[float, typer.Option(help="1 is real time, 0 as fast as the server takes it.")] = 1.0,
) -> None:
    """Stream a recording as a live client and show the results.

    Example: medusa-daemon stream call.wav
    """
    _run(_stream(file, url, speed))


async def _stream(file: str, url: str, speed: float) -> int:
    if file == "-":
        chunks, channels = _standard_input(), 1
    else:
        audio = read_recording(Path(file))
        chunks, channels = paced(audio, speed), len(audio)
    status = 0
    async for message in stream_messages(url, chunks, channels=channels, sample_rate=16_000):
        if message["type"] == "emotion":
            show(console, flat(message))
        elif message["type"] == "error":
            _complain(message["message"])
            status = 1
    return status


async def _standard_input() -> AsyncIterator[bytes]:
    while block := await asyncio.to_thread(sys.stdin.buffer.read, 1280):
        yield block[: len(block) // 2 * 2]


@app.command()
def tail(
    redis: Annotated[str, typer.Option(help="redis:// URL.")] = "redis://127.0.0.1:6390/0",
    call: Annotated[str | None, typer.Option(help="Show this call alone.")] = None,
) -> None:
    """Show events as they arrive in Redis.

    Example: medusa-daemon tail --redis redis://localhost:6379/0
    """
    _run(_tail(redis, call))


async def _tail(url: str, call: str | None) -> int:
    async for _, fields in read_events(url):
        if call is None or fields.get("call") == call:
            show(console, fields)
    return 0


@app.command()
def score(file: FileArgument, config: ConfigOption = None, bundle: BundleOption = None) -> None:
    """Score a recording without a server: what a stream of it would give.

    Example: medusa-daemon score call.wav
    """
    _run(_score(file, _config(config, bundle=bundle)))


async def _score(file: Path, config: Config) -> int:
    for event in await score_recording(file, config):
        show(console, redis_fields(event))
    return 0


@app.command()
def check(config: ConfigOption = None, bundle: BundleOption = None, redis: RedisOption = None) -> None:
    """Check configuration, models and device, and say what would be served.

    Example: medusa-daemon check --config daemon.toml
    """
    settings = _config(config, bundle=bundle, redis=redis)
    try:
        device = pick_device(settings.models.device)
        models = load_models(settings.bundle, settings.engine_settings())
    except DaemonError as error:
        _complain(error)
        raise typer.Exit(2) from error
    manifest = models.bundle.manifest
    table = Table(show_header=False)
    rows = {
        "bundle": models.bundle.id,
        "members": ", ".join(member.name for member in manifest.ensemble.members),
        "classes": ", ".join(manifest.ensemble.trained_classes),
        "attributes": ", ".join(manifest.ensemble.trained_attributes) or "none trained",
        "encoders": ", ".join(f"{e.name} ({e.compute_type})" for e in manifest.ensemble.encoders),
        "licence": str(manifest.training["licence"]),
        "device": device,
        "redis": settings.redis,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


@app.command()
def demo(
    call: Annotated[Path, typer.Argument(help="Recording of a call; ours by default.")] = OWN_CALL,
    speed: Annotated[float, typer.Option(help="1 is real time, 0 as fast as the server takes it.")] = 1.0,
) -> None:
    """Run a daemon, stream a call into it, and show its events as they come back from Redis.

    Example: medusa-daemon demo recording.wav
    """
    _run(run_demo(call, console, speed))
