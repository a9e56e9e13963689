"""What is taken of an offer, what is answered, and that nothing a stranger writes gets any further."""

import random
import time
from collections.abc import Callable
from typing import Final

import pytest
from aiortc.sdp import SessionDescription, candidate_from_sdp
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.errors import PeerError
from daemon.transports.whip.sdp import (
    MAX_CANDIDATES,
    Credentials,
    local_candidates,
    parse_fragment,
    parse_offer,
    write_answer,
    write_fragment,
)

FINGERPRINT: Final = "sha-256 " + ":".join(["AB"] * 32)
HEAD: Final = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
TRANSPORT: Final = (
    f"a=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\na=fingerprint:{FINGERPRINT}\r\na=setup:actpass\r\n"
)
AUDIO: Final = (
    "m=audio 9 UDP/TLS/RTP/SAVPF 111 63 0 8\r\nc=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\n"
    "a=candidate:1387637174 1 udp 2122260223 192.0.2.1 61764 typ host generation 0 ufrag EsAw network-id 1\r\n"
    "a=candidate:1 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active\r\n"
    "a=candidate:2 1 udp 2113937151 0b6a4a7b-6b6a-4a7b-9d0e-0f8fad5bd9cb.local 51000 typ host\r\n"
    f"{TRANSPORT}a=mid:0\r\na=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level\r\na=sendonly\r\n"
    "a=msid:- 0b6a4a7b\r\na=rtcp-mux\r\na=rtpmap:111 opus/48000/2\r\na=rtcp-fb:111 transport-cc\r\n"
    "a=fmtp:111 minptime=10;useinbandfec=1\r\na=rtpmap:63 red/48000/2\r\na=fmtp:63 111/111\r\n"
    "a=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\na=ssrc:3735928559 cname:abc\r\n"
)
VIDEO: Final = (
    f"m=video 9 UDP/TLS/RTP/SAVPF 96 97\r\nc=IN IP4 0.0.0.0\r\n{TRANSPORT}a=mid:1\r\na=sendonly\r\na=rtcp-mux\r\n"
    "a=rtpmap:96 VP8/90000\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n"
)
DATA: Final = (
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\n"
    f"{TRANSPORT}a=mid:2\r\na=sctp-port:5000\r\na=max-message-size:262144\r\n"
)
BROWSER: Final = f"{HEAD}a=group:BUNDLE 0 1 2\r\na=msid-semantic: WMS\r\n{AUDIO}{VIDEO}{DATA}"
FRAGMENT: Final = (
    "a=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n"
    "a=candidate:1387637174 1 udp 2122260223 192.0.2.1 61764 typ host generation 0\r\na=end-of-candidates\r\n"
)
ANSWER: Final = (
    f"{HEAD}a=group:BUNDLE 0 2\r\nm=audio 50000 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 10.0.0.1\r\na=recvonly\r\na=mid:0\r\n"
    "a=rtpmap:111 opus/48000/2\r\na=candidate:1 1 udp 2130706431 10.0.0.1 50000 typ host\r\n"
    "a=candidate:2 1 udp 2130706431 fd00::2 50001 typ host\r\n"
    "a=candidate:3 1 udp 1694498815 198.51.100.7 50000 typ srflx raddr 10.0.0.1 rport 50000\r\n"
    "m=application 50000 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 10.0.0.1\r\na=mid:2\r\n"
)


def test_a_browsers_offer() -> None:
    offer = parse_offer(BROWSER)
    assert offer.accepted == ("0", "2")
    assert (offer.opus, offer.stereo, offer.mid, offer.complete) == (111, False, "0", False)
    assert offer.credentials == Credentials("EsAw", "P2uYro0UCOQ4zxjKXaWCBui1")
    assert [candidate.split()[4] for candidate in offer.candidates] == [
        "192.0.2.1",
        "0b6a4a7b-6b6a-4a7b-9d0e-0f8fad5bd9cb.local",
    ], "UDP only"
    taken = SessionDescription.parse(offer.taken)
    assert [(media.kind, media.rtp.muxId, media.direction) for media in taken.media] == [
        ("audio", "0", "sendonly"),
        ("application", "2", None),
    ]
    assert [codec.mimeType for codec in taken.media[0].rtp.codecs] == ["audio/opus"]
    assert taken.media[0].rtcp_mux
    assert taken.media[1].sctp_port == 5000


@pytest.mark.parametrize("said", ["stereo=1", "minptime=10; sprop-stereo=1;useinbandfec=1"])
def test_stereo_is_what_the_opus_parameters_say(said: str) -> None:
    assert parse_offer(BROWSER.replace("minptime=10;useinbandfec=1", said)).stereo


def test_another_formats_parameters_are_not_opus_ones() -> None:
    assert not parse_offer(BROWSER.replace("a=fmtp:63 111/111", "a=fmtp:63 stereo=1")).stereo


def test_credentials_and_fingerprint_may_stand_in_front_of_all_sections() -> None:
    """As FFmpeg's WHIP muxer of earlier versions and many SIP gateways write them."""
    offer = parse_offer(f"{HEAD}a=group:BUNDLE 0\r\n{TRANSPORT}{AUDIO.replace(TRANSPORT, '')}")
    assert offer.credentials.username == "EsAw"
    assert SessionDescription.parse(offer.taken).media[0].dtls is not None


def test_a_data_channel_outside_the_bundle_is_refused() -> None:
    assert parse_offer(BROWSER.replace("BUNDLE 0 1 2", "BUNDLE 0 1")).accepted == ("0",)


def test_the_answer_keeps_every_section_in_its_place() -> None:
    answer = write_answer(parse_offer(BROWSER), ANSWER, stereo=True)
    media = SessionDescription.parse(answer).media
    assert [(section.kind, section.port, section.rtp.muxId) for section in media] == [
        ("audio", 50000, "0"),
        ("video", 0, "1"),
        ("application", 50000, "2"),
    ]
    assert [section.direction for section in media] == ["recvonly", "inactive", None]
    assert answer.count("a=fmtp:") == 1
    assert "a=rtpmap:111 opus/48000/2\r\na=fmtp:111 minptime=10;useinbandfec=1;stereo=1;sprop-stereo=1\r\n" in answer


def test_the_answer_names_the_offers_own_payload_type() -> None:
    offer, answer = BROWSER.replace("111", "109"), ANSWER.replace("111", "109")
    assert "a=fmtp:109 minptime=10;useinbandfec=1\r\n" in write_answer(parse_offer(offer), answer, stereo=False)


def test_a_public_address_stands_for_our_own() -> None:
    """Of IPv4 hosts only: what a STUN server said is known outside, and IPv6 needs no NAT."""
    answer = write_answer(parse_offer(BROWSER), ANSWER, stereo=True, public_address="203.0.113.9")
    found = [candidate_from_sdp(line.removeprefix("a=candidate:")) for line in local_candidates(answer)]
    assert [(candidate.ip, candidate.port) for candidate in found] == [
        ("203.0.113.9", 50000),
        ("fd00::2", 50001),
        ("198.51.100.7", 50000),
    ]
    assert answer.count("c=IN IP4 203.0.113.9\r\n") == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda text: "", "bad_sdp"),
        (lambda text: "hello", "bad_sdp"),
        (lambda text: HEAD, "bad_sdp"),
        (lambda text: text.replace("a=mid:0", "a=mid:1"), "bad_sdp"),
        (lambda text: text.replace("a=mid:0\r\n", ""), "bad_sdp"),
        (lambda text: text.replace("a=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1", "a=ice-pwd:short"), "bad_sdp"),
        (lambda text: text.replace("a=ice-ufrag:EsAw\r\n", ""), "bad_sdp"),
        (lambda text: text.replace(FINGERPRINT, "md5 AB"), "bad_sdp"),
        (lambda text: text.replace("a=setup:actpass", "a=setup:holdconn"), "bad_sdp"),
        (lambda text: text.replace("192.0.2.1 61764 typ host", "192.0.2.1 99999 typ host"), "bad_sdp"),
        (lambda text: text.replace("s=-", "s=\x00"), "bad_sdp"),
        (lambda text: text.replace("sctp-port:5000", "sctp-port:five"), "bad_sdp"),
        (lambda text: text.replace("sctp-port:5000", "sctp-port:65536"), "bad_sdp"),
        (lambda text: text.replace("UDP/TLS/RTP/SAVPF 96 97", "UDP/TLS/RTP/SAVPF 96 VP8"), "bad_sdp"),
        (lambda text: text.replace("opus/48000/2", "speex/16000"), "unsupported_offer"),
        (lambda text: text.replace("a=sendonly", "a=recvonly"), "unsupported_offer"),
        (lambda text: text.replace("a=sendonly", "a=inactive"), "unsupported_offer"),
        (lambda text: text.replace("a=rtcp-mux\r\n", ""), "unsupported_offer"),
        (lambda text: text.replace("m=video", "m=audio"), "unsupported_offer"),
        (lambda text: f"{HEAD}{VIDEO}", "unsupported_offer"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_reason(change: Callable[[str], str], code: str) -> None:
    changed = change(BROWSER)
    assert changed != BROWSER
    with pytest.raises(PeerError) as caught:
        parse_offer(changed)
    assert caught.value.code == code
    assert caught.value.message


@pytest.mark.parametrize(
    "bomb",
    [
        HEAD + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n" * 1800,
        BROWSER + "a=candidate:1 1 udp 1 192.0.2.1 1000 typ host\r\n" * 1000 + "a=candidate:x\r\n",
        BROWSER + "".join(f"a=candidate:1 1 udp 1 192.0.2.1 {port} typ host\r\n" for port in range(1000, 2200)),
        "a=" + "x" * 65000,
        "\n" * 65000,
        BROWSER.replace(FINGERPRINT, "sha-256 " + "AB:" * 20000),
    ],
)
def test_bombs_are_refused_at_once(bomb: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(PeerError):
        parse_offer(bomb)
    assert time.perf_counter() - begun < 1.0


def test_a_fragment() -> None:
    fragment = parse_fragment(FRAGMENT)
    assert fragment.credentials == Credentials("EsAw", "P2uYro0UCOQ4zxjKXaWCBui1")
    assert [candidate.split()[5] for candidate in fragment.candidates] == ["61764"]
    assert fragment.complete


def test_our_own_fragment_reads_back() -> None:
    ours = Credentials("abcdefgh", "0123456789abcdef01234567")
    written = write_fragment(ours, "0", ["a=candidate:1 1 udp 2130706431 10.0.0.1 50000 typ host"])
    read = parse_fragment(written)
    assert (read.credentials, read.complete) == (ours, True)
    assert len(read.candidates) == 1


@pytest.mark.parametrize("text", ["", "a=mid:0\r\n", "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n", "hello"])
def test_a_fragment_that_says_nothing_is_none(text: str) -> None:
    with pytest.raises(PeerError):
        parse_fragment(text)


def test_a_fragment_has_a_limit_too() -> None:
    line = "a=candidate:1 1 udp 1 192.0.2.1 {} typ host\r\n"
    with pytest.raises(PeerError, match=str(MAX_CANDIDATES)):
        parse_fragment("".join(line.format(port) for port in range(1, MAX_CANDIDATES + 2)))


def mutated(text: str, chance: random.Random) -> str:
    """`text` with a line or some characters changed, moved, repeated or gone."""
    lines = text.split("\r\n")
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    match chance.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(other, lines[at])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = lines[at][: chance.randrange(len(lines[at]) + 1)]
        case 4:
            cut = chance.randrange(len(lines[at]) + 1)
            lines[at] = (
                lines[at][:cut]
                + chance.choice(["\x00", "\n", "é", "9" * 40, "-1", " ", ":", "\u2028"])
                + lines[at][cut:]
            )
        case _:
            words = lines[at].split(" ")
            words[chance.randrange(len(words))] = chance.choice(["", "0", "-1", "99999", "x", "2001:db8::1", "::1%lo"])
            lines[at] = " ".join(words)
    return "\r\n".join(lines)


@settings(max_examples=200, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_broken_offers_are_refused_or_come_through_clean(seed: int) -> None:
    """10,000 of them: what is handed on is always an offer that the peer connection's own parser takes."""
    chance = random.Random(seed)
    for _ in range(50):
        text = BROWSER
        for _ in range(chance.randrange(1, 4)):
            text = mutated(text, chance)
        try:
            offer = parse_offer(text)
        except PeerError:
            continue
        taken = SessionDescription.parse(offer.taken)
        assert [media.rtp.muxId for media in taken.media if media.rtp.muxId in offer.accepted]
        for candidate in offer.candidates:
            candidate_from_sdp(candidate)
        SessionDescription.parse(write_answer(offer, ANSWER, stereo=True))


@settings(max_examples=200, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_broken_fragments_are_refused_or_come_through_clean(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(50):
        text = FRAGMENT
        for _ in range(chance.randrange(1, 4)):
            text = mutated(text, chance)
        try:
            fragment = parse_fragment(text)
        except PeerError:
            continue
        for candidate in fragment.candidates:
            candidate_from_sdp(candidate)
