"""The secrets of carriers: read from anywhere, and never shown."""

import json
from pathlib import Path

import pytest

from daemon.config import load_config
from daemon.errors import ConfigError

SECRET = "c2VjcmV0LXNlY3JldA=="


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUSA_TELEPHONY__TWILIO_AUTH_TOKEN", SECRET)
    monkeypatch.setenv("MEDUSA_TELEPHONY__AUDIOHOOK_KEYS", json.dumps({"key": SECRET}))
    monkeypatch.setenv("MEDUSA_TELEPHONY__PUBLIC_URL", "wss://voice.example.com")
    telephony = load_config(None, {}).telephony
    assert telephony.twilio_auth_token is not None
    assert telephony.twilio_auth_token.get_secret_value() == SECRET
    assert telephony.audiohook_keys["key"].get_secret_value() == SECRET
    assert telephony.public_url == "wss://voice.example.com"
    assert SECRET not in repr(load_config(None, {}))
    assert SECRET not in load_config(None, {}).model_dump_json()


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        (
            f'twillio_auth_token = "{SECRET}"',
            "telephony.twillio_auth_token: Extra inputs are not permitted (got a secret)",
        ),
        (
            f'twilio_auth_token = ["{SECRET}"]',
            "telephony.twilio_auth_token: Input should be a valid string (got a secret)",
        ),
        (
            f'audiohook_keys = {{ key = "{SECRET}!" }}',
            "its client secret, which is base64 and not empty (got a secret)",
        ),
        ('audiohook_keys = { key = "" }', "base64 and not empty"),
        (f'audiohook_keys = "{SECRET}"', "telephony.audiohook_keys: Input should be a valid dictionary (got a secret)"),
        ('public_url = "voice.example.com"', "an address like wss://voice.example.com"),
        ('public_url = "wss://voice.example.com/?a=1"', "got 'wss://voice.example.com/?a=1'"),
    ],
)
def test_mistakes_show_no_secret(tmp_path: Path, toml: str, says: str) -> None:
    file = tmp_path / "medusa.toml"
    file.write_text(f"[telephony]\n{toml}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MEDUSA_TELEPHONY", json.dumps({"twillio": SECRET})),
        ("MEDUSA_TELEPHONY", json.dumps(SECRET)),
        ("MEDUSA_TELEPHONY__AUDIOHOOK_KEYS", "{" + SECRET),
    ],
)
def test_mistakes_in_the_environment_show_no_secret(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_config(None, {})
    assert variable in str(caught.value)
    assert SECRET not in str(caught.value)
