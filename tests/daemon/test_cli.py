"""The command line: every command explains itself, and does what it says."""

import asyncio
import re
import socket
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result
from websockets.asyncio.client import connect

from daemon import cli
from daemon.config import DEFAULT_BUNDLE
from model.bundle import read_bundle
from model.version import told
from tests.daemon.conftest import ASSETS, serving

COMMANDS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]  # it is a group
TWO = ASSETS / "two_sentences.flac"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default spool lies in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no line is broken."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


def run(*arguments: str | Path) -> Result:
    """One command, in this process."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_the_commands_are_those_of_the_design() -> None:
    assert {"serve", "stream", "tail", "score", "check", "demo"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: medusa-daemon {command}" in result.output


def test_no_command_shows_the_help() -> None:
    assert all(command in run().output for command in COMMANDS)


def test_score_shows_every_utterance_of_a_clip() -> None:
    result = run("score", TWO)
    assert result.exit_code == 0, result.output
    assert result.output.count("customer") == 2
    assert "Friday" in result.output
    assert "neutral" in result.output


def test_check_says_what_would_be_served() -> None:
    result = run("check")
    assert result.exit_code == 0, result.output
    manifest = read_bundle(DEFAULT_BUNDLE).manifest
    assert manifest.bundle_id in result.output
    assert all(member.name in result.output for member in manifest.ensemble.members)
    assert "embedded" in result.output
    precision = next(line for line in result.output.splitlines() if "precision" in line)
    assert "whisper float32 (its words int8)" in precision


@pytest.mark.parametrize("command", ["score", "demo"])
@pytest.mark.parametrize("name", ["none.wav", "manifest.json"])
def test_a_file_that_is_no_recording(command: str, name: str) -> None:
    """Status 2 and one message that names it."""
    result = run(command, DEFAULT_BUNDLE / name)
    assert result.exit_code == 2
    assert name in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["serve", "check", "tail"])
def test_a_mistake_in_the_configuration(command: str, tmp_path: Path) -> None:
    """Told before anything is loaded."""
    file = tmp_path / "daemon.toml"
    file.write_text("[limits]\nmax_streams = 0\n")
    result = run(command, "--config", file)
    assert result.exit_code == 2
    assert "limits.max_streams" in result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("LOG_LEVEL", "loud", "log_level: Input should be 'DEBUG'"),
        ("REDIS", "localhost:6379", "redis: not a Redis URL"),
        ("HOST", "nowhere.invalid", "cannot listen on nowhere.invalid port 0"),
        ("HOST", "192.0.2.1", "cannot listen on 192.0.2.1 port 0: "),
        ("HOST", "a" * 64, "cannot listen on aaa"),
        (
            "STREAMS__SPOOL_DIR",
            "daemon.toml/spool",
            "cannot write the spool directory daemon.toml/spool: Not a directory",
        ),
        (
            "STREAMS__EMBEDDED_DIR",
            "daemon.toml/data",
            "the embedded Redis cannot write daemon.toml/data: Not a directory",
        ),
    ],
)
def test_check_refuses_what_serve_refuses(
    variable: str, value: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same words."""
    (tmp_path / "daemon.toml").touch()
    monkeypatch.setenv("MEDUSA_PORT", "0")
    monkeypatch.setenv(f"MEDUSA_{variable}", value)
    results = [run(command) for command in ("check", "serve")]
    assert [result.exit_code for result in results] == [2, 2]
    assert says in results[0].stderr
    assert results[0].stderr == results[1].stderr
    assert "Traceback" not in results[0].output


def test_check_leaves_nothing_behind(tmp_path: Path) -> None:
    """Who checks may be another user than who serves."""
    assert run("check").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_check_of_a_running_daemon_says_that_its_port_is_in_use() -> None:
    """That is no mistake."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("check", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 0, result.output
    assert "in use at this moment" in result.output


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a silent fallback."""
    monkeypatch.setenv("MEDUSA_MODELS__DEVICE", "tpu")
    result = run("check")
    assert result.exit_code == 2
    assert "tpu" in result.stderr


def test_demo_streams_a_clip_and_reads_it_back_from_redis() -> None:
    """Status 0 says that Redis holds what the client got."""
    result = run("demo", TWO, "--speed", "0")
    assert result.exit_code == 0, result.output
    assert "Friday" in result.output
    assert "read back from Redis equal those the client received" in result.output


def test_demo_of_silence_fails_and_says_why() -> None:
    result = run("demo", ASSETS / "silence_noise.flac", "--speed", "0")
    assert result.exit_code == 1
    assert "no utterance was found" in result.output


@pytest.mark.parametrize(
    ("url", "status", "says"),
    [
        ("ws://127.0.0.1:1/v1/stream", 1, "cannot reach the server: nobody listens at ws://127.0.0.1:1/v1/stream"),
        ("ws://nowhere.invalid/v1/stream", 1, "cannot reach the server: ws://nowhere.invalid/v1/stream"),
        ("http://127.0.0.1:8765/v1/stream", 2, "'http://127.0.0.1:8765/v1/stream' is no URL of a stream"),
        ("127.0.0.1:8765", 2, "'127.0.0.1:8765' is no URL of a stream"),
    ],
)
def test_stream_without_a_server(url: str, status: int, says: str) -> None:
    """One line."""
    result = run("stream", TWO, "--url", url)
    assert result.exit_code == status
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["stream", "demo"])
@pytest.mark.parametrize("speed", ["-1", "nan", "inf"])
def test_a_speed_that_is_none_is_refused(command: str, speed: str) -> None:
    """Before anything is started."""
    result = run(command, TWO, "--speed", speed)
    assert result.exit_code == 2
    assert f"{speed} is no speed: 1 is real time" in result.stderr


def test_tail_cannot_know_a_port_that_is_chosen_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUSA_STREAMS__EMBEDDED_PORT", "0")
    result = run("tail")
    assert result.exit_code == 2
    assert "--redis" in result.stderr


def test_the_version_is_that_of_the_distribution() -> None:
    assert run("--version").output == f"{told('medusa-daemon')}\n"


async def test_tail_shows_who_did_what(tmp_path: Path) -> None:
    """The audit stream, from its begin, as a program whose output somebody reads."""
    async with serving(tmp_path / "spool", policy={"analyze": ["customer"]}) as served:
        await served.stream([b"\0" * 3200], call_id="heard", channels=2)
        await served.get("/api/calls/heard")
        command = ("-m", "daemon", "tail", "--audit", "--from-start", "--redis", served.daemon.redis_url)
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                lines = [(await process.stdout.readline()).decode() for _ in range(3)]
        finally:
            process.terminate()
            await process.wait()
    started, opened, read = (line.split() for line in lines)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00", " ".join(started[:2]))
    assert started[2] == "daemon.started"
    assert {"analyze=customer", "transcripts=full", "access=none"} <= set(started)
    assert opened[2:4] == ["stream.opened", "anyone"]
    assert {"call=heard", "roles=customer,agent", "analyzed=customer"} <= set(opened)
    assert (read[2:4], "call=heard" in read) == (["call.read", "anyone"], True)


def test_score_of_silence_says_so() -> None:
    result = run("score", ASSETS / "silence_noise.flac")
    assert result.exit_code == 0
    assert "no speech was found in" in result.stderr


async def test_stream_shows_results_or_why_there_are_none(tmp_path: Path) -> None:
    """Also of a full server, and of a server that has no streams at the URL."""

    async def streamed(url: str, file: Path = TWO) -> Result:
        """In a thread, because the command has a loop of its own."""
        return await asyncio.to_thread(run, "stream", file, "--url", url, "--speed", "0")

    async with serving(tmp_path / "spool", limits={"max_streams": 1}) as served:
        good = await streamed(f"{served.url}?call_id=named")
        events = await served.events("named")
        silent = await streamed(served.url, ASSETS / "silence_noise.flac")
        page = await streamed(served.url.replace("/v1/stream", "/health"))
        async with connect(f"{served.url}?channels=1") as held:
            await held.recv()
            full = await streamed(served.url)
    assert (good.exit_code, good.stderr) == (0, "")
    assert "Friday" in good.output
    assert [fields["type"] for fields in events if fields["type"] != "emotion.interim"] == [
        "call.started",
        "emotion",
        "emotion",
        "call.ended",
    ]
    assert silent.exit_code == 0
    assert re.fullmatch(r"no speech was found in \d+\.\d s of audio\n", silent.stderr)
    assert page.exit_code == full.exit_code == 1
    assert "is no stream server" in page.stderr
    assert "come back later" in full.stderr
    assert "1013" in full.stderr
