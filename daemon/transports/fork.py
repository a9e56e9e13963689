"""A telephone call that a carrier forks to us: what the messages of Twilio and of Telnyx have in common.

`ForkedCall` is the conversation, `Fork` the audio of a call that has begun:

event             before start   then
----------------  -------------  -------------------------------------------
start {..}        the stream     a mistake
media {..}        a mistake      the audio that it completes, of both tracks
stop              a mistake      the end
those to ignore   nothing        nothing

Each side of the call is a track: inbound is what the carrier hears of the caller, outbound what the caller is played. Nothing
is answered: results are in Redis, under the carrier's call id.
"""

import base64
import binascii
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from daemon.errors import CLOSE_UNSUPPORTED, PeerError
from daemon.request import parse_object
from daemon.resample import ENCODINGS, AudioDecoder
from daemon.transports.dialect import Audio, Close, Command, Frame, Start
from daemon.transports.parameters import number, request_of, shown, texts
from daemon.transports.tracks import Patience, Tracks

TRACK_ROLES: Final = {"inbound": "customer", "outbound": "agent"}
"""Tracks in the order of their channels, and who speaks on them."""

_SILENCE: Final = {"mulaw": b"\xff", "alaw": b"\xd5"}
_LAG_S: Final = 0.5
_LONGEST_HOLE_S: Final = 30.0
"""A carrier sends silence as well; a longer hole is a broken clock."""
_LONGEST_MESSAGE_S: Final = 2.0
_REMEMBERED: Final = 512
"""Sequence numbers by which a message that comes twice is known."""
_HONOURED: Final = ("call_id", "language", "roles", "interim_ms")

_log = logging.getLogger(__name__)


class ForkedCall:
    """The messages of one connection.

    Args:
        begin: the audio and the stream of a `start` object; raises `PeerError`.
        sequence: the name that the carrier gives to the number of a message.
        ignored: events that are none of ours.
    """

    def __init__(
        self, begin: Callable[[Mapping[str, Any]], tuple["Fork", Start]], sequence: str, ignored: Collection[str]
    ) -> None:
        self._begin = begin
        self._sequence = sequence
        self._ignored = ignored
        self._fork: Fork | None = None

    def receive(self, frame: Frame) -> Iterable[Command]:
        """The next of the carrier's messages.

        Raises:
            PeerError: if it breaks the protocol.
        """
        if isinstance(frame, bytes):
            raise PeerError("bad_media", "audio is base64 in media.payload; a binary message has no meaning here")
        message = parse_object(frame)
        event = message.get("event")
        if event in self._ignored:
            return []
        if event == "start":
            return [self._start(message.get("start"))]
        if self._fork is None:
            raise PeerError("bad_start", f"event {shown(event)} came before start")
        if event == "media":
            return self._fork.media(message.get("media"), message.get(self._sequence))
        if event == "stop":
            return [Close()]
        raise PeerError("bad_type", f"event {shown(event)} is not known; there are start, media, dtmf, mark and stop")

    def flush(self) -> Iterable[Command]:
        """What the tracks and the resamplers hold."""
        return [] if self._fork is None else self._fork.flush()

    def _start(self, start: object) -> Command:
        if self._fork is not None:
            raise PeerError("bad_start", "start came twice")
        if not isinstance(start, dict):
            raise PeerError("bad_start", f"start is {shown(start)}; it must be an object")
        fork, command = self._begin(start)
        self._fork = fork
        return command


class Fork:
    """The audio of one forked call.

    Args:
        tracks: which are sent.
        encoding: of the payloads, "mulaw" or "alaw".
        sample_rate: in Hz.
        reorder_s: how long a message that is overtaken is waited for.

    Raises:
        PeerError: if there is no such track, or the server cannot take such audio.
    """

    def __init__(self, tracks: Sequence[object], encoding: str, sample_rate: int, reorder_s: float = 0.0) -> None:
        names = [name for name in TRACK_ROLES if name in tracks]
        if not names or len(names) != len(tracks):
            raise PeerError("bad_tracks", f"the tracks are {shown(tracks)}; they are inbound, outbound, or both")
        if encoding not in _SILENCE:
            raise PeerError(
                "bad_encoding",
                f"encoding {shown(encoding)} is not known; use {' or '.join(_SILENCE)}",
                CLOSE_UNSUPPORTED,
            )
        self.roles = tuple(TRACK_ROLES[name] for name in names)
        self._names = names
        self._rate = sample_rate
        self._longest = round(_LONGEST_MESSAGE_S * sample_rate) * ENCODINGS[encoding]
        self._decoder = AudioDecoder(encoding, sample_rate, len(names))
        patience = Patience(*(round(seconds * sample_rate) for seconds in (reorder_s, _LAG_S, _LONGEST_HOLE_S)))
        self._tracks = Tracks(len(names), _SILENCE[encoding], patience)
        self._seen: deque[str] = deque(maxlen=_REMEMBERED)

    def start(self, call: object, parameters: object) -> Start:
        """The stream of this call.

        Args:
            call: the carrier's id of it.
            parameters: that the customer attached to it: `call_id`, `language`, `roles` and `interim_ms` are honoured,
                the others are the call's metadata.

        Raises:
            PeerError: naming every parameter that is wrong.
        """
        given = texts(parameters)
        honoured: dict[str, str] = {name: given.pop(name) for name in _HONOURED if name in given}
        # The audio's format is the carrier's to say, not the customer's.
        known = {"channels": len(self.roles), "roles": self.roles, "call_id": call, "metadata": given}
        return Start(request_of(known, honoured))

    def media(self, media: object, sequence: object) -> Iterable[Command]:
        """The audio that a message completes.

        Raises:
            PeerError: if it is no audio of this call.
        """
        if not isinstance(media, dict):
            raise PeerError("bad_media", f"media is {shown(media)}; it must be an object")
        track = media.get("track")
        if track not in self._names:
            raise PeerError("bad_tracks", f"media is of track {shown(track)}; announced were {', '.join(self._names)}")
        if isinstance(sequence, str):
            if sequence in self._seen:
                return []
            self._seen.append(sequence)
        start = number(media.get("timestamp"), "media.timestamp") * self._rate // 1000
        frames = self._tracks.push(self._names.index(track), start, self._payload(media.get("payload")))
        return [Audio(self._decoder.decode(frames))] if frames else []

    def flush(self) -> Iterable[Command]:
        """What is left when nothing more comes."""
        last = self._decoder.decode(self._tracks.flush())
        counts, per_ms = self._tracks.counts, self._rate / 1000
        if counts.missing or counts.late:
            _log.info("a fork lacked %g ms, and %g ms came too late", counts.missing / per_ms, counts.late / per_ms)
        return [Audio(last), Audio(self._decoder.flush())]

    def _payload(self, payload: object) -> bytes:
        if not isinstance(payload, str) or len(payload) > 4 * self._longest // 3 + 4:
            raise PeerError("bad_media", f"media.payload is base64 of at most {_LONGEST_MESSAGE_S:g} s of audio")
        try:
            return base64.b64decode(payload, validate=True)
        except (binascii.Error, ValueError) as error:
            raise PeerError("bad_media", f"media.payload is no base64: {error}") from error
