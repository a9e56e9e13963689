"""SDP of a WHIP session, sans-IO: what of an offer is taken, the answer, the fragments of trickle ICE.

An offer is not handed on as it came. It is read once, within bounds, and what is taken of it - one Opus track, and the data
channels that share its transport - is written anew; everything else is refused in the answer. So no peer connection ever sees
what a stranger wrote.

Source: RFC 8866 (SDP), RFC 8829 (JSEP), RFC 7587 (Opus), RFC 8840 and RFC 9725 (fragments).
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from daemon.errors import PeerError

MAX_SECTIONS: Final = 16
MAX_CANDIDATES: Final = 64
"""Each is an address that we send checks to."""

_LINE: Final = re.compile(r"[a-z]=[^\x00-\x1f\x7f]*")
_MEDIA: Final = re.compile(r"([a-z]{1,32}) (\d{1,5})(?:/\d{1,5})? ([A-Z/]{1,32}) ([!-~][ -~]{0,1023})")
_FORMAT: Final = re.compile(r"\d|[1-9]\d|1[01]\d|12[0-7]", re.ASCII)
_TOKEN: Final = re.compile(r"[!-~]{1,32}")
_USERNAME: Final = re.compile(r"[A-Za-z0-9+/]{4,256}")
_PASSWORD: Final = re.compile(r"[A-Za-z0-9+/]{22,256}")
_FINGERPRINT: Final = re.compile(
    r"(?:sha-1|sha-224|sha-256|sha-384|sha-512) (?:[0-9A-F]{2}:){19,63}[0-9A-F]{2}", re.IGNORECASE
)
_OPUS: Final = re.compile(r"(\d{1,3}) opus/48000/2", re.IGNORECASE)
_CANDIDATE: Final = re.compile(
    r"([!-~]{1,32}) (\d{1,3}) (\w{1,16}) (\d{1,10}) ([\w.:%-]{1,253}) (\d{1,5}) typ (\w{1,16})((?: [!-~]+)*)"
)
_MDNS: Final = re.compile(r"[0-9A-Za-z-]{1,63}\.local")
_DEFAULT_SCTP_PORT: Final = 5000
_DEFAULT_MAX_MESSAGE: Final = 65536


@dataclass(frozen=True, slots=True)
class Credentials:
    """What authenticates the connectivity checks of one ICE session."""

    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Section:
    """One `m=` section of an offer, or what stands before the first of them (kind "").

    Attributes:
        kind: audio, video, application.
        port: 0 where the client does not want it.
        formats: as written.
        attributes: of every `a=` line, name and value.
    """

    kind: str
    port: int
    protocol: str
    formats: str
    attributes: tuple[tuple[str, str], ...]

    def value(self, name: str) -> str | None:
        """The first value of an attribute, "" if it has none, None if it is not there."""
        return next(self.values(name), None)

    def values(self, name: str) -> Iterator[str]:
        """All values of an attribute."""
        return (value for found, value in self.attributes if found == name)


@dataclass(frozen=True, slots=True)
class Offer:
    """What is taken of an offer.

    Attributes:
        taken: the offer as it is handed on.
        stereo: whether the client would send two channels.
        credentials: of its ICE session.
        mid: of the section whose transport all share.
        candidates: the client's addresses so far.
        complete: whether there are no more of them.
        sections: all that was offered, in order.
        accepted: mids of what is taken.
        opus: the payload type.
    """

    taken: str
    stereo: bool
    credentials: Credentials
    mid: str
    candidates: tuple[str, ...]
    complete: bool
    sections: tuple[Section, ...]
    accepted: tuple[str, ...]
    opus: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """What a PATCH says: more candidates, or new credentials for an ICE restart."""

    credentials: Credentials | None
    candidates: tuple[str, ...]
    complete: bool


def parse_offer(text: str) -> Offer:
    """Reads an offer.

    Raises:
        PeerError: "bad_sdp" if it is none; "unsupported_offer" if nothing in it can be served.
    """
    session, *sections = _sections(text)
    if not sections:
        raise _bad("it has no m= line; an offer has m=audio")
    mids = [_mid(section) for section in sections]
    if len(set(mids)) != len(mids):
        raise _bad(f"two sections have one a=mid: {', '.join(mids)}")
    audio = _audio(sections)
    mid = _mid(audio)
    group = _bundle_of(session, mid)
    data = next((s for s in sections if s.kind == "application" and s.port and _mid(s) in group), None)
    accepted = tuple(name for name in group if name == mid or (data is not None and name == _mid(data)))
    opus = _opus(audio)
    credentials = _credentials(audio, session)
    if credentials is None:
        raise _bad("a=ice-ufrag or a=ice-pwd is missing")
    shared = _transport(audio, session, credentials)
    parts = {mid: _audio_lines(mid, opus, shared)}
    if data is not None:
        parts[_mid(data)] = _data_lines(_mid(data), data, shared)
    lite = ["a=ice-lite"] if session.value("ice-lite") is not None else []
    head = ["v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0", f"a=group:BUNDLE {' '.join(accepted)}", *lite]
    carriers = [s for s in sections if _mid(s) in accepted]
    return Offer(
        taken=_join([*head, *(line for s in carriers for line in parts[_mid(s)])]),
        stereo=_is_stereo(audio, opus),
        credentials=credentials,
        mid=accepted[0],
        candidates=_candidates(carriers),
        complete=any(s.value("end-of-candidates") is not None for s in [session, *carriers]),
        sections=tuple(sections),
        accepted=accepted,
        opus=opus,
    )


def write_answer(offer: Offer, answer: str, *, stereo: bool, public_address: str | None = None) -> str:
    """The answer to the whole offer, made of the answer to what was taken of it.

    Without the Opus parameters a browser mixes both channels into one before it sends them.

    Args:
        offer: what the client sent.
        answer: to `offer.taken`.
        stereo: whether two channels are wanted.
        public_address: told instead of our own IPv4 addresses.
    """
    head, *parts = _split(answer)
    own = {mid: part for part in parts for line in part if (mid := line.removeprefix("a=mid:")) != line}
    channels = ";stereo=1;sprop-stereo=1" if stereo else ""
    wanted = f"a=fmtp:{offer.opus} minptime=10;useinbandfec=1{channels}"
    lines = [line for line in head if not line.startswith("a=ice-options")] + ["a=ice-options:trickle"]
    for section in offer.sections:
        part = own.get(_mid(section)) or _refused(section)
        for line in part:
            if line.startswith(f"a=fmtp:{offer.opus} "):
                continue
            lines.append(_public(line, public_address))
            if line.startswith(f"a=rtpmap:{offer.opus} "):
                lines.append(wanted)
    return _join(lines)


def local_candidates(answer: str) -> tuple[str, ...]:
    """The `a=candidate` lines of an answer."""
    return tuple(dict.fromkeys(line for line in answer.splitlines() if line.startswith("a=candidate:")))


def parse_fragment(text: str) -> Fragment:
    """Reads the body of a PATCH.

    Raises:
        PeerError: "bad_sdp" if it is no fragment.
    """
    sections = _sections(text)
    found = (_credentials(section, sections[0]) for section in sections)
    fragment = Fragment(
        credentials=next((credentials for credentials in found if credentials is not None), None),
        candidates=_candidates(sections),
        complete=any(section.value("end-of-candidates") is not None for section in sections),
    )
    if fragment == Fragment(None, (), False):
        raise _bad("the fragment says nothing: it holds neither a=candidate, a=end-of-candidates nor a=ice-ufrag")
    return fragment


def write_fragment(credentials: Credentials, mid: str, candidates: Iterable[str]) -> str:
    """Our side of an ICE restart.

    Args:
        credentials: the new ones.
        mid: of the section whose transport all share.
        candidates: `a=candidate` lines.
    """
    own = [f"a=ice-ufrag:{credentials.username}", f"a=ice-pwd:{credentials.password}"]
    return _join([*own, "m=audio 9 UDP/TLS/RTP/SAVPF 0", f"a=mid:{mid}", *candidates, "a=end-of-candidates"])


def _bad(what: str) -> PeerError:
    return PeerError("bad_sdp", f"the SDP is not well-formed: {what}")


def _join(lines: Sequence[str]) -> str:
    return "".join(f"{line}\r\n" for line in lines)


def _split(text: str) -> list[list[str]]:
    """Lines by section; the first are the session's own."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        if line.startswith("m="):
            parts.append([])
        if line:
            parts[-1].append(line)
    return parts


def _sections(text: str) -> list[Section]:
    parts = _split(text)
    if len(parts) > MAX_SECTIONS + 1:
        raise _bad(f"it has {len(parts) - 1} m= lines, the limit is {MAX_SECTIONS}")
    wrong = next((line for part in parts for line in part if not _LINE.fullmatch(line)), None)
    if wrong is not None:
        raise _bad(f"{wrong!r:.80} is no line of SDP, such as a=mid:0")
    return [_section(part) for part in parts]


def _section(lines: Sequence[str]) -> Section:
    pairs = (line[2:].partition(":") for line in lines if line.startswith("a="))
    attributes = tuple((name, value) for name, _, value in pairs)
    if not lines or not lines[0].startswith("m="):
        return Section("", 0, "", "", attributes)
    media = _MEDIA.fullmatch(lines[0][2:])
    if media is None:
        raise _bad(f"{lines[0]!r:.80} is no m= line, such as m=audio 9 UDP/TLS/RTP/SAVPF 111")
    if media[1] in ("audio", "video") and not all(_FORMAT.fullmatch(name) for name in media[4].split(" ")):
        raise _bad(f"{lines[0]!r:.80} names formats that are no numbers from 0 to 127")
    return Section(media[1], int(media[2]), media[3], media[4], attributes)


def _mid(section: Section) -> str:
    mid = section.value("mid")
    if mid is None or not _TOKEN.fullmatch(mid):
        raise _bad(f"the section m={section.kind} has a=mid:{mid or ''!s:.40}; it needs a name such as a=mid:0")
    return mid


def _audio(sections: Sequence[Section]) -> Section:
    offered = [section for section in sections if section.kind == "audio" and section.value("inactive") is None]
    if len(offered) != 1:
        raise PeerError(
            "unsupported_offer",
            f"{len(offered)} audio tracks are offered; send one, with an agent and a customer on its two channels",
        )
    audio = offered[0]
    if audio.value("recvonly") is not None:
        raise PeerError("unsupported_offer", "the audio track is a=recvonly; a session takes audio: offer a=sendonly")
    if audio.value("rtcp-mux") is None:
        raise PeerError("unsupported_offer", "a=rtcp-mux is missing: RTP and RTCP must share one port")
    return audio


def _bundle_of(session: Section, mid: str) -> list[str]:
    """The mids that share a transport with `mid`, it too, in the client's order."""
    groups = (value.split() for value in session.values("group"))
    return next((items for kind, *items in filter(None, groups) if kind == "BUNDLE" and mid in items), [mid])


def _opus(audio: Section) -> int:
    found = next((match for value in audio.values("rtpmap") if (match := _OPUS.fullmatch(value.strip()))), None)
    if found is None or found[1] not in audio.formats.split() or not 96 <= int(found[1]) <= 127:
        raise PeerError("unsupported_offer", "Opus is not offered: a=rtpmap:111 opus/48000/2 is what a session takes")
    return int(found[1])


def _is_stereo(audio: Section, opus: int) -> bool:
    lines = (value.split(" ", 1) for value in audio.values("fmtp"))
    parameters = next((line[1] for line in lines if line[0] == str(opus) and len(line) > 1), "")
    said = {parameter.strip() for parameter in parameters.split(";")}
    return bool(said & {"stereo=1", "sprop-stereo=1"})


def _credentials(section: Section, session: Section) -> Credentials | None:
    username = section.value("ice-ufrag") or session.value("ice-ufrag")
    password = section.value("ice-pwd") or session.value("ice-pwd")
    if username is None or password is None:
        return None
    if not _USERNAME.fullmatch(username) or not _PASSWORD.fullmatch(password):
        raise _bad("a=ice-ufrag has 4 to 256 and a=ice-pwd 22 to 256 characters A-Z a-z 0-9 + /")
    return Credentials(username, password)


def _transport(audio: Section, session: Section, credentials: Credentials) -> list[str]:
    fingerprints = [*audio.values("fingerprint")] or [*session.values("fingerprint")]
    if not fingerprints or not all(_FINGERPRINT.fullmatch(value) for value in fingerprints[:8]):
        raise _bad("a=fingerprint is missing or of no known kind, such as sha-256 and 32 bytes in hexadecimal")
    setup = audio.value("setup") or session.value("setup")
    if setup not in ("actpass", "active", "passive"):
        raise _bad(f"a=setup:{setup or ''!s:.20} is not actpass, active or passive")
    return [
        f"a=ice-ufrag:{credentials.username}",
        f"a=ice-pwd:{credentials.password}",
        *(f"a=fingerprint:{value}" for value in fingerprints[:8]),
        f"a=setup:{setup}",
    ]


def _audio_lines(mid: str, opus: int, shared: Iterable[str]) -> list[str]:
    head = [f"m=audio 9 UDP/TLS/RTP/SAVPF {opus}", "c=IN IP4 0.0.0.0", f"a=mid:{mid}", "a=sendonly", "a=rtcp-mux"]
    return [*head, f"a=rtpmap:{opus} opus/48000/2", *shared]


def _data_lines(mid: str, data: Section, shared: Iterable[str]) -> list[str]:
    port = _number(data, "sctp-port", _DEFAULT_SCTP_PORT, (1, 65535))
    limit = _number(data, "max-message-size", _DEFAULT_MAX_MESSAGE, (0, 1 << 32))
    head = ["m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0", f"a=mid:{mid}"]
    return [*head, f"a=sctp-port:{port}", f"a=max-message-size:{limit}", *shared]


def _number(section: Section, name: str, default: int, bounds: tuple[int, int]) -> int:
    value = section.value(name)
    if value is None:
        return default
    if not re.fullmatch(r"[0-9]{1,10}", value) or not bounds[0] <= int(value) <= bounds[1]:
        raise _bad(f"a={name}:{value!s:.20} is no number from {bounds[0]} to {bounds[1]}")
    return int(value)


def _candidates(sections: Iterable[Section]) -> tuple[str, ...]:
    """Those that we could reach: UDP, component 1, an address or the name of a machine on our own network."""
    found = [value for section in sections for value in section.values("candidate")]
    if len(found) > MAX_CANDIDATES:
        raise _bad(f"it has {len(found)} candidates, the limit is {MAX_CANDIDATES}")
    return tuple(value for value in dict.fromkeys(found) if _is_usable(value))


def _is_usable(candidate: str) -> bool:
    match = _CANDIDATE.fullmatch(candidate)
    if match is None or int(match[6]) > 65535 or int(match[4]) >= 1 << 32:
        raise _bad(f"{candidate!r:.80} is no candidate, such as 1 1 udp 2130706431 192.0.2.1 50000 typ host")
    if match[2] != "1" or match[3].lower() != "udp" or match[6] == "0":
        return False
    return bool(_MDNS.fullmatch(match[5])) or _is_address(match[5])


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _refused(section: Section) -> list[str]:
    media = f"m={section.kind} 0 {section.protocol} {section.formats.split()[0]}"
    return [media, "c=IN IP4 0.0.0.0", "a=inactive", f"a=mid:{_mid(section)}"]


def _public(line: str, address: str | None) -> str:
    if address is None:
        return line
    if line.startswith("c=IN IP4 ") and not line.endswith(" 0.0.0.0"):
        return f"c=IN IP4 {address}"
    bits = line.split(" ")
    if line.startswith("a=candidate:") and bits[7:8] == ["host"] and "." in bits[4]:
        bits[4] = address
    return " ".join(bits)
