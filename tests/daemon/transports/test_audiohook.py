"""Genesys AudioHook: its signature, a recorded dialogue, and calls over a real WebSocket."""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from streamdouble import g711
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from daemon import wire
from daemon.errors import PeerError
from daemon.transports.audiohook import AudioHookDialect
from daemon.transports.audiohook_signature import AudioHookKeys
from daemon.transports.dialect import Audio, Close, Frame, Handshake, Start
from tests.daemon.conftest import ASSETS, Served, serving
from tests.daemon.transports.conftest import (
    assert_same_events,
    carried_out,
    handshake,
    offline,
    replies,
    survives_mutations,
    telephone,
)
from tests.factories import make_info

in_module_loop = pytest.mark.asyncio(loop_scope="module")

DIALOGUE: Final = json.loads((Path(__file__).parents[2] / "golden" / "audiohook" / "dialogue.json").read_text("utf-8"))
SESSION: Final = "30b0e395-84d3-4570-ac13-9a62d8f514c0"
ORGANIZATION: Final = "d7934305-0972-4844-938e-9060eef73d05"
NOBODY: Final = "00000000-0000-0000-0000-000000000000"
KEY: Final = "SGVsbG8sIEkgYW0gdGhlIEFQSSBrZXkh"
SECRET: Final = base64.b64decode("TXlTdXBlclNlY3JldEtleVRlbGxOby0xITJAMyM0JDU=")
CREATED: Final = 1641013200
COMPONENTS: Final = (
    *("@request-target", "@authority", "audiohook-organization-id"),
    *("audiohook-session-id", "audiohook-correlation-id", "x-api-key"),
)
IDS: Final = {
    "audiohook-organization-id": ORGANIZATION,
    "audiohook-session-id": SESSION,
    "audiohook-correlation-id": "e160e428-53e2-487c-977d-96989bf5c99d",
    "x-api-key": KEY,
}
DOCUMENTED: Final = Handshake(
    "wss://audiohook.example.com/api/v1/voicebiometrics/ws",
    {},
    IDS
    | {
        "host": "audiohook.example.com",
        "signature": "sig1=:NZBwyBHRRyRoeLqy1IzOa9VYBuI8TgMFt2GRDkDuJh4=:",
        "signature-input": 'sig1=("@request-target" "@authority" "audiohook-organization-id" "audiohook-session-id" '
        '"audiohook-correlation-id" "x-api-key");keyid="SGVsbG8sIEkgYW0gdGhlIEFQSSBrZXkh";'
        'nonce="VGhpc0lzQVVuaXF1ZU5vbmNl";alg="hmac-sha256";created=1641013200;expires=3282026430',
    },
    (),
)
"""The example of Genesys' own documentation."""


def keys(
    now: float = CREATED, client_secrets: dict[str, bytes] | None = None, public_url: str | None = None
) -> AudioHookKeys:
    return AudioHookKeys({KEY: SECRET} if client_secrets is None else client_secrets, public_url, lambda: now)


def signed(
    target: str,
    authority: str,
    *,
    components: tuple[str, ...] = COMPONENTS,
    secret: bytes = SECRET,
    headers: dict[str, str] | None = None,
    **changed: str | int,
) -> dict[str, str]:
    """The headers of a handshake, signed as the specification says; computed here, apart from what is tested."""
    sent = IDS | (headers or {})
    values = {"@request-target": target, "@authority": authority} | sent
    parameters: dict[str, str | int] = {
        "keyid": KEY,
        "nonce": secrets.token_urlsafe(18),
        "alg": "hmac-sha256",
        "created": CREATED,
    }
    names = " ".join(f'"{name}"' for name in components)
    inside = "".join(
        f";{name}={value}" if isinstance(value, int) else f';{name}="{value}"'
        for name, value in (parameters | changed).items()
    )
    base = "\n".join(
        [*(f'"{name}": {values.get(name, "")}' for name in components), f'"@signature-params": ({names}){inside}']
    )
    digest = base64.b64encode(hmac.new(secret, base.encode(), hashlib.sha256).digest()).decode()
    return sent | {"host": authority, "signature-input": f"sig1=({names}){inside}", "signature": f"sig1=:{digest}:"}


def arrived(headers: dict[str, str], path: str = "/audiohook", host: str = "localhost") -> Handshake:
    return handshake(path, headers, host=host)


def test_the_documented_signature() -> None:
    assert keys().problem(DOCUMENTED) is None
    assert keys(CREATED + 14).problem(DOCUMENTED) is not None


def test_our_own_signatures() -> None:
    """That of the documentation is one point; these are others, with a query, a port and another order."""
    shuffled = tuple(reversed(COMPONENTS))
    for target, host, components in [
        ("/audiohook", "localhost", COMPONENTS),
        ("/audiohook?a=1&b=%20", "voice.example.com:8443", shuffled),
    ]:
        headers = signed(target, host, components=components)
        assert keys().problem(arrived(headers, target, host)) is None


def test_behind_a_proxy_what_genesys_asked_for_counts() -> None:
    headers = signed("/medusa/audiohook", "voice.example.com") | {"host": "10.0.0.7:8765"}
    here = arrived(headers, "/audiohook", "10.0.0.7:8765")
    assert keys(public_url="wss://voice.example.com/medusa").problem(here) is None
    assert keys().problem(here) is not None


def broken(**headers: str) -> dict[str, str]:
    return signed("/audiohook", "localhost") | headers


BAD_SIGNATURES: Final = {
    "none at all": (dict(IDS), "are not those of one HMAC signature"),
    "only half": (broken(signature=""), "are not those of one HMAC signature"),
    "another label": (broken(signature="sig2=:AAAA:"), "are not those of one HMAC signature"),
    "another signature": (broken(signature="sig1=:" + "A" * 43 + "=:"), "not that of this API key and request"),
    "no base64": (broken(signature="sig1=:A:"), "not that of this API key and request"),
    "another session": (broken(**{"audiohook-session-id": NOBODY}), "not that of this API key and request"),
    "another secret": (signed("/audiohook", "localhost", secret=b"other"), "not that of this API key and request"),
    "another path": (signed("/elsewhere", "localhost"), "not that of this API key and request"),
    "another host": (signed("/audiohook", "elsewhere") | {"host": "localhost"}, "not that of this API key and request"),
    "an unknown key": (
        signed("/audiohook", "localhost", headers={"x-api-key": "unknown"}, keyid="unknown"),
        "not that of this API key and request",
    ),
    "another keyid": (signed("/audiohook", "localhost", keyid="unknown"), "keyid is not the X-API-KEY"),
    "a component less": (signed("/audiohook", "localhost", components=COMPONENTS[:-1]), "does not cover x-api-key"),
    "a component twice": (
        signed("/audiohook", "localhost", components=(*COMPONENTS, "x-api-key")),
        "not that of this API key and request",
    ),
    "an unknown component": (
        signed("/audiohook", "localhost", components=(*COMPONENTS, "@status")),
        "not that of this API key and request",
    ),
    "a header that is not there": (
        signed("/audiohook", "localhost", components=(*COMPONENTS, "x-other")),
        "not that of this API key and request",
    ),
    "a short nonce": (signed("/audiohook", "localhost", nonce="x" * 21), "shorter than 22 characters"),
    "another algorithm": (signed("/audiohook", "localhost", alg="none"), "not hmac-sha256"),
    "an unknown parameter": (signed("/audiohook", "localhost", tag="x"), "not known: tag"),
    "too old": (signed("/audiohook", "localhost", created=CREATED - 14), "older than 10 s"),
    "of the future": (signed("/audiohook", "localhost", created=CREATED + 4), "in the future"),
    "expired": (signed("/audiohook", "localhost", expires=CREATED - 4), "older than 10 s"),
}


@pytest.mark.parametrize("case", BAD_SIGNATURES)
def test_signatures_that_are_refused(case: str) -> None:
    headers, says = BAD_SIGNATURES[case]
    problem = keys().problem(arrived(headers))
    assert problem is not None
    assert says in problem
    refusal = AudioHookDialect(arrived(headers), keys(), lambda: 0.0).refusal()
    assert refusal is not None
    assert (refusal.status, refusal.delay_s) == (401, 0.5)


def test_a_handshake_is_good_once() -> None:
    door, headers = keys(), signed("/audiohook", "localhost")
    assert door.problem(arrived(headers)) is None
    assert door.problem(arrived(headers)) == "the nonce was used before"
    assert door.problem(arrived(signed("/audiohook", "localhost"))) is None


def test_nonces_are_forgotten_with_their_signatures() -> None:
    now = [float(CREATED)]
    door = AudioHookKeys({KEY: SECRET}, None, lambda: now[0])
    for _ in range(100):
        assert door.problem(arrived(signed("/audiohook", "localhost", created=int(now[0])))) is None
        now[0] += 1
    assert len(door._nonces) < 20


def test_without_keys_anybody_may_connect() -> None:
    assert keys(client_secrets={}).problem(arrived({})) is None


def dialect(headers: dict[str, str] | None = None) -> AudioHookDialect:
    return AudioHookDialect(arrived(headers or {}), keys(client_secrets={}), lambda: 0.0)


def frame_of(step: dict[str, Any]) -> Frame:
    return json.dumps(step["client"]) if "client" in step else b"\x11" * (16 * step["audio_ms"])


def play(one: AudioHookDialect, frame: Frame) -> tuple[list[Any], list[dict[str, Any]]]:
    """Commands, and everything said, as the door would carry them out."""
    commands, said = [], []
    for command in one.receive(frame):
        commands.append(command)
        said += replies([command])
        if isinstance(command, Start):
            said += [json.loads(text) for text in one.render(wire.session_created(make_info(), (), ()))]
        if isinstance(command, Close):
            said += [json.loads(text) for text in one.render({"type": "session.closed", "reason": "client_closed"})]
    return commands, said


def test_a_recorded_dialogue() -> None:
    one = dialect({"audiohook-session-id": SESSION, "audiohook-organization-id": ORGANIZATION})
    heard = 0
    for step in DIALOGUE:
        commands, said = play(one, frame_of(step))
        assert said == step["server"], step
        audio = [command for command in commands if isinstance(command, Audio)]
        length = sum(len(command.channels[0]) for command in audio) / 16
        assert length == pytest.approx(step.get("audio_ms", 0) + step.get("silence_ms", 0), abs=2)
        heard += len(audio)
        if "silence_ms" in step:
            assert max(abs(command.channels[0][200:]).max() for command in audio) < 0.01
        for command in commands:
            if isinstance(command, Start):
                request = command.request
                assert request.role_names() == ("customer", "agent")
                assert (request.call_id, request.language) == ("090eaa2f-72fa-480a-83e0-8667ff89c0ec", "en")
                assert request.metadata == {"queue": "billing"}
    assert heard == 2 + 3 + 1


def message(kind: str, seq: object, parameters: dict[str, Any] | None = None, **changed: Any) -> str:
    envelope = {"version": "2", "type": kind, "id": SESSION, "seq": seq, "serverseq": 0, "position": "PT0S"}
    return json.dumps(envelope | {"parameters": parameters or {}} | changed)


def open_message(**changed: Any) -> str:
    return message("open", 1, DIALOGUE[0]["client"]["parameters"] | changed)


STEREO: Final = {"type": "audio", "format": "PCMU", "channels": ["external", "internal"], "rate": 8000}
INTERNAL: Final = STEREO | {"channels": ["internal"]}
LINEAR: Final = STEREO | {"format": "L16"}


@pytest.mark.parametrize(
    ("offered", "chosen", "roles"),
    [
        ([INTERNAL, LINEAR, STEREO], STEREO, ("customer", "agent")),
        ([INTERNAL, LINEAR], LINEAR, ("customer", "agent")),
        ([INTERNAL], INTERNAL, ("agent",)),
    ],
)
def test_media(offered: list[Any], chosen: dict[str, Any], roles: tuple[str, ...]) -> None:
    commands, (opened,) = play(dialect(), open_message(media=offered))
    assert opened["parameters"]["media"] == [chosen]
    assert commands[0].request.role_names() == roles


def test_a_connection_probe_is_no_call() -> None:
    probe = open_message(conversationId=NOBODY, participant={"id": NOBODY, "ani": "", "aniName": "", "dnis": ""})
    one = dialect()
    commands, (opened,) = play(one, probe)
    assert (opened["type"], opened["parameters"]["media"]) == ("opened", [STEREO])
    assert not any(isinstance(command, Start) for command in commands)
    commands = carried_out(one.receive(message("close", 2, {"reason": "end"}, serverseq=1)))
    assert [said["type"] for said in replies(commands)] == ["closed"]
    assert commands[-1] == Close()


WRONG: Final[dict[str, tuple[list[Frame], str, str]]] = {
    "audio before open": ([b"\xff" * 320], "bad_state", "PREPARING"),
    "another version": ([message("open", 1, version="1")], "bad_envelope", '"version": "2"'),
    "a number left out": ([message("ping", 2)], "bad_seq", "it must be 1"),
    "a number as text": ([message("ping", "1")], "bad_seq", "it must be 1"),
    "what we never sent": ([message("ping", 1, serverseq=1)], "bad_seq", "the last that we sent is 0"),
    "another session": ([message("ping", 1), message("ping", 2, id=NOBODY)], "bad_id", SESSION),
    "no position": ([message("ping", 1, position="12")], "bad_duration", "PT12.5S"),
    "an unknown type": ([message("dance", 1)], "bad_type", "'dance' has no place"),
    "two opens": ([open_message(), message("open", 2)], "bad_type", "no place in state OPEN"),
    "no media": ([open_message(media=[])], "bad_media", "offer PCMU"),
    "music": ([open_message(media=[STEREO | {"rate": 44100}])], "bad_media", "offer PCMU"),
    "no conversation": ([open_message(conversationId=["x"])], "bad_request", "it is text"),
    "audio in a pause": ([open_message(), message("paused", 2), b"\xff" * 320], "bad_state", "PAUSED"),
    "half a frame": ([open_message(), b"\xff" * 321], "bad_frame", "2-byte frames"),
    "an hour left out at once": (
        [open_message(), message("discarded", 2, {"start": "PT0S", "discarded": "PT3600S"})],
        "bad_gap",
        "up to 3600 s cannot",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(case: str) -> None:
    frames, code, says = WRONG[case]
    one = dialect()
    for frame in frames[:-1]:
        play(one, frame)
    with pytest.raises(PeerError, match=says) as caught:
        play(one, frames[-1])
    assert caught.value.code == code
    (told,) = [json.loads(text) for text in one.render(wire.error(code, "so it is"))]
    assert (told["type"], told["parameters"]) == ("disconnect", {"reason": "error", "info": "so it is"})
    assert list(one.render({"type": "session.closed", "reason": code})) == []


def test_another_organization_is_not_authorized() -> None:
    one = dialect({"audiohook-organization-id": NOBODY})
    with pytest.raises(PeerError) as caught:
        play(one, open_message())
    (told,) = [json.loads(text) for text in one.render(wire.error(caught.value.code, caught.value.message))]
    assert told["parameters"]["reason"] == "unauthorized"


def test_our_own_end_asks_the_client_to_close() -> None:
    one = dialect()
    play(one, open_message())
    (told,) = [json.loads(text) for text in one.render({"type": "session.closed", "reason": "going_away"})]
    assert (told["type"], told["parameters"]["reason"]) == ("disconnect", "completed")
    (closed,) = replies(one.receive(message("close", 2, {"reason": "disconnect"}, serverseq=2)))
    assert closed["type"] == "closed"


def test_mutations() -> None:
    """With short pauses: making silence is not what is tried here."""
    short = json.loads(json.dumps(DIALOGUE).replace("PT2.5S", "PT0.1S").replace("PT2.9S", "PT0.3S"))
    survives_mutations(dialect, [frame_of(step) for step in short])


def test_mutated_handshakes() -> None:
    """Never good, and never another exception."""
    headers = signed("/audiohook", "localhost")
    chance = np.random.default_rng(2)
    for _ in range(2000):
        name = ("signature", "signature-input", "x-api-key", "audiohook-session-id")[int(chance.integers(4))]
        text = list(headers[name])
        at = int(chance.integers(len(text)))
        text[at : at + int(chance.integers(0, 3))] = [chr(int(chance.choice([34, 40, 41, 58, 59, 61, 65, 48, 0xE9])))]
        if "".join(text) != headers[name]:
            assert keys().problem(arrived(headers | {name: "".join(text)})) is not None


# From here on over a real WebSocket.


def two_people() -> bytes:
    """Interleaved mu-law: the customer says two sentences, the agent another one."""
    one, other = telephone(ASSETS / "two_sentences.flac"), telephone(ASSETS / "hello_3s.flac")
    columns = np.zeros((len(one) - len(one) % 1600, 2), np.int16)
    columns[:, 0] = one[: len(columns)]
    columns[: len(other), 1] = other
    encoded: bytes = g711.encode(columns.reshape(-1))
    return encoded


class Genesys:
    """The client's side of a session."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._seq = 0
        self._serverseq = 0
        self._samples = 0

    async def say(self, kind: str, parameters: dict[str, Any] | None = None) -> None:
        self._seq += 1
        position = f"PT{self._samples / 8000}S"
        await self._connection.send(message(kind, self._seq, parameters, serverseq=self._serverseq, position=position))

    async def hear(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(await self._connection.recv())
        assert said["seq"] == self._serverseq + 1
        assert said["clientseq"] <= self._seq
        self._serverseq = said["seq"]
        return said

    async def play(self, audio: bytes) -> None:
        for start in range(0, len(audio), 3200):
            await self._connection.send(audio[start : start + 3200])
            self._samples += 1600

    def left_out(self, samples: int) -> dict[str, str]:
        start, self._samples = self._samples, self._samples + samples
        return {"start": f"PT{start / 8000}S", "discarded": f"PT{samples / 8000}S"}


@in_module_loop
async def test_a_call_with_a_pause(served: Served) -> None:
    """What comes back is what the same audio gives offline, with silence where it was paused."""
    audio, pause = two_people(), 8000
    half = len(audio) // 2 // 3200 * 3200
    async with asyncio.timeout(60), connect(f"ws://127.0.0.1:{served.port}/audiohook") as connection:
        genesys = Genesys(connection)
        await genesys.say("open", DIALOGUE[0]["client"]["parameters"] | {"conversationId": "genesys-call"})
        assert (await genesys.hear())["type"] == "opened"
        await genesys.play(audio[:half])
        await genesys.say("ping")
        assert (await genesys.hear())["type"] == "pong"
        await genesys.say("paused")
        await genesys.say("resumed", genesys.left_out(pause))
        await genesys.play(audio[half:])
        await genesys.say("close", {"reason": "end"})
        assert (await genesys.hear())["type"] == "closed"
        assert connection.close_code is None, "the connection is the client's to close"
    wanted = await offline(audio[:half] + b"\xff" * 2 * pause + audio[half:], "mulaw", 8000)
    assert {event["role"] for event in wanted} == {"customer", "agent"}
    events = await served.events("genesys-call")
    assert_same_events(events, wanted)
    assert (events[0]["meta_queue"], events[-1]["reason"]) == ("billing", "client_closed")


@in_module_loop
async def test_a_probe_and_a_mistake(served: Served) -> None:
    url = f"ws://127.0.0.1:{served.port}/audiohook"
    async with asyncio.timeout(30), connect(url) as connection:
        genesys = Genesys(connection)
        probe = {
            "organizationId": ORGANIZATION,
            "conversationId": NOBODY,
            "participant": {"id": NOBODY},
            "media": [STEREO],
        }
        await genesys.say("open", probe)
        assert (await genesys.hear())["type"] == "opened"
        await genesys.say("close", {"reason": "end"})
        assert (await genesys.hear())["type"] == "closed"
    async with asyncio.timeout(30), connect(url) as connection:
        genesys = Genesys(connection)
        await genesys.say("open", probe | {"conversationId": "genesys-mistake"})
        await genesys.hear()
        await connection.send(b"\xff" * 3)
        told = await genesys.hear()
        assert (told["type"], told["parameters"]["reason"]) == ("disconnect", "error")
        await genesys.play(b"\xff" * 6400)  # what was under way
        await genesys.say("close", {"reason": "disconnect"})
        assert (await genesys.hear())["type"] == "closed"
    assert (await served.events("genesys-mistake"))[-1]["reason"] == "bad_frame"


@in_module_loop
async def test_only_signed_connections_are_taken(tmp_path: Path) -> None:
    """A bad one is answered after half a second, whatever was bad; a good one at once."""
    telephony = {"audiohook_keys": {KEY: base64.b64encode(SECRET).decode()}}
    async with serving(tmp_path, telephony=telephony) as other:
        url, authority = f"ws://127.0.0.1:{other.port}/audiohook", f"127.0.0.1:{other.port}"
        good = signed("/audiohook", authority, created=int(time.time()))
        for headers in ({}, good | {"signature": "sig1=:AAAA:"}, signed("/audiohook", authority)):
            headers.pop("host", None)
            begun = time.monotonic()
            with pytest.raises(InvalidStatus) as caught:
                await connect(url, additional_headers=headers)
            assert caught.value.response.status_code == 401
            assert 0.5 <= time.monotonic() - begun < 5
        good.pop("host")
        async with asyncio.timeout(30), connect(url, additional_headers=good) as connection:
            genesys = Genesys(connection)
            await genesys.say("open", DIALOGUE[0]["client"]["parameters"])
            assert (await genesys.hear())["type"] == "opened"
            await genesys.say("close", {"reason": "end"})
            assert (await genesys.hear())["type"] == "closed"
