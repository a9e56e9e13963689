"""What gateways and workers tell each other, as bytes. Sans-IO: values in, values out; any bytes in, a value or a `WireError`.

    "MED" kind version | length of the header, uint32 | header, JSON | samples or nothing | history or nothing

Numbers of the header survive exactly: JSON has the shortest text that reads as the same float. Samples go as 16 bits where
that loses nothing, as it does for audio that came in as linear16 at 16 kHz, else as float32; the history goes as float64.
All are little-endian.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.errors import UpstreamError
from daemon.messages import CallInfo, EmotionEvent, Latency, Scores, Utterance
from model.adaptation import NO_HISTORY, History
from model.audio import WHISPER_WINDOW, Samples
from model.labels import ATTRIBUTES, CLASSES
from model.posteriors import Posteriors
from model.transcript import Transcript

WIRE_VERSION: Final = 1
"""Part of the keys' names too: both versions of a fleet that is being updated keep to themselves."""

MAX_BYTES: Final = 16 << 20
"""Of anything: 30 s of float32 are 2 MB, a history is a few times that at most."""
_MAX_HEADER: Final = 1 << 16
_MAX_HISTORY: Final = 1 << 20
"""Values."""
_HEAD: Final = struct.Struct("<4sBI")
_PCM: Final = 32768.0

_WORK: Final = b"MEDW"
_RESULT: Final = b"MEDR"
_HISTORY: Final = b"MEDH"

_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_Name = Annotated[str, Field(max_length=1024)]
_Probability = Annotated[float, Field(ge=0, le=1)]


class WireError(UpstreamError):
    """These bytes are not what they should be."""


@dataclass(frozen=True, slots=True)
class Work:
    """An utterance to score.

    Attributes:
        info: whose it is; without the client's metadata, which stay at the gateway.
        utterance: what to score.
        gateway: who waits for the result.
        history: what its channel sounded like before, where the gateway says so: of interim utterances, and of final ones
            whose channel Redis has forgotten.
    """

    info: CallInfo
    utterance: Utterance
    gateway: str
    history: History = NO_HISTORY

    @property
    def event_id(self) -> str:
        """Of the event that its scores will make."""
        return event_id_of(self.info, self.utterance)


@dataclass(frozen=True, slots=True)
class Failure:
    """An utterance that was given up.

    Attributes:
        reason: why, for an operator.
    """

    reason: str


Result = Scores | Failure


def event_id_of(info: CallInfo, utterance: Utterance) -> str:
    """The id of the event that an utterance makes once it is scored."""
    nothing = Latency(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    return EmotionEvent(info, utterance, Scores(Posteriors((), (), 0.0, abstained=False), None, nothing), 0).event_id


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


_H = TypeVar("_H", bound=_Header)


class _HistoryHeader(_Header):
    """Shape and weight; no shape where nothing was heard yet."""

    shape: tuple[Annotated[int, Field(ge=1, le=_MAX_HISTORY)], Annotated[int, Field(ge=1, le=_MAX_HISTORY)]] | None
    weight: Annotated[float, Field(ge=0)]


class _WorkHeader(_Header):
    call: _Name
    session: _Name
    roles: Annotated[tuple[_Name, ...], Field(min_length=1, max_length=16)]
    bundle: _Name
    language: _Name | None
    gateway: _Name
    channel: _Count
    index: _Count
    start: _Count
    end: _Count
    interim: _Count
    decided: _Count
    samples: Literal["s16", "f32"]
    history: _HistoryHeader


class _TranscriptHeader(_Header):
    text: str
    language: str
    log_probability: float
    no_speech: float
    trusted: bool


class _ScoresHeader(_Header):
    probabilities: Annotated[tuple[_Probability, ...], Field(min_length=len(CLASSES), max_length=len(CLASSES))]
    attributes: Annotated[tuple[float | None, ...], Field(min_length=len(ATTRIBUTES), max_length=len(ATTRIBUTES))]
    uncertainty: float
    abstained: bool
    transcript: _TranscriptHeader | None
    latency: dict[str, float]
    modality_share: dict[_Name, _Probability] = {}
    members_used: tuple[_Name, ...] = ()
    adaptation: float
    history: _HistoryHeader


class _ResultHeader(_Header):
    scores: _ScoresHeader | None
    failure: str | None


def encode_work(work: Work) -> bytes:
    """The bytes of an utterance.

    Raises:
        ValueError: if its audio is not as long as it says, or not finite.
    """
    info, u = work.info, work.utterance
    if len(u.audio) != u.end - u.start or not np.isfinite(u.audio).all():
        raise ValueError(f"an utterance from {u.start} to {u.end} holds {u.end - u.start} finite samples")
    exact = _exact_pcm(u.audio)
    samples = u.audio.astype("<f4").tobytes() if exact is None else exact
    header = {
        "call": _text(info.call),
        "session": _text(info.session),
        "roles": [_text(role) for role in info.roles],
        "bundle": info.model,
        "language": info.language,
        "gateway": work.gateway,
        "channel": u.channel,
        "index": u.index,
        "start": u.start,
        "end": u.end,
        "interim": u.interim,
        "decided": u.decided,
        "samples": "f32" if exact is None else "s16",
        "history": _history_header(work.history),
    }
    return _packed(_WORK, header, samples + _history_bytes(work.history))


def decode_work(data: bytes) -> Work:
    """The utterance in `data`.

    Raises:
        WireError: if they are no utterance.
    """
    header, body = _unpacked(_WORK, data, _WorkHeader)
    length = header.end - header.start
    if not 0 < length <= WHISPER_WINDOW:
        raise WireError(f"an utterance has 1 to {WHISPER_WINDOW} samples, got {length}")
    if header.channel >= len(header.roles):
        raise WireError(f"channel {header.channel} is none of the {len(header.roles)} channels of its call")
    width = 2 if header.samples == "s16" else 4
    audio = _samples(_cut(body, 0, length * width), header.samples)
    history = _history(header.history, body[length * width :])
    info = CallInfo(header.call, header.session, header.roles, header.bundle, header.language)
    utterance = Utterance(header.channel, header.index, header.start, header.end, audio, header.interim, header.decided)
    return Work(info, utterance, header.gateway, history)


def encode_result(result: Result) -> bytes:
    """The bytes of what became of an utterance."""
    if isinstance(result, Failure):
        return _packed(_RESULT, {"scores": None, "failure": _text(result.reason)}, b"")
    p, words = result.posteriors, result.transcript
    scores = {
        "probabilities": p.probabilities,
        "attributes": p.attributes,
        "uncertainty": p.uncertainty,
        "abstained": p.abstained,
        **({"modality_share": dict(p.modality_share)} if p.modality_share else {}),
        **({"members_used": p.members_used} if p.members_used else {}),
        "transcript": None if words is None else asdict(words) | {"text": _text(words.text)},
        "latency": asdict(result.latency),
        "adaptation": result.adaptation,
        "history": _history_header(result.history),
    }
    return _packed(_RESULT, {"scores": scores, "failure": None}, _history_bytes(result.history))


def decode_result(data: bytes) -> Result:
    """What became of an utterance.

    Raises:
        WireError: if `data` does not say.
    """
    header, body = _unpacked(_RESULT, data, _ResultHeader)
    found = header.scores
    if (found is None) == (header.failure is None):
        raise WireError("a result holds either scores or a failure")
    if found is None:
        return Failure(header.failure or "")
    try:
        latency = Latency(**found.latency)
    except TypeError as error:
        raise WireError(f"a result's latency has other stages than ours: {sorted(found.latency)}") from error
    words = None if found.transcript is None else Transcript(**found.transcript.model_dump())
    posteriors = Posteriors(
        found.probabilities,
        found.attributes,
        found.uncertainty,
        found.abstained,
        tuple(found.modality_share.items()),
        found.members_used,
    )
    return Scores(posteriors, words, latency, _history(found.history, body), found.adaptation)


def encode_history(history: History) -> bytes:
    """The bytes of what a channel sounded like."""
    return _packed(_HISTORY, _history_header(history), _history_bytes(history))


def decode_history(data: bytes) -> History:
    """What a channel sounded like; no bytes are no history.

    Raises:
        WireError: if `data` does not say.
    """
    if not data:
        return NO_HISTORY
    header, body = _unpacked(_HISTORY, data, _HistoryHeader)
    return _history(header, body)


def _packed(kind: bytes, header: Mapping[str, Any], body: bytes) -> bytes:
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    return _HEAD.pack(kind, WIRE_VERSION, len(text)) + text + body


def _unpacked(kind: bytes, data: bytes, model: type[_H]) -> tuple[_H, bytes]:
    if not _HEAD.size <= len(data) <= MAX_BYTES:
        raise WireError(f"{len(data)} bytes are no message: {_HEAD.size} to {MAX_BYTES} expected")
    found, version, length = _HEAD.unpack_from(data)
    if (found, version) != (kind, WIRE_VERSION):
        raise WireError(f"a message begins with {kind!r} version {WIRE_VERSION}, got {found!r} version {version}")
    if length > _MAX_HEADER:
        raise WireError(f"a header has at most {_MAX_HEADER} bytes, got {length}")
    text = _cut(data, _HEAD.size, length)
    try:
        return model.model_validate_json(text), data[_HEAD.size + length :]
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, mistake["loc"])) or mistake["msg"] for mistake in error.errors())
        raise WireError(f"a header has mistakes in: {wrong}") from error


def _cut(data: bytes, at: int, length: int) -> bytes:
    found = data[at : at + length]
    if len(found) != length:
        raise WireError(f"a message ends early: {length} bytes expected at {at}, got {len(found)}")
    return found


def _exact_pcm(audio: Samples) -> bytes | None:
    """The samples in 16 bits, None where that would change one."""
    scaled = audio * np.float32(_PCM)  # a power of two: exact
    whole = np.rint(scaled)
    if not np.array_equal(whole, scaled) or np.any(whole < -_PCM) or np.any(whole > _PCM - 1):
        return None
    return bytes(whole.astype("<i2").tobytes())


def _samples(data: bytes, encoding: Literal["s16", "f32"]) -> Samples:
    if encoding == "s16":
        return (np.frombuffer(data, "<i2") / np.float32(_PCM)).astype(np.float32)
    audio = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(audio).all():
        raise WireError("the samples of an utterance are finite, got NaN or infinity")
    return audio


def _history_header(history: History) -> dict[str, Any]:
    shape = None if history.deviation is None else list(history.deviation.shape)
    return {"shape": shape, "weight": history.weight}


def _history_bytes(history: History) -> bytes:
    return b"" if history.deviation is None else history.deviation.astype("<f8").tobytes()


def _history(header: _HistoryHeader, data: bytes) -> History:
    rows, width = header.shape or (0, 0)
    if len(data) != 8 * rows * width:
        raise WireError(f"a history of [{rows}, {width}] has {8 * rows * width} bytes, got {len(data)}")
    if header.shape is None:
        return History(None, header.weight)
    deviation: npt.NDArray[np.float64] = np.frombuffer(data, "<f8").astype(np.float64).reshape(rows, width)
    if not np.isfinite(deviation).all():
        raise WireError("a history is finite, got NaN or infinity")
    return History(deviation, header.weight)


def _text(text: str) -> str:
    """As UTF-8 can hold it: half a surrogate pair in a client's text must not stop its channel."""
    return text.encode("utf-8", "replace").decode()
