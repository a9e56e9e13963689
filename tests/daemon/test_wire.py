"""What the outside sees, against golden files: a difference there breaks every client, so it is a new wire version."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import wire
from daemon.messages import EmotionEvent, Event, Latency, Totals
from model.audio import SAMPLE_RATE_HZ
from model.labels import CLASSES
from model.posteriors import Posteriors
from tests.factories import (
    make_alert_event,
    make_call_event,
    make_emotion_event,
    make_info,
    make_summary_event,
)

GOLDEN = Path(__file__).parents[1] / "golden"

TOTALS = Totals(received_samples=10 * SAMPLE_RATE_HZ + 8, utterances=4, finals=3, interims=7, dropped_interims=2)
FINAL = make_emotion_event(3, channel=1, top="happy", text='grüße, "ja"')
INTERIM = make_emotion_event(3, interim=2, channel=1)
INFO = make_info(metadata={"queue": "billing"})


def with_posteriors(event: EmotionEvent, posteriors: Posteriors) -> EmotionEvent:
    return replace(event, scores=replace(event.scores, posteriors=posteriors))


UNTRAINED = with_posteriors(
    make_emotion_event(),
    Posteriors((0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5), (None, None, None), uncertainty=0.0, abstained=True),
)
"""What a bundle says that has four classes and no attributes, where it would rather not."""
SHARED = with_posteriors(
    FINAL,
    replace(FINAL.scores.posteriors, modality_share=(("whisper", 0.5), ("text", 1 / 3), ("interaction", 1 / 6))),
)
"""What a bundle says whose members tell the shares of their modalities."""
REDUCED = with_posteriors(
    INTERIM, replace(INTERIM.scores.posteriors, members_used=("voice", "course"), modality_share=(("prosody", 1.0),))
)
"""What a bundle says when there is not time for all of its members."""

MESSAGES: dict[str, wire.Message] = {
    "session_created": wire.session_created(INFO, ("angry", "neutral"), ("arousal",), "token-1", 30.0),
    "session_resumed": wire.session_resumed(INFO, 188_800, 2),
    "audio_settled": wire.audio_settled(183_680),
    "speech_started": wire.speech_started(1, "agent", 12_808),
    "emotion_final": wire.emotion_message(FINAL),
    "emotion_interim": wire.emotion_message(INTERIM),
    "emotion_untrained": wire.emotion_message(UNTRAINED),
    "emotion_shared": wire.emotion_message(SHARED),
    "emotion_reduced": wire.emotion_message(REDUCED),
    "alert": wire.alert_message(make_alert_event()),
    "gap": wire.gap((0, 1), 12_800, 20_800, 1_600, "lost"),
    "warning": wire.warning("slow", "the client sends less audio than time goes by"),
    "error": wire.error("bad_frame", "a message of 3 bytes is no whole number of 2-byte frames (linear16, 1 channel)"),
    "session_closed": wire.session_closed(TOTALS, "client_closed"),
}
EVENTS: dict[str, Event] = {
    "redis_call_started": make_call_event("call.started", info=INFO),
    "redis_call_ended": replace(make_call_event("call.ended", info=INFO), totals=TOTALS),
    "redis_call_failed": make_call_event("call.failed"),
    "redis_emotion": FINAL,
    "redis_emotion_interim": INTERIM,
    "redis_emotion_untrained": UNTRAINED,
    "redis_emotion_shared": SHARED,
    "redis_emotion_reduced": REDUCED,
    "redis_alert": make_alert_event(),
    "redis_call_summary": make_summary_event(),
    "redis_call_summary_untrained": make_summary_event(attributes=False),
}
BUILT: dict[str, Any] = {
    **MESSAGES,
    **{name: wire.redis_fields(event) for name, event in EVENTS.items()},
    "redis_call_deleted": wire.deletion_fields("call-1", 1_700_000_000_000),
}


@pytest.mark.parametrize("name", BUILT)
def test_matches_its_golden_file(name: str) -> None:
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(BUILT[name])) == expected
    assert list(BUILT[name]) == list(expected), "the order of the fields, as people read them"


def test_every_golden_file_is_compared() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(BUILT)


PROMISED = (
    "v type event_id call session channel role utterance start_ms end_ms top confidence "
    "p_angry p_sad p_happy p_surprise p_fear p_disgust p_contempt p_neutral arousal valence dominance uncertainty abstained "
    "text lang model lat_ms ts"
).split()
"""As consumers of the stream were told; a field may be added, none may go."""


@pytest.mark.parametrize("event", [FINAL, INTERIM, UNTRAINED])
def test_a_result_has_every_promised_field(event: EmotionEvent) -> None:
    assert set(wire.redis_fields(event)) == {*PROMISED, "text_trusted", "adaptation"}


def test_shares_are_there_where_the_bundle_tells_them_and_nowhere_else() -> None:
    """Neither null nor zeros stand for them: a share of 0 says that a modality was not heard."""
    added = wire.redis_fields(SHARED).keys() - wire.redis_fields(FINAL).keys()
    assert added == {"share_whisper", "share_text", "share_interaction"}
    assert wire.emotion_message(SHARED).keys() - wire.emotion_message(FINAL).keys() == {"modality_share"}
    added = wire.redis_fields(REDUCED).keys() - wire.redis_fields(INTERIM).keys()
    assert added == {"share_prosody", "members_used"}


@pytest.mark.parametrize("event", EVENTS.values())
def test_every_entry_tells_its_version_type_and_identity(event: Event) -> None:
    fields = wire.redis_fields(event)
    assert (fields["v"], fields["type"], fields["event_id"]) == ("1", event.type, event.event_id)
    assert (fields["call"], fields["session"], fields["model"]) == ("call-1", "session-1", "bundle-1")
    assert int(fields["ts"]) == event.created_ms


def test_metadata_cannot_hide_a_field() -> None:
    hostile = make_info(metadata=dict.fromkeys(wire.redis_fields(make_call_event()), "forged"))
    plain, forged = wire.redis_fields(make_call_event()), wire.redis_fields(make_call_event(info=hostile))
    assert {name: forged[name] for name in plain} == plain


Weights = st.lists(st.floats(1e-6, 1.0), min_size=len(CLASSES), max_size=len(CLASSES))
Attribute = st.none() | st.floats(1.0, 7.0)
Milliseconds = st.floats(0.0, 1e7)


@given(weights=Weights, attributes=st.tuples(Attribute, Attribute, Attribute), disagreement=st.floats(0, 1))
def test_any_posteriors_are_the_same_number_on_both_sides(
    weights: list[float], attributes: tuple[float | None, ...], disagreement: float
) -> None:
    probabilities = tuple(weight / sum(weights) for weight in weights)
    event = with_posteriors(FINAL, Posteriors(probabilities, attributes, disagreement, abstained=False))
    fields, message = wire.redis_fields(event), wire.emotion_message(event)
    assert sum(message["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    for name, exact in zip(CLASSES, probabilities, strict=True):
        assert float(fields[f"p_{name}"]) == pytest.approx(exact, abs=1e-6)
        assert message["probabilities"][name] == pytest.approx(exact, abs=1e-6)
    for name, value in zip(("arousal", "valence", "dominance"), attributes, strict=True):
        assert (fields[name] == "") == (message[name] is None) == (value is None)
        if value is not None:
            assert float(fields[name]) == pytest.approx(value, abs=1e-6)
            assert message[name] == pytest.approx(value, abs=1e-6)
    assert float(fields["uncertainty"]) == pytest.approx(disagreement, abs=1e-6)
    assert message["top"] == fields["top"] == CLASSES[probabilities.index(max(probabilities))]


@given(stages=st.tuples(*[Milliseconds] * 6))
def test_any_entry_is_flat_text_without_exponents(stages: tuple[float, ...]) -> None:
    """Grafana and awk read `1e-07` as text."""
    event = replace(FINAL, scores=replace(FINAL.scores, latency=Latency(*stages)))
    fields = wire.redis_fields(event)
    assert all(isinstance(value, str) for value in fields.values())
    assert set(fields["lat_ms"]) <= set("0123456789.")
    assert float(fields["lat_ms"]) == pytest.approx(stages[-1], abs=1e-6)
