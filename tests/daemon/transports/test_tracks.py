"""Tracks come out side by side, on the audio clock, however their messages arrive."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.errors import PeerError
from daemon.transports.tracks import Patience, Tracks

SILENCE = b"\xff"
FRAME = 160
PATIENCE = Patience(reorder=0, lag=25 * FRAME, hole=1500 * FRAME)
PATIENT = Patience(reorder=10 * FRAME, lag=25 * FRAME, hole=1500 * FRAME)


def speech(track: int, frames: int) -> list[bytes]:
    """Messages whose every sample says which it is; never silence."""
    return [bytes([1 + (17 * index + track) % 200]) * FRAME for index in range(frames)]


def columns(data: bytes, count: int = 2) -> list[bytes]:
    samples = np.frombuffer(data, np.uint8).reshape(-1, count)
    return [samples[:, track].tobytes() for track in range(count)]


def test_tracks_in_step_lose_nothing() -> None:
    tracks = Tracks(2, SILENCE, PATIENCE)
    one, two = speech(0, 50), speech(1, 50)
    out = b""
    for index in range(50):
        assert tracks.push(1, index * FRAME, two[index]) == b""
        out += tracks.push(0, index * FRAME, one[index])
    assert columns(out) == [b"".join(one), b"".join(two)]
    assert tracks.flush() == b""
    assert (tracks.counts.missing, tracks.counts.late) == (0, 0)


def test_a_lost_message_is_silence_at_once() -> None:
    tracks = Tracks(1, SILENCE, PATIENCE)
    one = speech(0, 4)
    out = b"".join(tracks.push(0, index * FRAME, one[index]) for index in (0, 1, 3))
    assert out == one[0] + one[1] + SILENCE * FRAME + one[3]
    assert tracks.counts.missing == FRAME


def test_a_silent_track_holds_nobody_up_for_longer_than_the_lag() -> None:
    tracks = Tracks(2, SILENCE, PATIENCE)
    one = speech(0, 60)
    out = b"".join(tracks.push(0, index * FRAME, one[index]) for index in range(60))
    first, second = columns(out)
    assert first == b"".join(one[:35])
    assert second == SILENCE * len(first)
    assert columns(tracks.flush())[0] == b"".join(one[35:])


def test_what_comes_too_late_is_left_out_and_counted() -> None:
    tracks = Tracks(2, SILENCE, PATIENCE)
    one, two = speech(0, 60), speech(1, 60)
    for index in range(60):
        tracks.push(0, index * FRAME, one[index])
    out = b"".join(tracks.push(1, index * FRAME, two[index]) for index in range(60)) + tracks.flush()
    assert tracks.counts.late == tracks.counts.missing == 35 * FRAME
    assert columns(out)[1] == b"".join(two[35:])


def test_the_end_of_the_shorter_track_is_silence() -> None:
    tracks = Tracks(2, SILENCE, PATIENCE)
    out = tracks.push(0, 0, b"\x01" * 3 * FRAME) + tracks.push(1, 0, b"\x02" * FRAME) + tracks.flush()
    assert columns(out) == [b"\x01" * 3 * FRAME, b"\x02" * FRAME + SILENCE * 2 * FRAME]


def test_stamps_that_waver_tear_nothing() -> None:
    """Carriers stamp when they send, give or take some ms; the audio itself has no hole."""
    chance = random.Random(5)
    tracks = Tracks(1, SILENCE, PATIENCE)
    one = speech(0, 200)
    stamps = [max(0, index * FRAME + chance.randrange(-70, 71)) for index in range(200)]
    out = b"".join(tracks.push(0, stamp, message) for stamp, message in zip(stamps, one, strict=True))
    assert out == b"".join(one)
    assert (tracks.counts.missing, tracks.counts.late) == (0, 0)


def test_a_clock_that_jumps_is_refused() -> None:
    tracks = Tracks(2, SILENCE, PATIENCE)
    tracks.push(0, 0, b"\x01" * FRAME)
    tracks.push(0, PATIENCE.hole, b"\x01" * FRAME)
    with pytest.raises(PeerError, match="samples ahead of the stream; at most 240000"):
        tracks.push(1, 2 * PATIENCE.hole + 3 * FRAME, b"\x01" * FRAME)


def test_the_same_message_again_and_again_takes_no_memory() -> None:
    tracks = Tracks(1, SILENCE, PATIENT)
    tracks.push(0, 0, b"\x01" * FRAME)
    for _ in range(1000):
        assert tracks.push(0, 3 * FRAME, b"\x02" * FRAME) == b""
    assert tracks.flush() == SILENCE * 2 * FRAME + b"\x02" * FRAME
    assert tracks.counts.late == 999 * FRAME


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.2))
def test_any_order_within_the_window_gives_the_same_audio(seed: int, loss: float) -> None:
    """Messages overtake each other, come twice or not at all: the audio is what was sent, and silence where nothing was."""
    chance = random.Random(seed)
    speeches = [speech(0, 80), speech(1, 80)]
    sent = [(index, track) for index in range(80) for track in (0, 1) if chance.random() >= loss]
    wanted = [[SILENCE * FRAME] * (1 + max(index for index, _ in sent)) for _ in (0, 1)]
    for index, track in sent:
        wanted[track][index] = speeches[track][index]
    shuffled = sorted(sent, key=lambda at: at[0] + chance.uniform(0, 8))
    tracks = Tracks(2, SILENCE, PATIENT)
    out = b""
    for index, track in shuffled:
        out += tracks.push(track, index * FRAME, speeches[track][index])
        if chance.random() < 0.1:
            out += tracks.push(track, index * FRAME, speeches[track][index])
    out += tracks.flush()
    assert columns(out) == [b"".join(parts) for parts in wanted]
