"""The query of Deepgram's live protocol: what it asks of us, and the reason where it cannot be."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from daemon.errors import PeerError
from daemon.request import StreamRequest
from daemon.transports.parameters import flag, request_of, shown, texts, whole
from model.audio import POST_PAD, SAMPLES_PER_MS
from model.segmenter import Endpointing

_ENCODINGS: Final = {"linear16": "linear16", "linear32": "float32", "mulaw": "mulaw", "alaw": "alaw"}
_TELEPHONE_HZ: Final = 8000
_LEAST_SILENCE_MS: Final = POST_PAD // SAMPLES_PER_MS
"""The silence that an utterance keeps: endpointing below it is raised to it."""
_MOST_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Asked:
    """What a query asks for.

    Attributes:
        request: the stream; its channels are those of the audio.
        endpointing: when speech begins and ends.
        ends_speech: whether the end of speech is told (`speech_final`).
        mixed: whether the channels are to be mixed into one.
        vad_events: whether the beginning of speech is told.
        utterance_end_ms: silence after which the end of the words is told, None for never.
    """

    request: StreamRequest
    endpointing: Endpointing
    ends_speech: bool
    mixed: bool
    vad_events: bool
    utterance_end_ms: int | None


def read_query(query: Mapping[str, str], endpointing: Endpointing) -> Asked:
    """What the query asks for; what we know nothing of is left alone.

    Raises:
        PeerError: naming what cannot be.
    """
    encoding = query.get("encoding")
    if encoding not in _ENCODINGS:
        raise PeerError(
            "bad_encoding",
            f"encoding {shown(encoding)} is not taken: send raw audio as one of {', '.join(_ENCODINGS)}, and say so",
        )
    channels = whole(query, "channels", 1, 1, 2)
    multichannel = flag(query, "multichannel", False)
    default_rate = _TELEPHONE_HZ if encoding in ("mulaw", "alaw") else None
    silence = query.get("endpointing", "true")
    if silence not in ("true", "false"):
        silence_ms = max(_LEAST_SILENCE_MS, whole(query, "endpointing", None, 0, _MOST_MS))
        endpointing = replace(endpointing, endpoint_silence_ms=silence_ms)
    language = query.get("language", "multi")
    known = {
        "encoding": _ENCODINGS[encoding],
        "sample_rate": whole(query, "sample_rate", default_rate, 1, 10**6),
        "channels": channels,
        "language": None if language == "multi" else language.partition("-")[0].lower(),
        "interim_ms": None if flag(query, "interim_results", False) else 0,
        "metadata": texts({name: query[name] for name in ("tag", "extra") if name in query}),
    }
    return Asked(
        request=request_of(known, {name: query[name] for name in ("call_id", "roles") if name in query}),
        endpointing=endpointing,
        ends_speech=silence != "false",
        mixed=channels > 1 and not multichannel,
        vad_events=flag(query, "vad_events", False),
        utterance_end_ms=whole(query, "utterance_end_ms", None, 0, _MOST_MS) if "utterance_end_ms" in query else None,
    )
