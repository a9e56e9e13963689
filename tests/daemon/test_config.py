"""Configuration: file, then environment, then flags; every mistake is told at once."""

import os
from pathlib import Path

import pytest

from daemon.config import DEFAULT_BUNDLE, EMBEDDED, load_config
from daemon.errors import ConfigError
from model.segmenter import Endpointing


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set around us is not what a test sets."""
    for name in [name for name in os.environ if name.startswith("MEDUSA_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its configuration."""
    return tmp_path / "daemon.toml"


def mistakes(path: Path | None, **flags: object) -> str:
    """The message for a configuration that cannot work."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, flags)
    return str(caught.value)


def test_the_defaults_work() -> None:
    config = load_config(None, {})
    assert (config.host, config.port, config.redis) == ("127.0.0.1", 8765, EMBEDDED)
    assert config.bundle == DEFAULT_BUNDLE
    assert config.endpointing_rules() == Endpointing()
    assert config.engine_settings().threads >= 1


def test_each_source_wins_over_the_one_before(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('host = "file"\nport = 1\ninterim_ms = 10\n[limits]\nmax_streams = 1\noutbox = 7\n')
    monkeypatch.setenv("MEDUSA_PORT", "2")
    monkeypatch.setenv("MEDUSA_INTERIM_MS", "20")
    monkeypatch.setenv("MEDUSA_LIMITS__MAX_STREAMS", "2")
    config = load_config(file, {"interim_ms": 30, "port": None})
    assert (config.host, config.port, config.interim_ms) == ("file", 2, 30)
    assert (config.limits.max_streams, config.limits.outbox) == (2, 7)


def test_a_flag_inside_a_section_leaves_the_others_alone(file: Path) -> None:
    file.write_text("[streams]\nmaxlen = 5\n")
    config = load_config(file, {"streams": {"embedded_port": 0}})
    assert (config.streams.maxlen, config.streams.embedded_port) == (5, 0)


def test_flags_that_were_not_given_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUSA_HOST", "0.0.0.0")
    assert load_config(None, {"host": None}).host == "0.0.0.0"


def test_all_mistakes_are_told_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From every source, each with its name and what was given."""
    file.write_text("prot = 8765\n[limits]\nmax_streams = 0\n[models]\nthreds = 2\n[endpointing]\nonset = 2.5\n")
    monkeypatch.setenv("MEDUSA_INTERIM_MS", "-5")
    message = mistakes(file, port=70_000)
    assert message.startswith("the configuration has 6 mistakes:")
    for name, given in {
        "prot": "8765",
        "limits.max_streams": "0",
        "models.threds": "2",
        "interim_ms": "-5",
        "port": "70000",
        "endpointing": "2.5",
    }.items():
        (line,) = [line for line in message.splitlines() if line.startswith(f"  {name}: ")]
        assert given in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port = ", "is not TOML"),
        ("[limits]\nmax_stream = 1\n", "limits.max_stream"),
        ("[endpointing]\nonset = 0.2\noffset = 0.3\n", "offset <= onset"),
        ("[endpointing]\nendpoint_silence_ms = 10\n", "got 10"),
        ("limits = 3\n", "limits"),
    ],
)
def test_a_mistake_in_the_file(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    assert says in mistakes(file)


def test_an_unknown_section_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that pydantic cannot even place."""
    monkeypatch.setenv("MEDUSA_LIMITS__MAX_STREEMS", "1")
    assert "limits.max_streems" in mistakes(None)


def test_a_section_in_the_environment_that_is_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUSA_LIMITS", "many")
    monkeypatch.setenv("MEDUSA_MODELS__WHISPER_SOURCES", '["path:/here"]')
    message = mistakes(None)
    assert '"limits"' in message
    assert ", from MEDUSA_LIMITS: it must be JSON" in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    message = mistakes(tmp_path / "none.toml")
    assert f"{tmp_path / 'none.toml'}" in message
    assert "No such file" in message


def test_a_file_that_is_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    assert str(file) in mistakes(file)


def test_a_variable_that_means_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUSA_REDDIS", "redis://somewhere")
    with pytest.raises(ConfigError, match="reddis: Extra inputs are not permitted"):
        load_config(None, {})


def test_one_mistake_is_one(file: Path) -> None:
    file.write_text("port = -1\n")
    assert mistakes(file).startswith("the configuration has a mistake:\n  port: ")


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("MEDUSA_PORT", "eighty", "port"),
        ("medusa_port", "eighty", "port"),
        ("MEDUSA_LIMITS__OUTBOX", "0", "limits.outbox"),
        ("MEDUSA_LIMITS", '{"outbox": 0}', "limits.outbox"),
        ("MEDUSA_ENDPOINTING__ONSET", "2", "endpointing"),
        ("MEDUSA_MODELS__WHISPER_SOURCES", "[1]", "models.whisper_sources.0"),
        ("MEDUSA_REDDIS", "redis://here", "reddis"),
    ],
)
def test_the_variable_that_said_it_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, key: str
) -> None:
    """And no other: a mistake of the file has none."""
    file.write_text("interim_ms = -1\n[limits]\nmax_streams = 0\n")
    monkeypatch.setenv(variable, value)
    _, *lines = mistakes(file).splitlines()
    (line,) = [line for line in lines if line.startswith(f"  {key}: ")]
    assert line.endswith(f", from {variable})")
    assert len(lines) == 3
    assert sum(", from " in line for line in lines) == 1


def test_a_flag_that_wins_over_a_variable_is_not_the_variables_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUSA_PORT", "80")
    assert "MEDUSA" not in mistakes(None, port=70_000)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("log_level", "loud", "'INFO', 'WARNING'"),
        ("redis", "localhost:6379", "not a Redis URL"),
        ("redis", "http://localhost", "redis://"),
        ("redis", "redis://localhost:port/0", "not a Redis URL"),
        ("redis", "redis://localhost/0?tiemout=3", "'tiemout'"),
        ("host", "", "at least 1 character"),
    ],
)
def test_what_serve_would_refuse_is_a_mistake_of_the_configuration(key: str, value: str, says: str) -> None:
    """Told by `check` too, and with all others."""
    message = mistakes(None, **{key: value})
    assert f"\n  {key}: " in message
    assert says in message


def test_a_password_is_not_shown() -> None:
    """Also where the URL is none."""
    for url in ("redis://user:secret@host:port/0", "user:secret@host:6379", "http://host?password=secret"):
        message = mistakes(None, redis=url)
        assert "secret" not in message
        assert "host" in message


def test_a_log_level_may_be_written_small() -> None:
    assert load_config(None, {"log_level": "debug"}).log_level == "DEBUG"


def test_where_the_events_are() -> None:
    """For who reads them under the configuration of who writes them."""
    assert load_config(None, {}).redis_url() == "redis://127.0.0.1:6390/0"
    assert load_config(None, {"streams": {"embedded_port": 7000}}).redis_url() == "redis://127.0.0.1:7000/0"
    assert load_config(None, {"redis": "rediss://far:1/2"}).redis_url() == "rediss://far:1/2"
    with pytest.raises(ConfigError, match="embedded_port is 0"):
        load_config(None, {"streams": {"embedded_port": 0}}).redis_url()
