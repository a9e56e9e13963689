"""WHIP calls against a whole daemon: a real peer connection at the other end."""

import asyncio
import re
import sys
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from daemon.transports.whip.reorder import DEPTH
from tests.daemon.conftest import (
    ASSETS,
    CALL,
    Message,
    Served,
    assert_same_results,
    finals,
    linear16_of,
    of_type,
    pieces,
)
from tests.daemon.transports.test_whip_sdp import FRAGMENT
from tests.daemon.transports.whip_client import (
    FRAGMENT as FRAGMENT_TYPE,
)
from tests.daemon.transports.whip_client import (
    PACKET,
    RATE_HZ,
    Hop,
    SoundTrack,
    http_call,
    needs_network,
    server_sent_events,
    sound_of,
    through_opus,
    whip,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_network]

HELLO = ASSETS / "hello_3s.flac"
TWO = ASSETS / "two_sentences.flac"
HELD_MS = (DEPTH + 1) * 20
"""What may be on the way, or wait for a lost packet, when a session is closed."""


async def sent(session: Any, track: SoundTrack) -> list[Message]:
    """Every message, once the whole track has been sent and what is on the way has come."""
    await asyncio.wait_for(track.ended.wait(), 60)
    await asyncio.sleep(0.3)
    told: list[Message] = await session.close()
    return told


async def test_the_same_results_as_the_same_opus_audio_over_a_websocket(served: Served) -> None:
    """The codec costs what it costs; the door costs nothing."""
    sound = sound_of(TWO)
    parameters = {"encoding": "linear16", "sample_rate": RATE_HZ, "channels": 2, "interim_ms": 0}
    wanted = await served.stream(pieces(through_opus(sound), 7680), **parameters)
    track = SoundTrack(sound)
    async with whip(served.port, track, "?call_id=same&interim_ms=0", stereo=True) as session:
        assert session.answer.status == 201
        told = await sent(session, track)
    assert_same_results(finals(told), finals(wanted))
    assert [message["seq"] for message in told] == list(range(len(told)))
    assert told[0]["roles"] == ["customer", "agent"]
    assert of_type(told, "gap") == []
    received_ms = told[-1]["totals"]["received_ms"]
    assert received_ms == pytest.approx(1000 * len(sound) / RATE_HZ, abs=20)
    *_, ended = await served.events("same")
    assert (ended["type"], ended["reason"]) == ("call.ended", "client_closed")


async def test_a_stereo_call_keeps_its_two_people_apart(served: Served) -> None:
    """Against the uncompressed call: the same people speak at the same times, mostly in the same mood."""
    plain = finals(await served.stream(pieces(linear16_of(CALL), 32_000), channels=2, interim_ms=0))
    track = SoundTrack(sound_of(CALL), speed=2.0)
    async with whip(served.port, track, "?roles=customer,agent&interim_ms=0", stereo=True) as session:
        assert "stereo=1;sprop-stereo=1" in session.answer.text
        got = finals(await sent(session, track))
    assert [(message["channel"], message["role"]) for message in got] == [
        (message["channel"], message["role"]) for message in plain
    ]
    for one, other in zip(got, plain, strict=True):
        assert one["start_ms"] == pytest.approx(other["start_ms"], abs=100)
        assert one["end_ms"] == pytest.approx(other["end_ms"], abs=100)
    same = sum(one["top"] == other["top"] for one, other in zip(got, plain, strict=True))
    assert same > len(plain) / 2


@pytest.mark.parametrize(
    ("query", "stereo", "roles", "told"),
    [
        ("", False, ["customer"], False),
        ("?roles=caller", False, ["caller"], False),
        ("?channels=2", False, ["customer", "agent"], True),
        ("?roles=a,b", False, ["a", "b"], True),
        ("", True, ["customer", "agent"], True),
        ("?channels=1", True, ["customer"], False),
    ],
)
async def test_channels_are_those_of_the_query_else_of_the_offer(
    served: Served, query: str, stereo: bool, roles: list[str], told: bool
) -> None:
    track = SoundTrack(np.zeros((PACKET, 2), np.int16))
    async with whip(served.port, track, query, stereo=stereo) as session:
        assert ("a=fmtp:96 minptime=10;useinbandfec=1;stereo=1;sprop-stereo=1\r\n" in session.answer.text) == told
        assert "a=recvonly\r\n" in session.answer.text
        assert "a=candidate:" in session.answer.text
        assert "a=end-of-candidates\r\n" in session.answer.text
        await session.connected()
        messages = await session.close()
    assert messages[0]["roles"] == roles


async def test_lost_packets_become_silence_and_are_told(served: Served) -> None:
    """Every tenth one: times and totals stay, and the gaps are as long as what was lost."""
    sound = sound_of(TWO)
    track = SoundTrack(sound)
    async with whip(served.port, track, "?interim_ms=0") as session:
        hop = Hop(session.pc, lambda number: number % 10 == 9)
        told = await sent(session, track)
    plain = finals(await served.stream(pieces(linear16_of(TWO)), interim_ms=0))
    got, gaps = finals(told), of_type(told, "gap")
    assert len(got) == len(plain)
    for one, other in zip(got, plain, strict=True):
        assert one["start_ms"] == pytest.approx(other["start_ms"], abs=150)
        assert one["end_ms"] == pytest.approx(other["end_ms"], abs=150)
    received_ms = told[-1]["totals"]["received_ms"]
    assert -20 <= 1000 * len(sound) / RATE_HZ - received_ms <= HELD_MS + 20
    assert hop.lost > 30
    assert {gap["reason"] for gap in gaps} == {"lost"}
    assert len(gaps) < hop.lost / 3, "told once a second, not with every packet"
    missing_ms = sum(gap["duration_ms"] for gap in gaps)
    assert 20 * (hop.lost - 1) <= missing_ms <= 20 * hop.lost
    assert all(gap["channels"] == [0] and gap["start_ms"] < gap["end_ms"] for gap in gaps)


async def test_what_a_sender_leaves_out_becomes_silence(served: Served) -> None:
    """DTX: no packet between the two sentences, sequence numbers without a hole."""
    sound = sound_of(TWO)
    pause = range(3700 // 20, 4300 // 20)
    track = SoundTrack(sound)
    async with whip(served.port, track, "?interim_ms=0") as session:
        hop = Hop(session.pc, lambda number: number in pause, unsent=True)
        told = await sent(session, track)
    plain = finals(await served.stream(pieces(linear16_of(TWO)), interim_ms=0))
    for one, other in zip(finals(told), plain, strict=True):
        assert one["start_ms"] == pytest.approx(other["start_ms"], abs=100)
        assert one["end_ms"] == pytest.approx(other["end_ms"], abs=100)
    (gap,) = of_type(told, "gap")
    assert (gap["reason"], gap["duration_ms"]) == ("paused", 20.0 * hop.lost)
    assert gap["start_ms"] == pytest.approx(3700, abs=25)
    assert told[-1]["totals"]["received_ms"] == pytest.approx(1000 * len(sound) / RATE_HZ, abs=20)


async def test_speech_that_breaks_off_ends_without_another_packet(served: Served) -> None:
    """The sender stops in the middle of a sentence and says nothing any more: the sentence is scored all the same."""
    track = SoundTrack(sound_of(HELLO)[: 2 * RATE_HZ])
    async with whip(served.port, track, "?interim_ms=0") as session:
        await session.until(finals)
        assert not session.closed
        told = await session.close()
    (final,) = finals(told)
    assert 1500 < final["end_ms"] <= 2200
    assert {gap["reason"] for gap in of_type(told, "gap")} == {"paused"}


async def test_control_messages_over_the_data_channel(served: Served) -> None:
    track = SoundTrack(np.concatenate([sound_of(HELLO), np.zeros((20 * RATE_HZ, 2), np.int16)]))
    async with whip(served.port, track, "?interim_ms=0") as session:
        await session.until(lambda told: of_type(told, "speech.started"))
        await asyncio.sleep(0.5)
        session.say("keep_alive")
        session.say("finalize")
        await session.until(finals)
        session.say("applause")
        await session.until(lambda told: session.closed)
    *_, error, closed = session.told
    assert (error["type"], error["code"], closed["reason"]) == ("error", "bad_type", "bad_type")


async def test_results_as_server_sent_events_and_again_from_any_place(served: Served) -> None:
    track = SoundTrack(sound_of(HELLO))
    async with whip(served.port, track, "?interim_ms=500&call_id=sse", data_channel=False) as session:
        links = re.findall(r'<([^>]+)>; rel="urn:medusa:events"', session.answer.headers["link"])
        assert links == [f"{session.location}/events"]
        reading = asyncio.create_task(server_sent_events(served.port, links[0]))
        await asyncio.wait_for(track.ended.wait(), 30)
        await asyncio.sleep(0.3)
        assert (await session.delete()).status == 200
        events = await asyncio.wait_for(reading, 30)
    assert [seq for seq, _ in events] == list(range(len(events)))
    assert all(message["seq"] == seq for seq, message in events)
    messages = [message for _, message in events]
    assert messages[0]["type"] == "session.created"
    assert "order" in finals(messages)[0]["text"]
    assert (messages[-1]["type"], messages[-1]["reason"]) == ("session.closed", "client_closed")
    again = await server_sent_events(served.port, links[0], last_event_id="1")
    assert again == events[2:], "after the end, for a while"
    assert (await session.delete()).status == 404
    for method in ("PATCH", "DELETE"):
        answer = await http_call(served.port, method, session.location, FRAGMENT, content_type=FRAGMENT_TYPE)
        assert answer.status == 404


async def test_an_ice_restart_goes_on_with_the_same_call(served: Served) -> None:
    """The client takes new credentials in the middle of a sentence and checks our addresses again."""
    track = SoundTrack(sound_of(TWO))
    async with whip(served.port, track, "?interim_ms=0") as session:
        await session.connected()
        await asyncio.sleep(1.5)
        connection = session.pc.getSenders()[0].transport.transport._connection
        connection._local_username, connection._local_password = "newname", "newpassword0123456789ab"
        fragment = FRAGMENT.replace("EsAw", "newname").replace("P2uYro0UCOQ4zxjKXaWCBui1", "newpassword0123456789ab")
        answer = await http_call(
            served.port, "PATCH", session.location, fragment, content_type=FRAGMENT_TYPE, if_match="*"
        )
        assert (answer.status, answer.headers["content-type"]) == (200, FRAGMENT_TYPE)
        assert answer.headers["etag"] != session.answer.headers["etag"]
        assert "a=candidate:" in answer.text
        said = dict(re.findall(r"^a=ice-(ufrag|pwd):(.*)\r\n", answer.text, re.MULTILINE))
        assert f"a=ice-ufrag:{said['ufrag']}\r\n" not in session.answer.text
        connection.remote_username, connection.remote_password = said["ufrag"], said["pwd"]
        pair = next(iter(connection._nominated.values()))
        pair.nominated = False
        await asyncio.wait_for(connection.check_start(pair), 10)
        assert pair.nominated, "our checks are answered under the new credentials"
        stale = await http_call(
            served.port,
            "PATCH",
            session.location,
            "a=end-of-candidates\r\n",
            content_type=FRAGMENT_TYPE,
            if_match=session.answer.headers["etag"],
        )
        assert stale.status == 412
        told = await sent(session, track)
    assert len(finals(told)) == 2
    assert of_type(told, "gap") == []


async def test_ffmpeg_sends_a_call(served: Served) -> None:
    """Somebody else's WHIP client, DTLS and Opus."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    muxers = await run(ffmpeg, "-hide_banner", "-muxers")
    if " whip " not in muxers and sys.platform != "linux":
        pytest.skip(f"{ffmpeg} has no WHIP muxer")
    url = f"http://127.0.0.1:{served.port}/whip?call_id=ffmpeg&interim_ms=0&roles=caller"
    opus = ("-c:a", "libopus", "-ar", "48000", "-ac", "2", "-b:a", "96k")
    await run(ffmpeg, "-hide_banner", "-re", "-i", str(TWO), *opus, "-f", "whip", "-authorization", "token", url)
    begun, *found, ended = await served.events("ffmpeg")
    plain = finals(await served.stream(pieces(linear16_of(TWO)), interim_ms=0))
    assert begun["role"] == "caller"
    assert [float(fields["start_ms"]) for fields in found] == pytest.approx(
        [message["start_ms"] for message in plain], abs=100
    )
    assert [float(fields["end_ms"]) for fields in found] == pytest.approx(
        [message["end_ms"] for message in plain], abs=100
    )
    assert "order" in found[0]["text"]
    assert "Friday" in found[1]["text"]
    assert (ended["type"], ended["reason"]) == ("call.ended", "client_closed")
    sound_ms = 1000 * len(sound_of(TWO)) / RATE_HZ
    assert float(ended["total_received_ms"]) == pytest.approx(sound_ms, abs=100)


async def run(*command: str) -> str:
    """What a program says, once it ended well."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode(errors="replace")
    return output.decode(errors="replace")
