"""What the tests of all protocols share: audio as a telephone carries it, what it scores offline, and broken messages."""

import copy
import functools
import json
import random
import wave
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import wire
from daemon.config import load_config
from daemon.engine import load_models
from daemon.errors import PeerError
from daemon.offline import score_samples
from daemon.resample import AudioDecoder
from daemon.transports.dialect import Audio, Close, Command, Dialect, Finalize, Frame, Handshake, Reply, Start
from daemon.wire import redis_fields
from model.recording import read_recording
from tests.factories import make_info

MUTATIONS: Final = 10_000
"""Broken messages per protocol."""
_PER_EXAMPLE: Final = 50
_PROBABILITIES: Final = "p_angry p_sad p_happy p_surprise p_fear p_disgust p_contempt p_neutral".split()

Int16 = npt.NDArray[np.int16]


def handshake(
    path: str = "/", headers: dict[str, str] | None = None, subprotocols: Sequence[str] = (), host: str = "localhost"
) -> Handshake:
    """As the door makes it."""
    _, _, query = path.partition("?")
    pairs = dict(part.split("=", 1) for part in query.split("&") if part)
    return Handshake(f"ws://{host}{path}", pairs, headers or {}, subprotocols)


def telephone(path: Path) -> Int16:
    """The first channel of a recording at 8 kHz, `int16 [T]`."""
    frame = av.AudioFrame.from_ndarray(read_recording(path)[:1], format="fltp", layout="mono")
    frame.sample_rate = 16_000
    resampler = av.AudioResampler("s16", layout="mono", rate=8000)
    return np.concatenate([part.to_ndarray()[0] for given in (frame, None) for part in resampler.resample(given)])


def write_wav(path: Path, samples: Int16) -> Path:
    """A mono recording at 8 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    return path


_models: Final = functools.cache(load_models)
"""Once for all that is scored offline: loading takes longer than scoring."""


async def offline(
    interleaved: bytes, encoding: str, rate: int, roles: tuple[str, ...] = ("customer", "agent")
) -> list[dict[str, str]]:
    """What the same audio gives in one piece, without a server, as Redis has it; by role and utterance."""
    decoder = AudioDecoder(encoding, rate, len(roles))
    parts = [decoder.decode(interleaved), decoder.flush()]
    audio = np.stack([np.concatenate(channel) for channel in zip(*parts, strict=True)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("daemon.offline.load_models", _models)
        events = await score_samples(audio, load_config(None, {}), roles)
    return ordered([redis_fields(event) for event in events])


def ordered(events: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The final results, by role and utterance."""
    found = [event for event in events if event["type"] == "emotion"]
    return sorted(found, key=lambda event: (event["role"], int(event["utterance"])))


def assert_same_events(got: Iterable[dict[str, str]], wanted: Sequence[dict[str, str]]) -> None:
    """The same utterances of the same people, with the same posteriors to 1e-4."""
    found = ordered(got)
    for exact in ("role", "utterance", "start_ms", "end_ms", "text"):
        assert [event[exact] for event in found] == [event[exact] for event in wanted]
    for one, other in zip(found, wanted, strict=True):
        for name in [*_PROBABILITIES, "arousal", "valence", "dominance"]:
            assert float(one[name] or 0) == pytest.approx(float(other[name] or 0), abs=1e-4)


def carried_out(commands: Iterable[Command]) -> list[Command]:
    """All of them, each checked to be one that the door knows."""
    done = list(commands)
    for command in done:
        assert isinstance(command, Start | Audio | Finalize | Reply | Close)
    return done


def carry_out(dialect: Dialect, commands: Iterable[Command]) -> bool:
    """As the door does it: a stream that begins is told before the next command; whether the client is done."""
    for command in commands:
        if isinstance(command, Start):
            list(dialect.render(wire.session_created(make_info(roles=command.request.role_names()), (), ())))
        if isinstance(command, Close):
            return True
    return False


def replies(commands: Iterable[Command]) -> list[dict[str, Any]]:
    """What a dialect answers by itself."""
    return [json.loads(command.frame) for command in commands if isinstance(command, Reply)]


def survives_mutations(dialect: Callable[[], Dialect], dialogue: Sequence[Frame]) -> None:
    """Breaks messages of a valid dialogue in any way, `MUTATIONS` of them: an error for the peer, or nothing, comes of it."""
    played, refused = 0, 0

    @settings(max_examples=MUTATIONS // _PER_EXAMPLE, deadline=None, database=None)
    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        nonlocal played, refused
        chance, broken = random.Random(seed), 0
        while broken < _PER_EXAMPLE:
            count, ended_well = _play(dialect(), dialogue, chance)
            broken += count
            played += 1
            refused += not ended_well

    run()
    assert refused > played // 4, "the messages are hardly broken"
    assert refused < played, "every dialogue is refused: nothing behind the first message was tried"


def _play(dialect: Dialect, dialogue: Sequence[Frame], chance: random.Random) -> tuple[int, bool]:
    """How many broken messages of a dialogue were received, and whether it came to its end."""
    broken = 0
    first = chance.randrange(len(dialogue))
    try:
        carry_out(dialect, dialect.opening())
        for index, frame in enumerate(dialogue):
            breaks = index == first or (index > first and chance.random() < 0.5)
            broken += breaks
            if carry_out(dialect, dialect.receive(mutated(frame, chance) if breaks else frame)):
                break
        carry_out(dialect, dialect.flush())
    except PeerError as error:
        told = bool(error.code and error.message)
        assert told, "the peer is told what was wrong"
        return broken, False
    return broken, True


def mutated(frame: Frame, chance: random.Random) -> Frame:
    """`frame`, broken: its bytes, its JSON, or the kind of message it is."""
    way = chance.randrange(8)
    if way == 0:
        return frame.encode() if isinstance(frame, str) else frame.decode("latin-1")
    if isinstance(frame, bytes) or way == 1:
        data = frame.encode() if isinstance(frame, str) else frame
        changed = _mutated_bytes(data, chance)
        return changed if isinstance(frame, bytes) else changed.decode("utf-8", "replace")
    if way == 2:
        return _deep(frame, chance)
    value = json.loads(frame)
    for _ in range(chance.randrange(1, 3)):
        value = _mutated_json(value, chance)
    return json.dumps(value)


def _deep(text: str, chance: random.Random) -> str:
    """`text` up to one of its values, and in its place one nested too deep for a parser, or for what comes behind it."""
    at = chance.choice([index for index, letter in enumerate(text) if letter == ":"]) + 1
    depth = chance.choice([10, 500, 900, 960, 990, 5000])
    return text[:at] + "[" * depth + "]" * depth + "}" * (text[:at].count("{") - text[:at].count("}"))


def _mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return {
        0: data[:at],
        1: data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:],
        2: data[:at] + chance.randbytes(1) + data[at + 1 :],
        3: data + data,
    }[chance.randrange(4)]


_ODDITIES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1.5, 1e308, 10**30, "", "0", "-1", "1e9", "9" * 40, "٣", "\x00", "\ud7ff", "x" * 5000, "=",
    "AA", [], [[]], {}, {"a": {}}, ["inbound"], ["inbound", "inbound"], "outbound", "start", "stop", "PT1S", "PT1e99S",
    "PT999999999S", "https://", "../../etc", "%7B", "true", "en-US", "xx",
)  # fmt: skip


def _mutated_json(value: Any, chance: random.Random) -> Any:
    """`value` with one thing in it changed, taken away, added or moved."""
    value = copy.deepcopy(value)
    if not isinstance(value, dict | list) or not value or chance.random() < 0.05:
        return chance.choice(_ODDITIES)
    key: Any = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    way = chance.randrange(6)
    if way == 0:
        del value[key]
    elif way == 1 and isinstance(value, dict):
        value[chance.choice(["event", "type", "x" * 300, "", "media", "parameters", "roles"])] = chance.choice(
            _ODDITIES
        )
    elif way == 2:
        value[key] = chance.choice(_ODDITIES)
    elif way == 3 and isinstance(value, dict):
        value[key] = copy.deepcopy(value[chance.choice(list(value))])
    else:
        value[key] = _mutated_json(value[key], chance)
    return value
