"""What a run comes to, and how it is said; what is put on the doors."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from bench import streams
from bench.entries import Bounds, Entry
from bench.senders import Heard, mulaw, through_telephone, twilio_frames
from bench.speech import speaker, utterances
from bench.streams import Load, line_of, row_of
from bench.under_test import interval
from bench.whip import Job, opus_packets, split
from model.audio import SAMPLE_RATE_HZ
from model.recording import read_recording
from tests.bench.test_entries import WANTED, ended, final
from tests.daemon.conftest import ASSETS

LOAD = Load("daemon", "native", 2, 10.0, 1000)
USED = {"cores": 0.5, "cpu_percent_per_stream": 25.0, "idle_mb": 300.0, "peak_mb": 310.0, "mb_per_stream": 5.0}


def heard(call: str, *waits: float, **more: Any) -> Heard:
    ids = [f"{call}:{index}" for index in range(3)]
    return Heard(call, times=[(wait, wait + 50.0) for wait in waits], ids=ids, **more)


def entries(*calls: str) -> list[Entry]:
    return [entry for call in calls for entry in (*(final(index, call) for index in range(3)), ended(call))]


def test_a_run_that_holds() -> None:
    calls = [heard("a", 110.0, 120.0, 130.0, interims=4), heard("b", 140.0, 150.0, 160.0, dropped=1)]
    row = row_of(LOAD, calls, entries("a", "b"), [WANTED, WANTED])
    assert (row["utterances"], row["lost"], row["repeated"], row["failed"], row["held"]) == (6, 0, 0, [], True)
    assert row["wait_ms"]["p50"]["value"] == pytest.approx(135.0)
    assert row["work_ms"]["p50"]["value"] == pytest.approx(185.0)
    assert row["slowest_stream"] == pytest.approx(150.0 / 135.0)
    line = line_of(row | USED)
    assert "interim results 4 of 5" in line
    assert line.endswith(": held")


@pytest.mark.parametrize(
    ("calls", "found"),
    [
        ([heard("a", 10.0), heard("b", 600.0)], entries("a", "b")),
        ([heard("a", 10.0), heard("b", 10.0)], entries("a", "b")[:-2]),
        ([heard("a", 10.0), heard("b", 10.0)], [*entries("a", "b"), final(0, "a")]),
        ([heard("a", 10.0), heard("b", failed="closed with 1013 overloaded")], entries("a")),
        ([Heard("a"), Heard("b")], []),
    ],
)
def test_a_run_that_does_not_hold(calls: list[Heard], found: list[Entry]) -> None:
    """Too late, lost, repeated, refused, or nothing at all."""
    row = row_of(LOAD, calls, found, [WANTED, WANTED])
    assert not row["held"]
    assert line_of(row | USED).endswith(": NOT held")


def test_no_stream_is_slow_where_all_wait_for_nothing() -> None:
    row = row_of(LOAD, [heard("a", 0.0, 0.0, 0.0), heard("b", 10.0)], entries("a", "b"), [WANTED, WANTED])
    assert row["slowest_stream"] == pytest.approx(0.2)


def test_a_call_that_was_refused_is_not_lost_and_one_that_broke_off_owes_what_was_taken() -> None:
    refused, broke = Heard("a", "overloaded", ids=[]), Heard("b", "went away", ids=["b:0"])
    row = row_of(LOAD, [refused, broke], [final(0, "b"), ended("b", utterances=2)], [WANTED, WANTED])
    assert (row["failed"], row["utterances"], row["lost"], row["unended"]) == (["overloaded", "went away"], 2, 1, 0)
    assert not row["held"]


def test_waits_of_a_door_that_tells_nothing_are_those_in_redis() -> None:
    found = [entry | {"lat_ms": str(100 * index)} for index, entry in enumerate(entries("a"))]
    row = row_of(Load("daemon", "twilio", 1, 10.0, 0), [Heard("a")], found, [WANTED])
    assert row["wait_ms"]["p50"]["value"] == pytest.approx(100.0)
    assert row["work_ms"] == {}
    assert row["held"]


def test_intervals_hold_their_value_and_a_percentile_of_nothing_is_refused() -> None:
    span = interval([float(value) for value in range(100)], 95)
    assert span["low"] < span["value"] < span["high"]
    with pytest.raises(ValueError, match="no values"):
        interval([], 50)


@pytest.mark.parametrize(
    "arguments", [["--server", "nobody"], ["--door", "window"], ["--server", "naive", "--door", "twilio"]]
)
def test_what_there_is_not_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended_with:
        streams.arguments_of(arguments)
    assert ended_with.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_options_name_servers_and_doors() -> None:
    options = streams.arguments_of(["--servers", "daemon", "fleet", "--door", "native", "whip", "--streams", "1", "2"])
    assert (options.servers, options.doors, options.streams) == (["daemon", "fleet"], ["native", "whip"], [1, 2])
    assert streams.arguments_of([]).doors == ["native"]


def test_a_speaker_talks_two_fifths_of_the_time_and_always_the_same_way() -> None:
    voices = utterances()
    talk = [np.mean(np.abs(speaker(voices, 60.0, seed)) > 0) for seed in range(8)]
    assert 0.25 < float(np.mean(talk)) < 0.5, "a part of speech itself is zero, and nobody is cut off at the end"
    np.testing.assert_array_equal(speaker(voices, 5.0, 3), speaker(voices, 5.0, 3))
    assert speaker(voices, 5.0, 3).shape == (1, 5 * SAMPLE_RATE_HZ)


def test_twilio_s_messages_are_what_is_scored_offline() -> None:
    """20 ms of mu-law each, in order; the server's decoder makes of them what the offline score is made of."""
    audio = read_recording(ASSETS / "hello_3s.flac")
    messages = [json.loads(frame) for frame in twilio_frames(audio)]
    payloads = [base64.b64decode(message["media"]["payload"]) for message in messages]
    assert {len(payload) for payload in payloads} == {160}
    assert [message["media"]["timestamp"] for message in messages] == [str(20 * n) for n in range(len(messages))]
    assert b"".join(payloads).startswith(mulaw(audio))
    decoded = through_telephone(audio)
    assert decoded.shape[1] == 2 * 160 * len(payloads)
    length = min(decoded.shape[1], audio.shape[1])
    assert np.corrcoef(decoded[0, :length], audio[0, :length])[0, 1] > 0.95


def test_opus_is_packets_of_20_ms() -> None:
    audio = read_recording(ASSETS / "hello_3s.flac")
    packets = opus_packets(audio)
    assert len(packets) == pytest.approx(audio.shape[1] / SAMPLE_RATE_HZ / 0.02, abs=2)
    assert all(packets)


def test_webrtc_callers_are_dealt_to_processes() -> None:
    job = Job(1, {str(seed): seed for seed in range(5)}, 1.0, loss=0.1)
    parts = split(job, 2)
    assert [len(part.calls) for part in parts] == [2, 2, 1]
    assert {call: seed for part in parts for call, seed in part.calls.items()} == job.calls
    assert {part.loss for part in parts} == {0.1}


def test_what_should_be_there_is_found_in_what_the_server_decodes() -> None:
    audio = read_recording(ASSETS / "two_sentences.flac")
    native, telephone = streams.wanted_at("native", audio), streams.wanted_at("twilio", audio)
    assert native is not None
    assert telephone is not None
    assert streams.wanted_at("whip", audio) is None
    assert len(native) == len(telephone) == 2
    assert _close(native, telephone)


def _close(some: list[Bounds], others: list[Bounds]) -> bool:
    return all(
        abs(a - b) < 200 for one, other in zip(some, others, strict=True) for a, b in zip(one, other, strict=True)
    )
