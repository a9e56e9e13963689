"""Hume's realtime protocol, spoken by Hume's own SDK."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from hume_expression_measurement import AsyncExpressionMeasurementClient
from hume_expression_measurement.environment import ExpressionMeasurementClientEnvironment
from hume_expression_measurement.types.audio_session_update import AudioSessionUpdate
from hume_expression_measurement.types.session_close import SessionClose

from daemon import wire
from daemon.errors import PeerError
from daemon.transports.dialect import Audio, Close, Frame, Start
from daemon.transports.hume import HumeDialect
from tests.daemon.conftest import ASSETS, Served, linear16_of, pieces
from tests.daemon.transports.conftest import (
    assert_same_events,
    carried_out,
    handshake,
    offline,
    replies,
    survives_mutations,
)
from tests.factories import make_emotion_event

pytestmark = pytest.mark.filterwarnings("ignore:.*websockets.*:DeprecationWarning")  # the SDK uses its old client
in_module_loop = pytest.mark.asyncio(loop_scope="module")

TWO: Final = ASSETS / "two_sentences.flac"
FRAME: Final = bytes(3200)
UPDATE: Final = json.dumps({"type": "session.update", "measurement_timer_ms": 1000})
CLOSE: Final = json.dumps({"type": "session.close"})


def dialect() -> HumeDialect:
    return HumeDialect(handshake())


def said(one: HumeDialect, message: wire.Message) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in one.render(message)]


def emotion(start_ms: float, end_ms: float, *, final: bool) -> wire.Message:
    return wire.emotion_message(make_emotion_event()) | {"start_ms": start_ms, "end_ms": end_ms, "final": final}


def test_the_configuration_comes_before_the_audio() -> None:
    one = dialect()
    (created,) = replies(one.opening())
    assert (created["type"], created["measurement_timer_ms"]) == ("session.created", 3000)
    assert created["audio"] == {"type": "audio/pcm", "encoding": "s16le", "sample_rate": 16_000, "channels": 1}
    (updated,) = replies(one.receive(UPDATE))
    assert (updated["type"], updated["measurement_timer_ms"]) == ("session.updated", 1000)
    start, audio = carried_out(one.receive(FRAME))
    assert isinstance(start, Start)
    assert isinstance(audio, Audio)
    assert (start.request.interim_ms, start.request.call_id) == (1000, created["session_id"])
    with pytest.raises(PeerError, match="before the first audio") as caught:
        carried_out(one.receive(UPDATE))
    assert caught.value.code == "config_invalid"


@pytest.mark.parametrize(
    "update",
    [
        {"measurement_timer_ms": 10},
        {"measurement_timer_ms": "1000"},
        {"measurement_timer_ms": True},
        {"audio": {"sample_rate": 48_000}},
        {"audio": "pcm"},
    ],
)
def test_configurations_that_cannot_be(update: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as caught:
        carried_out(dialect().receive(json.dumps({"type": "session.update"} | update)))
    assert caught.value.code == "config_invalid"
    (told,) = said(dialect(), wire.error(caught.value.code, caught.value.message))
    assert (told["type"], told["code"], told["retryable"]) == ("error", "config_invalid", False)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"", "invalid_audio_frame"),
        (bytes(3), "invalid_audio_frame"),
        (bytes(320_002), "invalid_audio_frame"),
        ("{", "message_invalid"),
        ('{"type": "dance"}', "message_invalid"),
    ],
)
def test_mistakes_that_a_session_survives(frame: Frame, code: str) -> None:
    one = dialect()
    (told,) = replies(one.receive(frame))
    assert (told["type"], told["code"], told["retryable"]) == ("error", code, True)
    assert len(carried_out(one.receive(FRAME))) == 2


def test_measurements_stand_between_start_and_end() -> None:
    """Speech that begins before the utterance in front of it was measured waits for its turn."""
    one = dialect()
    (begun,) = said(one, wire.speech_started(0, "customer", 1600))
    assert begun == {"type": "utterance.start", "utterance_id": 0, "audio_start_ms": 100}
    (result,) = said(one, emotion(100, 1100, final=False))
    assert (result["type"], result["trigger"], result["measurement_id"]) == ("measurement.result", "interval", 0)
    assert said(one, wire.speech_started(0, "customer", 48_000)) == []
    result, end, begun = said(one, emotion(100, 2000, final=True))
    assert (result["trigger"], result["measurement_id"], result["utterance_id"]) == ("speech_ended", 1, 0)
    assert result["expressions"][0] == {"name": "anger", "probability": 0.7}
    assert (result["voice_attributes"], result["emotion"]["top"]) == ([], "angry")
    assert end == {"type": "utterance.end", "utterance_id": 0, "audio_start_ms": 100, "audio_end_ms": 2000}
    assert begun == {"type": "utterance.start", "utterance_id": 1, "audio_start_ms": 3000}
    _, end = said(one, emotion(3000, 22_000, final=True))
    assert end["utterance_id"] == 1
    begun, result, end = said(one, emotion(22_000, 23_000, final=True))
    assert [begun["utterance_id"], result["utterance_id"], end["utterance_id"]] == [2, 2, 2]


def test_a_session_without_audio() -> None:
    commands = carried_out(dialect().receive(CLOSE))
    (closed,) = replies(commands)
    assert (closed["reason"], closed["received"]["frames"]) == ("client_request", 0)
    assert commands[-1] == Close()


def test_mutations() -> None:
    survives_mutations(dialect, [UPDATE, FRAME, FRAME, '{"type": "session.update"}', FRAME[:-2], CLOSE])


@asynccontextmanager
async def measuring(served: Served) -> AsyncIterator[tuple[Any, list[Any], "asyncio.Task[None]"]]:
    """A connection of the SDK, the messages it delivers, and the task that reads them to their end."""
    here = f"127.0.0.1:{served.port}"
    client = AsyncExpressionMeasurementClient(
        api_key="not-checked-yet",
        environment=ExpressionMeasurementClientEnvironment(base=f"http://{here}", production=f"ws://{here}"),
    )
    async with asyncio.timeout(60), client.audio.connect() as socket:
        messages: list[Any] = []

        async def read() -> None:
            async for message in socket:
                messages.append(message)

        yield socket, messages, asyncio.create_task(read())


@in_module_loop
async def test_a_session_through_the_sdk(served: Served) -> None:
    audio = linear16_of(TWO)
    frames = pieces(audio, 3200)
    await served.calm()
    async with measuring(served) as (socket, messages, reading):
        await socket.send_audio_session_update(AudioSessionUpdate(type="session.update", measurement_timer_ms=500))
        for frame in frames:
            await socket.send_audio_frame(frame)
            await asyncio.sleep(
                len(frame) / 2 / 16_000 / 2
            )  # faster than it is scored, a stream has no interim results
        await socket.send_audio_frame(b"odd")
        await socket.send_audio_session_close(SessionClose(type="session.close"))
        await reading
    kinds = [message.type for message in messages]
    assert kinds[:2] == ["session.created", "session.updated"]
    assert kinds.count("utterance.start") == kinds.count("utterance.end") == 2
    assert kinds[-1] == "session.closed"
    (survived,) = [message for message in messages if message.type == "error"]
    assert (survived.code, survived.retryable) == ("invalid_audio_frame", True)
    results = [message for message in messages if message.type == "measurement.result"]
    assert [result.measurement_id for result in results] == list(range(len(results)))
    assert {result.trigger for result in results} == {"interval", "speech_ended"}
    closed = messages[-1]
    assert (closed.reason, closed.received.frames, closed.received.audio_duration_ms) == (
        "client_request",
        len(frames),
        round(len(audio) / 32),
    )
    assert (closed.produced.utterances, closed.produced.measurements) == (2, len(results))
    wanted = await offline(audio, "linear16", 16_000, ("customer",))
    assert_same_events(await served.events(closed.session_id), wanted)
    names = {"angry": "anger", "sad": "sadness", "happy": "joy"}
    for result, event in zip((r for r in results if r.trigger == "speech_ended"), wanted, strict=True):
        assert result.expressions[0].name == names.get(event["top"], event["top"])
        assert result.expressions[0].probability == pytest.approx(float(event["confidence"]), abs=2e-4)
        assert result.emotion["probabilities"]["angry"] == pytest.approx(float(event["p_angry"]), abs=1e-4)
