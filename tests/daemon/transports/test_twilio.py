"""Twilio's forks: their messages, their signature, and real calls placed by streamdouble."""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamdouble import g711
from twilio.request_validator import RequestValidator
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from daemon.errors import PeerError
from daemon.resample import AudioDecoder
from daemon.transports.dialect import Audio, Close, Start
from daemon.transports.twilio import TwilioAccess, TwilioDialect, is_signed, seen_from_outside
from tests.daemon.conftest import ASSETS, Served, serving
from tests.daemon.transports.conftest import (
    assert_same_events,
    carried_out,
    handshake,
    offline,
    ordered,
    survives_mutations,
    telephone,
    write_wav,
)

in_module_loop = pytest.mark.asyncio(loop_scope="module")

TOKEN = "12345678901234567890123456789012"
CONNECTED = {"event": "connected", "protocol": "Call", "version": "1.0.0"}


def start(tracks: list[str] | None = None, **parameters: str) -> dict[str, Any]:
    return {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "accountSid": "AC1",
            "streamSid": "MZ1",
            "callSid": "CA0123456789abcdef",
            "tracks": tracks or ["inbound", "outbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": parameters,
        },
        "streamSid": "MZ1",
    }


def media(track: str, index: int, payload: bytes = b"\x11" * 160, sequence: int | None = None) -> dict[str, Any]:
    return {
        "event": "media",
        "sequenceNumber": str(index + 2 if sequence is None else sequence),
        "media": {
            "track": track,
            "chunk": str(index + 1),
            "timestamp": str(20 * index),
            "payload": base64.b64encode(payload).decode(),
        },
        "streamSid": "MZ1",
    }


STOP = {
    "event": "stop",
    "sequenceNumber": "99",
    "stop": {"accountSid": "AC1", "callSid": "CA0123456789abcdef"},
    "streamSid": "MZ1",
}
DIALOGUE = [
    json.dumps(message)
    for message in (
        CONNECTED,
        start(language="en", queue="billing"),
        media("inbound", 0, sequence=2),
        media("outbound", 0, sequence=3),
        {
            "event": "dtmf",
            "streamSid": "MZ1",
            "sequenceNumber": "4",
            "dtmf": {"track": "inbound_track", "digit": "1"},
        },
        media("inbound", 1, sequence=5),
        {"event": "mark", "sequenceNumber": "6", "streamSid": "MZ1", "mark": {"name": "label"}},
        STOP,
    )
]


def dialect(access: TwilioAccess | None = None) -> TwilioDialect:
    return TwilioDialect(handshake("/twilio"), access or TwilioAccess())


def started(message: dict[str, Any]) -> Start:
    (command,) = carried_out(dialect().receive(json.dumps(message)))
    assert isinstance(command, Start)
    return command


def test_what_a_call_is_called() -> None:
    request = started(start(language="en", queue="billing")).request
    assert (request.call_id, request.language) == ("CA0123456789abcdef", "en")
    assert request.role_names() == ("customer", "agent")
    assert request.metadata == {"queue": "billing"}
    request = started(start(call_id="ticket-7", roles="caller, callee")).request
    assert (request.call_id, request.role_names(), request.metadata) == ("ticket-7", ("caller", "callee"), {})


@pytest.mark.parametrize(
    ("tracks", "roles"),
    [(["inbound"], ("customer",)), (["outbound"], ("agent",)), (["outbound", "inbound"], ("customer", "agent"))],
)
def test_tracks_are_people(tracks: list[str], roles: tuple[str, ...]) -> None:
    assert started(start(tracks)).request.role_names() == roles


def test_a_dialogue() -> None:
    one = dialect()
    commands = [command for frame in DIALOGUE for command in carried_out(one.receive(frame))]
    assert isinstance(commands[0], Start)
    assert commands[-1] == Close()
    audio = [command for command in [*commands, *carried_out(one.flush())] if isinstance(command, Audio)]
    heard = [np.concatenate([part.channels[track] for part in audio]) for track in (0, 1)]
    assert len(heard[0]) == len(heard[1]) == 2 * 320
    assert abs(heard[0][100:500]).min() > 0.1
    assert abs(heard[1][400:600]).max() < 0.01, "the second message of this track never came"


def test_a_message_that_comes_twice_is_heard_once() -> None:
    one = dialect()
    for frame in (start(["inbound"]), media("inbound", 0), media("inbound", 1)):
        carried_out(one.receive(json.dumps(frame)))
    assert carried_out(one.receive(json.dumps(media("inbound", 1)))) == []


def wrong_media(**changed: object) -> dict[str, Any]:
    message = media("inbound", 0)
    message["media"] |= changed
    return message


WRONG: dict[str, tuple[list[Any], str, str]] = {
    "audio before start": ([media("inbound", 0)], "bad_start", "'media' came before start"),
    "two starts": ([start(), start()], "bad_start", "twice"),
    "no such track": ([start(["sideways"])], "bad_tracks", "inbound, outbound, or both"),
    "a track twice": ([start(["inbound", "inbound"])], "bad_tracks", "inbound, outbound, or both"),
    "not announced": ([start(["inbound"]), media("outbound", 0)], "bad_tracks", "announced were inbound"),
    "another codec": (
        [start() | {"start": start()["start"] | {"mediaFormat": {"encoding": "audio/opus"}}}],
        "bad_encoding",
        "audio/x-mulaw, 8000 Hz",
    ),
    "a bad call id": ([start(call_id="../..")], "bad_request", "call_id"),
    "a parameter as long as a novel": ([start(note="x" * 513)], "bad_request", "at most 512 characters"),
    "too many parameters": ([start(None, **{f"key{n}": "" for n in range(17)})], "bad_request", "metadata"),
    "no base64": ([start(), wrong_media(payload="%%%%")], "bad_media", "no base64"),
    "an hour at once": ([start(), wrong_media(payload="A" * 40_000)], "bad_media", "at most 2 s"),
    "no timestamp": ([start(), wrong_media(timestamp=None)], "bad_number", "media.timestamp is None"),
    "a clock gone mad": ([start(), wrong_media(timestamp="99999999")], "bad_timestamp", "ahead of the stream"),
    "an unknown event": ([start(), {"event": "clear"}], "bad_type", "'clear' is not known"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(case: str) -> None:
    messages, code, says = WRONG[case]
    one = dialect()
    for message in messages[:-1]:
        carried_out(one.receive(json.dumps(message)))
    with pytest.raises(PeerError, match=says) as caught:
        carried_out(one.receive(json.dumps(messages[-1])))
    assert caught.value.code == code


def test_binary_messages_are_no_audio_here() -> None:
    with pytest.raises(PeerError, match="base64"):
        carried_out(dialect().receive(b"\xff" * 160))


def test_mutations() -> None:
    survives_mutations(dialect, DIALOGUE)


@pytest.mark.parametrize(
    "url",
    [
        "wss://voice.example.com/twilio",
        "wss://voice.example.com:443/twilio",
        "wss://voice.example.com/twilio/",
        "wss://voice.example.com/twilio?region=ie1",
        "ws://voice.example.com:8765/twilio",
    ],
)
def test_signatures_are_those_of_twilios_own_library(url: str) -> None:
    signature = RequestValidator(TOKEN).compute_signature(url, {})
    assert is_signed(url, signature, TOKEN)
    assert not is_signed(url, signature, TOKEN[::-1])
    assert not is_signed(url.replace("example", "elsewhere"), signature, TOKEN)
    assert not is_signed(url, signature[:-2] + "A=", TOKEN)
    assert not is_signed(url, "", TOKEN)
    assert not is_signed(url, "sign\u00e4ture", TOKEN)


def test_the_default_port_and_a_last_slash_do_not_matter() -> None:
    for signed, asked in [
        ("wss://a.example/twilio/", "wss://a.example:443/twilio"),
        ("ws://a.example:80/t", "ws://a.example/t"),
    ]:
        assert is_signed(asked, RequestValidator(TOKEN).compute_signature(signed, {}), TOKEN)
    other_port = RequestValidator(TOKEN).compute_signature("wss://a.example:8443/twilio", {})
    assert not is_signed("wss://a.example/twilio", other_port, TOKEN)


def test_behind_a_proxy_its_own_address_counts() -> None:
    inside = "ws://10.0.0.7:8765/twilio?x=1"
    assert seen_from_outside(inside, None) == inside
    assert seen_from_outside(inside, "https://voice.example.com") == "wss://voice.example.com/twilio?x=1"
    assert seen_from_outside(inside, "wss://voice.example.com/medusa/") == "wss://voice.example.com/medusa/twilio?x=1"


def test_who_is_refused() -> None:
    access = TwilioAccess(TOKEN, "wss://voice.example.com")
    signature = RequestValidator(TOKEN).compute_signature("wss://voice.example.com/twilio", {})
    good = TwilioDialect(handshake("/twilio", {"x-twilio-signature": signature}), access)
    assert good.refusal() is None
    for headers in ({}, {"x-twilio-signature": "AAAA"}):
        refusal = TwilioDialect(handshake("/twilio", headers), access).refusal()
        assert refusal is not None
        assert refusal.status == 403
        assert TOKEN not in refusal.message
    mad = TwilioDialect(handshake("/twilio", host="[::"), TwilioAccess(TOKEN)).refusal()
    assert mad is not None
    assert mad.status == 400


@in_module_loop
async def test_a_real_handshake_is_refused_or_taken(tmp_path: Path) -> None:
    telephony = {"twilio_auth_token": TOKEN, "public_url": "wss://voice.example.com"}
    signature = RequestValidator(TOKEN).compute_signature("wss://voice.example.com/twilio", {})
    async with serving(tmp_path, telephony=telephony) as other:
        url = f"ws://127.0.0.1:{other.port}/twilio"
        for headers in ({}, {"X-Twilio-Signature": signature[:-3] + "AA="}):
            with pytest.raises(InvalidStatus) as caught:
                await connect(url, additional_headers=headers)
            assert caught.value.response.status_code == 403
            assert b"telephony.public_url" in caught.value.response.body
        async with connect(url, additional_headers={"X-Twilio-Signature": signature}) as connection:
            await connection.send(json.dumps(start(call_id="signed")))
            await connection.send(json.dumps(STOP))
            await connection.wait_closed()
        assert connection.close_code == 1000
        assert [event["type"] for event in await other.events("signed")] == ["call.started", "call.ended"]


@in_module_loop
async def test_a_client_is_told_by_the_close_what_was_wrong(served: Served) -> None:
    async with connect(f"ws://127.0.0.1:{served.port}/twilio") as connection:
        await connection.send(json.dumps(media("inbound", 0)))
        await connection.wait_closed()
    assert (connection.close_code, connection.close_reason) == (1007, "bad_start")


async def place_call(served: Served, folder: Path, call: str, *flags: str) -> list[dict[str, Any]]:
    """A call by streamdouble's own program: a caller who speaks, an agent who speaks longer. Returns its trace."""
    caller = write_wav(folder / f"{call}-caller.wav", telephone(ASSETS / "hello_3s.flac"))
    agent = write_wav(folder / f"{call}-agent.wav", telephone(ASSETS / "two_sentences.flac"))
    trace = folder / f"{call}.jsonl"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamdouble.cli", "call", f"ws://127.0.0.1:{served.port}/twilio", "--fork"),
        *("--strict-fork", "--track", "both", "--audio", str(caller), "--agent-audio", str(agent), "--json"),
        *("--trace", str(trace), "--trace-payloads", "--param", f"call_id={call}", "--param", "queue=billing", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    assert process.returncode == 0, (said, complained)
    return [json.loads(line) for line in await asyncio.to_thread(lambda: trace.read_text().splitlines())]


def sent(trace: list[dict[str, Any]], track: str) -> dict[int, bytes]:
    """The payloads of a track by their time in ms."""
    return {
        int(record["timestamp_ms"]): base64.b64decode(record["payload"])
        for record in trace
        if record["event"] == "media" and record["track"] == track
    }


async def heard(trace: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What the same messages give offline, with silence where the network lost one."""
    tracks = [sent(trace, "inbound"), sent(trace, "outbound")]
    end = max(max(track) for track in tracks) + 20
    columns = [b"".join(track.get(at, b"\xff" * 160) for at in range(0, end, 20)) for track in tracks]
    interleaved = np.stack([np.frombuffer(column, np.uint8) for column in columns], axis=1)
    return await offline(interleaved.tobytes(), "mulaw", 8000)


@in_module_loop
async def test_calls_placed_by_streamdouble(served: Served, tmp_path: Path) -> None:
    """A good line and a bad one, at the same time: what is heard on both tracks is what was sent, to 1e-4."""
    clean, poor = await asyncio.gather(
        place_call(served, tmp_path, "CAclean"),
        place_call(served, tmp_path, "CApoor", *"--packet-loss 0.05 --jitter 60 --latency 40".split()),
    )
    assert len(sent(clean, "inbound")) > len(sent(poor, "inbound")) > 100, "nothing was lost"
    for call, trace in (("CAclean", clean), ("CApoor", poor)):
        events = await served.events(call)
        wanted = await heard(trace)
        assert [event["role"] for event in wanted].count("customer") >= 1
        assert [event["role"] for event in wanted].count("agent") == 2
        assert_same_events(events, wanted)
        assert (events[0]["meta_queue"], events[0]["role"]) == ("billing", "customer,agent")
        assert (events[-1]["type"], events[-1]["reason"]) == ("call.ended", "client_closed")
    first, *_ = ordered(await served.events("CAclean"))
    assert (first["role"], "order" in first["text"]) == ("agent", True), "the outbound track is the agent"


def test_our_codec_is_that_of_the_other_side() -> None:
    """Else the comparison above would compare one mistake with itself."""
    every = np.arange(256, dtype=np.uint8).tobytes()
    (ours,) = AudioDecoder("mulaw", 16_000, 1).decode(every)
    assert (ours * 32768).tolist() == g711.decode(every).tolist()
