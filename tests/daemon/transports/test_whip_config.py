"""The section `webrtc`: what is taken, what is refused, and that a credential is never shown."""

from typing import Any

import pytest

from daemon.config import load_config
from daemon.errors import ConfigError
from daemon.transports.whip.rules import IceServer, WhipRules

TURN: dict[str, Any] = {"urls": ("turn:turn.example.org",), "username": "joe", "credential": "s3cret"}


def test_nothing_is_the_default() -> None:
    assert load_config(None, {}).webrtc.rules() == WhipRules()


def test_what_the_door_gets() -> None:
    stun = {"urls": ["stun:192.0.2.1:3478", "stuns:stun.example.org"]}
    section = {"ice_servers": [stun, TURN], "public_address": "203.0.113.9", "allowed_origins": ["https://a.org", "*"]}
    assert load_config(None, {"webrtc": section}).webrtc.rules() == WhipRules(
        (
            IceServer(("stun:192.0.2.1:3478", "stuns:stun.example.org")),
            IceServer(("turn:turn.example.org",), "joe", "s3cret"),
        ),
        "203.0.113.9",
        ("https://a.org", "*"),
    )


@pytest.mark.parametrize(
    "section",
    [
        {"ice_servers": [{"urls": []}]},
        {"ice_servers": [{"urls": ["http://example.org"]}]},
        {"ice_servers": [{"urls": ["stun:example.org?transport=udp"]}]},
        {"ice_servers": [{"urls": ["turn:example.org"], "username": "joe"}]},
        {"ice_servers": [TURN | {"urls": ["turn:example.org?transport=sctp"]}]},
        {"public_address": "example.org"},
        {"public_address": "::1"},
        {"allowed_origins": ["example.org"]},
        {"allowed_origins": ["https://example.org/page"]},
        {"port_range": [1, 2]},
    ],
)
def test_what_cannot_work_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="webrtc"):
        load_config(None, {"webrtc": section})


@pytest.mark.parametrize(
    "section",
    [{"ice_servers": [TURN | {"credential": ["s3cret"]}]}, {"ice_servers": [{"credential": "s3cret"}]}, "s3cret"],
)
def test_a_credential_is_never_shown(section: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"webrtc": section})
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(load_config(None, {"webrtc": {"ice_servers": [TURN]}}))
