"""`medusa-daemon`: serve, stream a file, watch events, check a configuration, demonstrate."""

import asyncio
import json
import logging
import math
import sys
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from daemon.access.keys import digest, new_key
from daemon.access.principal import ROLES
from daemon.access.settings import KEY_NAME
from daemon.audit.writer import AUDIT_KEY
from daemon.check import checked
from daemon.client import DEFAULT_URL, paced, piped
from daemon.client import stream as stream_messages
from daemon.config import Config, Role, load_config
from daemon.demo import OWN_CALL, run_demo
from daemon.errors import DaemonError
from daemon.events import read_events
from daemon.fleet.keys import FleetKeys
from daemon.fleet.serving import WorkerProcess, serve_worker
from daemon.listening import authority
from daemon.live import ending, flat, show
from daemon.memory import share_arenas
from daemon.offline import score_recording
from daemon.server import Daemon
from daemon.server import serve as serve_forever
from daemon.sinks.redis import without_password
from daemon.wire import redis_fields
from model.recording import RecordingError, read_recording
from model.version import told

if sys.platform == "win32":
    from asyncio import run as run_served
else:
    from uvloop import run as run_served  # hundreds of small messages a second: they cost half of what asyncio asks

app = typer.Typer(help="Streaming speech emotion recognition.", no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()
_LEAST_ARENAS = 2
errors = Console(stderr=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file.", dir_okay=False)]
BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Bundle to serve.", file_okay=False)]
RedisOption = Annotated[str | None, typer.Option("--redis", help="redis:// URL, or `embedded`.")]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on.")]
InsecureOption = Annotated[
    bool | None,
    typer.Option(
        "--insecure", help="Serve other machines without keys or TLS, for instance behind a proxy that has both."
    ),
]
PortOption = Annotated[int | None, typer.Option("--port", help="Port to listen on.")]
RoleOption = Annotated[Role | None, typer.Option("--role", help="Everything, or only the streams, or only the models.")]
FileArgument = Annotated[Path, typer.Argument(help="Recording in any format.", dir_okay=False)]


def _speed(value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"{value:g} is no speed: 1 is real time, 2 twice as fast, 0 as fast as can be")
    return value


SpeedOption = Annotated[
    float, typer.Option(help="1 is real time, 0 as fast as the server takes it.", callback=_speed, metavar="FACTOR")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(told("medusa-daemon"))
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Streaming speech emotion recognition."""


def _complain(problem: object, style: str = "red") -> None:
    """Prints a line as it is: a path may hold brackets, and must not be broken into lines."""
    errors.print(str(problem), style=style, markup=False, highlight=False, soft_wrap=True)


def _run(work: Coroutine[Any, Any, int], run: Callable[[Coroutine[Any, Any, int]], int] = asyncio.run) -> None:
    """Runs a command; our own errors become one message and exit status 2."""
    try:
        status = run(work)
    except (DaemonError, RecordingError) as error:
        _complain(error)
        raise typer.Exit(2) from error
    except OSError as error:
        _complain(error)
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
    host: HostOption = None,
    port: PortOption = None,
    role: RoleOption = None,
    insecure: InsecureOption = None,
) -> None:
    """Serve streams until Ctrl-C or SIGTERM.

    Example: medusa-daemon serve --redis redis://localhost:6379/0 --port 8765
    """
    settings = _config(config, redis=redis, bundle=bundle, host=host, port=port, role=role, insecure=insecure)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    share_arenas(max(_LEAST_ARENAS, settings.models.workers))

    def working(process: WorkerProcess, listening: int) -> None:
        for line in (
            f"probes  http://{authority(settings.host, listening)}/ready",
            f"work    {without_password(process.redis_url)}  (stream {FleetKeys(settings.work_of(process.bundle_id)).work})",
            f"bundle  {process.bundle_id}",
        ):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def ready(daemon: Daemon, listening: int) -> None:
        address, secure = authority(settings.host, listening), "s" if settings.tls.cert else ""
        for line in (
            f"page    http{secure}://{address}/",
            f"stream  ws{secure}://{address}/v1/stream",
            f"events  {without_password(daemon.redis_url)}  (stream medusa:events)",
            f"bundle  {daemon.bundle_id}",
        ):
            # An IPv6 address has brackets, and a line that is broken is no address.
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    _run(serve_worker(settings, working) if settings.role == "worker" else serve_forever(settings, ready), run_served)


@app.command()
def stream(
    file: Annotated[
        str, typer.Argument(help="Recording in any format; - for 16 kHz linear16 mono from standard input.")
    ],
    url: Annotated[str, typer.Option(help="Stream URL.")] = DEFAULT_URL,
    speed: SpeedOption = 1.0,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the API key, where the server asks for one.", dir_okay=False)
    ] = None,
    reconnect: Annotated[
        float, typer.Option(help="How long a lost connection is tried again; 0 never.", metavar="SECONDS", min=0.0)
    ] = 30.0,
) -> None:
    """Stream a recording as a live client and show the results.

    Example: medusa-daemon stream call.wav
    """
    token = None if token_file is None else token_file.read_text(encoding="utf-8").strip()
    _run(_stream(file, url, speed, token=token, reconnect_s=reconnect))


async def _stream(file: str, url: str, speed: float, **connection: Any) -> int:
    if file == "-":
        chunks, channels = piped(sys.stdin.fileno()), 1
    else:
        audio = read_recording(Path(file))
        chunks, channels = paced(audio, speed), len(audio)
    status = 0
    async for message in stream_messages(url, chunks, channels=channels, sample_rate=16_000, **connection):
        if message["type"] == "session.created":
            status = 0  # also where another stream goes on with the call
        elif message["type"] == "emotion":
            show(console, flat(message))
        elif message["type"] == "error":
            _complain(message["message"])
            status = 1
        elif message["type"] == "session.closed":
            line, good = ending(message)
            if line is not None:
                _complain(line, "yellow" if good else "red")
            status = status if good else 1
    return status


@app.command()
def tail(
    config: ConfigOption = None,
    redis: RedisOption = None,
    call: Annotated[str | None, typer.Option(help="Show this call alone.")] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Show who did what instead: the audit stream.")] = False,
    begin: Annotated[
        bool, typer.Option("--from-start", help="Begin with the oldest entry that Redis has, not with the next one.")
    ] = False,
) -> None:
    """Show events as they arrive in Redis: in the one that `serve` publishes to under the same configuration.

    Example: medusa-daemon tail --redis redis://localhost:6379/0

    Example: medusa-daemon tail --audit --from-start
    """
    _run(_tail(_config(config, redis=redis), call, audit=audit, begin=begin))


async def _tail(config: Config, call: str | None, *, audit: bool, begin: bool) -> int:
    url = config.redis_url()
    key = AUDIT_KEY if audit else config.stream_settings().events_key
    shown = without_password(url)

    def tell(problem: str | None) -> None:
        if problem is None:
            _complain(f"watching {shown}", "dim")
        else:
            _complain(f"waiting for {shown}: {problem}", "yellow")

    async for _, fields in read_events(url, key=key, start="0" if begin else "$", on_change=tell):
        if call is not None and fields.get("call") != call:
            continue
        if audit:
            console.print(_audit_line(fields), markup=False, highlight=False, soft_wrap=True)
        else:
            show(console, fields)
    return 0


def _audit_line(fields: Mapping[str, str]) -> str:
    """When, what, who, and all else that an entry says."""
    rest = [
        f"{name}={fields[name]}" for name in fields if name not in ("v", "type", "ts", "who", "count") and fields[name]
    ]
    often = "" if fields.get("count", "1") == "1" else f" {fields['count']} times"
    when = datetime.fromtimestamp(int(fields["ts"]) / 1000, UTC).isoformat(" ", "seconds")
    return "  ".join(filter(None, (when, fields["type"] + often, fields.get("who"), " ".join(rest))))


@app.command()
def score(file: FileArgument, config: ConfigOption = None, bundle: BundleOption = None) -> None:
    """Score a recording without a server: what a stream of it would give.

    Example: medusa-daemon score call.wav
    """
    _run(_score(file, _config(config, bundle=bundle)))


async def _score(file: Path, config: Config) -> int:
    events = await score_recording(file, config)
    for event in events:
        show(console, redis_fields(event))
    if not events:
        _complain(f"no speech was found in {file}", "yellow")
    return 0


@app.command()
def check(
    config: ConfigOption = None,
    redis: RedisOption = None,
    bundle: BundleOption = None,
    host: HostOption = None,
    port: PortOption = None,
    insecure: InsecureOption = None,
) -> None:
    """Check configuration, models and device, and say what would be served: what passes here, `serve` takes.

    Example: medusa-daemon check --config daemon.toml
    """
    settings = _config(config, redis=redis, bundle=bundle, host=host, port=port, insecure=insecure)
    try:
        rows = checked(settings)
    except DaemonError as error:
        _complain(error)
        raise typer.Exit(2) from error
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Who will use it.")],
    roles: Annotated[str, typer.Option(help=f"Some of {', '.join(ROLES)}, separated by commas.")] = "ingest",
) -> None:
    """Make an API key: prints it, once, and the lines that the configuration needs.

    Example: medusa-daemon key billing --roles ingest,read
    """
    asked = [role.strip() for role in roles.split(",")]
    if unknown := [role for role in asked if role not in ROLES]:
        raise typer.BadParameter(f"{unknown[0]!r} is no role: there are {', '.join(ROLES)}", param_hint="--roles")
    if not KEY_NAME.fullmatch(name):
        raise typer.BadParameter(f"{name!r} has 1 to 64 letters, digits and any of _.-", param_hint="NAME")
    made = new_key()
    _complain("This is the key. It is shown once and kept nowhere: hand it to its user.", "yellow")
    typer.echo(made)
    _complain("These lines belong into the configuration of the daemon; they do not give the key away.", "yellow")
    table = f'"{name}"' if "." in name else name
    typer.echo(f'\n[access.keys.{table}]\nsha256 = "{digest(made)}"\nroles = {json.dumps(asked)}')


@app.command()
def demo(
    call: Annotated[Path, typer.Argument(help="Recording of a call; ours by default.")] = OWN_CALL,
    speed: SpeedOption = 1.0,
) -> None:
    """Run a daemon, stream a call into it, and show its events as they come back from Redis.

    Example: medusa-daemon demo recording.wav
    """
    _run(run_demo(call, console, speed))
