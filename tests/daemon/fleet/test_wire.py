"""The wire form: what goes in comes out, and any bytes give a value or a `WireError`."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.fleet.card import Card, read_card, write_card
from daemon.fleet.keys import FleetKeys, channel_name
from daemon.fleet.wire import (
    Failure,
    Result,
    WireError,
    Work,
    decode_history,
    decode_result,
    decode_work,
    encode_history,
    encode_result,
    encode_work,
)
from daemon.messages import CallInfo, Latency, Scores, Utterance
from model.adaptation import NO_HISTORY, History
from model.audio import WHISPER_WINDOW, Samples
from model.labels import CLASSES
from model.posteriors import Posteriors
from model.transcript import Transcript
from tests.daemon.fleet.running import said
from tests.factories import make_info, make_scores

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
COUNT = st.integers(0, 2**40)
DECODERS: dict[str, Any] = {"work": decode_work, "result": decode_result, "history": decode_history}


@st.composite
def histories(draw: st.DrawFn) -> History:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)) | st.none())
    if shape is None:
        return NO_HISTORY
    values = draw(st.lists(FINITE, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return History(np.array(values).reshape(shape), draw(st.floats(0, 1e6)))


@st.composite
def audio(draw: st.DrawFn) -> Samples:
    values = draw(
        st.lists(st.floats(-2, 2, width=32) | st.sampled_from([0.0, -1.0, 32767 / 32768]), min_size=1, max_size=50)
    )
    samples = np.array(values, np.float32)
    return np.round(samples * 32767) / np.float32(32768) if draw(st.booleans()) else samples


@st.composite
def works(draw: st.DrawFn) -> Work:
    samples = draw(audio())
    roles = draw(st.lists(TEXT, min_size=1, max_size=3))
    language = draw(st.sampled_from([None, "en", "de"]))
    info = CallInfo(draw(TEXT), draw(TEXT), tuple(roles), draw(TEXT), language)
    start = draw(COUNT)
    end = start + len(samples)
    channel = draw(st.integers(0, len(roles) - 1))
    utterance = Utterance(channel, draw(COUNT), start, end, samples, draw(COUNT), draw(COUNT))
    return Work(info, utterance, draw(TEXT), draw(histories()))


@st.composite
def results(draw: st.DrawFn) -> Result:
    if draw(st.booleans()):
        return Failure(draw(TEXT))
    share = st.floats(0, 1)
    probabilities = draw(st.lists(share, min_size=len(CLASSES), max_size=len(CLASSES)))
    attributes = draw(st.lists(FINITE | st.none(), min_size=3, max_size=3))
    shares = tuple(draw(st.dictionaries(TEXT, share, max_size=3)).items())
    used = tuple(draw(st.lists(TEXT, max_size=3)))
    posteriors = Posteriors(tuple(probabilities), tuple(attributes), draw(FINITE), draw(st.booleans()), shares, used)
    words = st.builds(Transcript, TEXT, TEXT, FINITE, FINITE, st.booleans()) | st.none()
    latency = st.builds(Latency, FINITE, FINITE, FINITE, FINITE, FINITE, FINITE)
    return Scores(posteriors, draw(words), draw(latency), draw(histories()), draw(share))


def same_history(a: History, b: History) -> bool:
    if a.deviation is None or b.deviation is None:
        return a.deviation is b.deviation
    return np.array_equal(a.deviation, b.deviation) and a.weight == b.weight


@settings(max_examples=50)
@given(works())
def test_an_utterance_survives_exactly(work: Work) -> None:
    got = decode_work(encode_work(work))
    assert got.info == work.info
    assert got.gateway == work.gateway
    assert got.event_id == work.event_id
    assert same_history(got.history, work.history)
    assert got.utterance.audio.dtype == np.float32
    assert np.array_equal(got.utterance.audio, work.utterance.audio)
    nothing = np.zeros(0, np.float32)
    assert replace(got.utterance, audio=nothing) == replace(work.utterance, audio=nothing)


@settings(max_examples=50)
@given(results())
def test_a_result_survives_exactly(result: Result) -> None:
    got = decode_result(encode_result(result))
    if isinstance(result, Failure):
        assert got == result
        return
    assert isinstance(got, Scores)
    assert same_history(got.history, result.history)
    assert replace(got, history=NO_HISTORY) == replace(result, history=NO_HISTORY)


@settings(max_examples=50)
@given(histories())
def test_a_history_survives_exactly(history: History) -> None:
    assert same_history(decode_history(encode_history(history)), history)


def test_audio_of_sixteen_bits_takes_sixteen_bits() -> None:
    """And no other is rounded to them: 1.0 has no 16-bit value."""
    whole = said(0)
    pcm = np.round(whole.audio * 32768) / np.float32(32768)
    both = [Work(make_info(), replace(whole, audio=each), "g") for each in (whole.audio, pcm.astype(np.float32))]
    lengths = [len(encode_work(work)) for work in both]
    assert lengths[0] - lengths[1] == 2 * len(whole.audio)
    one = replace(whole, audio=np.ones(len(whole.audio), np.float32))
    assert decode_work(encode_work(Work(make_info(), one, "g"))).utterance.audio.max() == 1.0


MESSAGES = {
    "work": encode_work(Work(make_info(), said(0), "gateway", History(np.ones((2, 3)), 1.5))),
    "result": encode_result(replace(make_scores(), history=History(np.ones((2, 3)), 1.5))),
    "history": encode_history(History(np.ones((2, 3)), 1.5)),
}


@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=200))
def test_any_bytes_are_an_error(kind: str, data: bytes) -> None:
    if kind == "history" and not data:
        return  # nothing is no history
    with pytest.raises(WireError):
        DECODERS[kind](data)


@given(st.sampled_from(sorted(DECODERS)), st.data())
def test_a_message_that_was_changed_is_a_message_or_an_error(kind: str, data: st.DataObject) -> None:
    message = bytearray(MESSAGES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(600, len(message)) - 1))
        message[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with suppress(WireError):
        DECODERS[kind](bytes(message))


@pytest.mark.parametrize("kind", DECODERS)
def test_a_message_that_ends_early_or_late_is_an_error(kind: str) -> None:
    message = MESSAGES[kind]
    for cut in [*range(1, 12), len(message) // 2, len(message) - 1]:
        with pytest.raises(WireError):
            DECODERS[kind](message[:cut])
    with pytest.raises(WireError, match="history of"):
        DECODERS[kind](message + b"\0")


def test_another_version_is_refused_with_both() -> None:
    message = bytearray(MESSAGES["work"])
    message[4] = 9
    with pytest.raises(WireError, match="version 1, got b'MEDW' version 9"):
        decode_work(bytes(message))
    with pytest.raises(WireError, match="b'MEDW' version 1, got b'MEDR'"):
        decode_work(MESSAGES["result"])


def test_what_is_too_long_is_refused() -> None:
    length = WHISPER_WINDOW + 1
    utterance = Utterance(0, 0, 0, length, np.zeros(length, np.float32), 0, length)
    with pytest.raises(WireError, match=f"1 to {WHISPER_WINDOW} samples, got {length}"):
        decode_work(encode_work(Work(make_info(), utterance, "g")))


@pytest.mark.parametrize(
    "audio", [np.array([np.nan], np.float32), np.array([np.inf], np.float32), np.zeros(2, np.float32)]
)
def test_audio_that_is_none_is_not_sent(audio: Samples) -> None:
    with pytest.raises(ValueError, match="holds 1 finite samples"):
        encode_work(Work(make_info(), Utterance(0, 0, 0, 1, audio, 0, 1), "g"))


def test_half_a_character_does_not_stop_a_channel() -> None:
    info = replace(make_info(), call="call \ud800")
    assert decode_work(encode_work(Work(info, said(0), "g"))).info.call == "call ?"


def test_a_card_survives_and_a_later_one_is_read() -> None:
    assert read_card(write_card(Card(("en", "de")))) == Card(("en", "de"))
    assert read_card(b'{"languages": ["en"], "colour": 1}') == Card(("en",))
    for wrong in (b"", b"\xff", b"[]", b'{"languages": [1]}', b'{"languages": "en"}'):
        with pytest.raises(WireError):
            read_card(wrong)


def test_all_keys_of_a_bundle_lie_in_one_slot() -> None:
    from redis.crc import key_slot

    for bundle in ("default-41e1fc8d65c9", "a{b}c"):
        keys = FleetKeys(bundle)
        names = [keys.work, keys.interims, keys.dead, keys.workers, keys.card, keys.notices("g{1}"), keys.result("{e}")]
        names += [keys.channel(channel_name("s{1}", 0)), keys.interim("{e}")]
        assert len({key_slot(name.encode()) for name in names}) == 1
        assert len(set(names)) == len(names)
    assert "v1" in FleetKeys("b").work
