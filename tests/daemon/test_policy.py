"""What of a call is analysed and what of its words is shown: any audio, any text, any place where a word could come out."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import wire
from daemon.config import load_config
from daemon.detection import Detection
from daemon.errors import ConfigError
from daemon.messages import Utterance
from daemon.metrics import Metrics
from daemon.offline import cut
from daemon.pipeline import Services
from daemon.policy import EMAIL, EVERYTHING, NUMBER, Policy, redacted, shown
from daemon.request import StreamRequest
from daemon.session import Previews, Session
from daemon.sinks.memory import MemorySink
from daemon.stream import Ending
from daemon.streams import Streams
from model.audio import SAMPLE_RATE_HZ, VAD_WINDOW, Samples
from model.segmenter import Endpointing
from tests.daemon.test_streams import RULES
from tests.factories import make_scores
from tests.fakes import ScriptedDetector, ScriptedScorer, judged, silence, voice

SPEECH = [0.9] * 40


def speech(pitch_hz: float = 120.0) -> Samples:
    return np.concatenate([voice(2.0, pitch_hz), silence(1.0)])


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("My card is 4111 1111 1111 1111, thanks.", "My card is [number], thanks."),
        ("Call +49 (0)89 / 123-456 at 5pm.", "Call [number] at [number]."),
        ("It costs $5,300.50 more.", "It costs [number] more."),
        ("I paid 30 € yesterday", "I paid [number] yesterday"),
        ("Born March 3rd, 1980.", "Born March [number]."),
        ("The code is AB12CD", "The code is [number]"),
        ("four one oh, double five six", "[number]"),
        ("I waited twenty-three minutes", "I waited [number] minutes"),
        ("two hundred and five pounds", "[number] pounds"),
        ("555 one two", "[number]"),
        ("john.smith@example.co.uk, please", "[email], please"),
        ("It is john dot smith at example dot com.", "It is [email]."),
        ("mail me at Bob.Jones@Gmail.Com!", "mail me at [email]!"),
        ("It is joe at mail.example.com", "It is [email]"),
        ("我的电话是13800138000谢谢", "我的电话是[number]谢谢"),
        ("one of us waited a second", "one of us waited a second"),
        ("Look at this. The end", "Look at this. The end"),
        ("My name is Ada Lovelace.", "My name is Ada Lovelace."),
    ],
)
def test_numbers_and_addresses_go_and_the_rest_stays(said: str, left: str) -> None:
    assert redacted(said, "en") == left


@pytest.mark.parametrize(
    ("language", "said", "left"),
    [
        ("de", "null eins sieben, bitte", "[number], bitte"),
        ("fr", "zéro six douze", "[number]"),
        ("es", "seis tres uno y gracias", "[number] y gracias"),
        ("sw", "double five", "[number]"),
        ("sw", "moja mbili 7", "moja mbili [number]"),
    ],
)
def test_words_for_numbers_are_those_of_the_language(language: str, said: str, left: str) -> None:
    assert redacted(said, language) == left


WORDS = st.sampled_from(
    ["0", "17", "a1", "four", "one", "at", "dot", "com", "x@y.zz", "@", "oh", ".", "٣", NUMBER, "Ada"]
)


@given(st.one_of(st.text(max_size=80), st.lists(WORDS, max_size=12).map(" ".join)))
def test_no_figure_and_no_address_is_left_of_any_text(text: str) -> None:
    left = redacted(text, "en")
    assert not re.search(r"\d", left)
    assert not re.search(r"\w@\w", left)


def test_what_leaves_of_a_transcript() -> None:
    transcript = make_scores(text="it is 12").transcript
    assert transcript is not None
    assert shown(transcript, "full") is transcript
    assert shown(transcript, "redacted") == replace(transcript, text=f"it is {NUMBER}")
    assert shown(transcript, "off") == replace(transcript, text="")
    assert shown(None, "redacted") is None
    assert EMAIL not in shown(transcript, "redacted").text  # type: ignore[union-attr]  # it is none only for none


def test_a_role_is_analysed_as_it_is_written() -> None:
    policy = Policy(analyze=("customer",))
    assert policy.analyzed(("agent", "customer")) == ("customer",)
    assert policy.analyzed(("Customer", "agent")) == ()
    assert EVERYTHING.analyzed(("agent", "anybody")) == ("agent", "anybody")


@given(st.lists(st.integers(0, 4 * VAD_WINDOW), min_size=1, max_size=12), st.booleans())
def test_an_unheard_channel_is_counted_and_cuts_nothing(sizes: list[int], before: bool) -> None:
    """Whatever its chunks; what comes of the other channel does not depend on it."""

    def fed(unheard_beside: bool) -> tuple[list[tuple[int, int, bytes]], int, int]:
        session = Session(
            [ScriptedDetector(SPEECH), None] if unheard_beside else [ScriptedDetector(SPEECH)], Endpointing(), PREVIEWS
        )
        outputs, at = [], 0
        for size in [*sizes, 80 * VAD_WINDOW]:
            samples = np.arange(at, at + size, dtype=np.float32)
            at += size
            outputs += judged(session, [samples, -samples] if unheard_beside else [samples])
            assert session.received == at
            outputs += session.finish() if before else []
        needed_from = session.needed_from
        outputs += session.close()
        cuts = [(o.start, o.end, o.audio.tobytes()) for o in outputs if isinstance(o, Utterance)]
        return cuts, session.received, needed_from

    assert fed(unheard_beside=True) == fed(unheard_beside=False)


PREVIEWS = Previews(interim=SAMPLE_RATE_HZ // 2, ahead=5 * VAD_WINDOW)


async def streamed(policy: Policy) -> tuple[ScriptedScorer, MemorySink, list[wire.Message]]:
    """A call in which both speak, through the streams of a process."""
    scorer, sink, told = ScriptedScorer(), MemorySink(), list[wire.Message]()
    with ThreadPoolExecutor(1) as compute:
        streams = Streams(
            replace(RULES, policy=policy, interim_ms=300), Services(scorer, sink, Detection(compute)), Metrics()
        )
        stream = streams.open(StreamRequest(channels=2), told.append)
        audio = [speech(120.0), speech(210.0)]
        for start in range(0, len(audio[0]), 1600):
            await stream.feed([channel[start : start + 1600] for channel in audio])
        await stream.finish(Ending("client_closed"))
    return scorer, sink, told


async def test_nothing_of_a_role_that_is_not_analysed_reaches_the_engine() -> None:
    scorer, sink, told = await streamed(Policy(analyze=("customer",)))
    everything, _, all_told = await streamed(EVERYTHING)
    assert {u.channel for u in [*everything.accepted, *everything.seen]} == {0, 1}, "else this would prove nothing"
    assert {u.channel for u in [*scorer.accepted, *scorer.seen, *scorer.ahead]} == {0}
    assert {message["channel"] for message in told if "channel" in message} == {0}
    assert {event.type for event in sink.events} == {"call.started", "emotion", "emotion.interim", "call.ended"}
    assert told[0]["type"] == "session.created"
    assert told[1] == wire.warning("not_analyzed", "not analysed here, there will be no results of: agent") | {"seq": 1}
    assert [message["type"] for message in all_told].count("warning") == 0
    assert told[-1]["totals"]["received_ms"] == all_told[-1]["totals"]["received_ms"] == 3000.0
    assert told[-1]["totals"]["utterances"] == len(scorer.accepted)


async def test_a_stream_of_which_nothing_is_analysed_ends_as_it_should() -> None:
    scorer, sink, told = await streamed(Policy(analyze=("supervisor",)))
    assert scorer.accepted == scorer.seen == scorer.ahead == []
    assert [event.type for event in sink.events] == ["call.started", "call.ended"]
    assert [message["type"] for message in told] == ["session.created", "warning", "session.closed"]
    assert told[-1]["totals"]["received_ms"] == 3000.0


def test_a_recording_is_cut_under_the_same_policy() -> None:
    audio = np.stack([speech(120.0), speech(210.0)])
    heard = [
        {u.channel for u in cut(audio, load_config(None, {"policy": {"analyze": each}}))} for each in ([], ["agent"])
    ]
    assert heard == [{0, 1}, {1}]


def test_a_rule_about_somebody_who_is_not_analysed_is_a_mistake() -> None:
    rule = {"name": "rude", "role": "agent", "emotions": ["angry"], "above": 0.5, "utterances": 1}
    with pytest.raises(ConfigError, match=r"policy: analyze leaves out agent, whom alerts\.rules wait for"):
        load_config(None, {"alerts": {"rules": [rule]}, "policy": {"analyze": ["customer"]}})
    config = load_config(None, {"alerts": {"rules": [rule]}, "policy": {"analyze": ["customer", "agent"]}})
    assert config.call_policy() == Policy(("customer", "agent"))


@pytest.mark.parametrize("analyze", [[""], ["a,b"], [" customer"]])
def test_a_role_that_no_stream_can_have_is_a_mistake(analyze: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"policy\.analyze\.0"):
        load_config(None, {"policy": {"analyze": analyze}})


@pytest.mark.parametrize(("retain_s", "kept_s"), [(None, 86_400), (3600, 3600), (1_000_000, 86_400)])
def test_calls_are_kept_no_longer_than_retention_says(retain_s: int | None, kept_s: int) -> None:
    assert load_config(None, {"policy": {"retain_s": retain_s}}).stream_settings().call_ttl_s == kept_s


def test_the_engine_is_told_what_of_the_words_may_leave() -> None:
    assert load_config(None, {"policy": {"transcripts": "off"}}).engine_settings().transcripts == "off"
