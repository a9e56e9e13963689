"""The audio clock: whatever is lost, late or left out, every sample stands where it was spoken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.resample import StreamResampler
from daemon.transports.opus import OPUS_RATE_HZ, OpusCodec
from daemon.transports.whip.intake import Hole, Intake
from daemon.transports.whip.reorder import Encoded
from daemon.transports.whip.timeline import LATE_S, Gap, Gaps, Placed, Timeline
from model.audio import SAMPLE_RATE_HZ, Samples
from tests.daemon.transports.whip_client import PACKET, Sound, opus_packets

LONGEST = 60 * OPUS_RATE_HZ


@given(arrived=st.lists(st.booleans(), min_size=1, max_size=200), origin=st.integers(0, 2**32))
def test_every_frame_stands_where_its_timestamp_says(arrived: list[bool], origin: int) -> None:
    """Counted from the first frame that came."""
    timeline, first, silence = Timeline(LONGEST), arrived.index(True) if True in arrived else 0, 0
    for number, came in enumerate(arrived):
        if came:
            placed = timeline.place(origin + number * PACKET, PACKET, 0.02 * number)
            assert placed.skip == 0
            silence += placed.silence
            assert timeline.position == (number + 1 - first) * PACKET
    heard = sum(arrived) * PACKET
    assert timeline.position == silence + heard


def test_what_comes_after_silence_stood_in_for_it_is_left_out() -> None:
    timeline = Timeline(LONGEST)
    timeline.place(0, PACKET, 0.0)
    timeline.pause(PACKET + 100)
    assert timeline.place(PACKET, PACKET, 0.1) == Placed(0, PACKET)
    assert timeline.place(2 * PACKET, PACKET, 0.1) == Placed(0, 100), "a part of it is in time"
    assert timeline.place(3 * PACKET, PACKET, 0.1) == Placed(0, 0)
    assert timeline.position == 4 * PACKET


def test_a_network_that_was_held_up_catches_up() -> None:
    """Ten seconds of packets come in a fifth of a second: they are too late, and all that follows is in its place."""
    timeline = Timeline(LONGEST)
    timeline.place(0, PACKET, 0.0)
    timeline.pause(500 * PACKET)
    late = [timeline.place(number * PACKET, PACKET, 10.0 + number / 2500) for number in range(1, 501)]
    assert late == [Placed(0, PACKET)] * 500
    assert timeline.place(501 * PACKET, PACKET, 10.25) == Placed(0, 0)
    assert timeline.position == 502 * PACKET


def test_a_sender_whose_clock_stood_still_is_heard_again() -> None:
    """It paused and went on with the next timestamp, as if no time had passed."""
    timeline = Timeline(LONGEST)
    timeline.place(0, PACKET, 0.0)
    timeline.pause(10 * OPUS_RATE_HZ)
    placed = [timeline.place(number * PACKET, PACKET, 10.0 + 0.02 * number) for number in range(1, 100)]
    dropped = round(LATE_S / 0.02)
    assert placed.count(Placed(0, PACKET)) == pytest.approx(dropped, abs=2)
    assert placed[dropped + 2 :] == [Placed(0, 0)] * len(placed[dropped + 2 :])
    assert timeline.position == 10 * OPUS_RATE_HZ + PACKET * (1 + placed.count(Placed(0, 0)))


@pytest.mark.parametrize("jump", [LONGEST + 1, 2**32 - 5 * PACKET])
def test_a_new_clock_makes_no_silence(jump: int) -> None:
    """A jump forwards, or one backwards, which aiortc takes for a timestamp that wrapped."""
    timeline = Timeline(LONGEST)
    timeline.place(7, PACKET, 0.0)
    assert timeline.place(7 + PACKET + jump, PACKET, 0.02) == Placed(0, 0)
    assert timeline.place(7 + 2 * PACKET + jump, PACKET, 0.04) == Placed(0, 0)
    assert timeline.position == 3 * PACKET


def test_holes_that_lie_close_together_are_told_together() -> None:
    gaps = Gaps(1000)
    assert gaps.add(100, 150, "lost") == []
    assert gaps.add(400, 410, "lost") == []
    assert gaps.passed(1099) == []
    assert gaps.passed(1100) == [Gap(100, 410, 60, "lost")]
    assert gaps.passed(5000) == []
    assert gaps.finish() == []


def test_holes_of_another_reason_are_told_apart() -> None:
    gaps = Gaps(1000)
    gaps.add(100, 150, "lost")
    assert gaps.add(200, 300, "paused") == [Gap(100, 150, 50, "lost")]
    assert gaps.add(1300, 1400, "paused") == [Gap(200, 300, 100, "paused")]
    assert gaps.finish() == [Gap(1300, 1400, 100, "paused")]


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 500)), max_size=30))
def test_no_missing_sample_is_told_twice_or_not_at_all(holes: list[tuple[int, int]]) -> None:
    gaps, at, told, missing = Gaps(1000), 0, [], 0
    for distance, length in holes:
        at += distance
        told += gaps.add(at, at + length, "lost")
        at, missing = at + length, missing + length
        told += gaps.passed(at)
    told += gaps.finish()
    assert sum(gap.missing for gap in told) == missing
    assert all(one.end <= other.start for one, other in zip(told, told[1:], strict=False))


def tones(seconds: float, left_hz: float, right_hz: float) -> Sound:
    time = np.arange(round(seconds * OPUS_RATE_HZ)) / OPUS_RATE_HZ
    both = np.stack([np.sin(2 * np.pi * hz * time) for hz in (left_hz, right_hz)], axis=1)
    return np.round(both * 12000).astype(np.int16)


def joined(pieces: list[list[Samples]]) -> list[Samples]:
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


def taken(intake: Intake, packets: list[bytes], lost: set[int]) -> tuple[list[Samples], list[Hole]]:
    """What an intake makes of a track without the packets `lost`, taken by the pair, and its holes."""
    pieces: list[list[Samples]] = []
    holes: list[Hole | None] = []
    for number, data in enumerate(packets):
        if number not in lost:
            holes.append(intake.push(Encoded(data, number * PACKET, 0), 0.02 * number))
            if intake.held >= 512:
                pieces += intake.take()
    return joined([*pieces, *intake.take(), intake.flush()]), [hole for hole in holes if hole]


def loudest_hz(samples: Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * SAMPLE_RATE_HZ / len(samples))


def test_two_channels_stay_two() -> None:
    (left, right), holes = taken(Intake(2, 60.0), opus_packets(tones(1.0, 440, 1000)), set())
    assert (len(left), len(right)) == (SAMPLE_RATE_HZ, SAMPLE_RATE_HZ)
    assert loudest_hz(left) == pytest.approx(440, abs=2)
    assert loudest_hz(right) == pytest.approx(1000, abs=2)
    assert holes == []


def test_one_channel_is_the_mean_of_both() -> None:
    packets = opus_packets(tones(1.0, 440, 1000))
    (mono,), _ = taken(Intake(1, 60.0), packets, set())
    left, right = taken(Intake(2, 60.0), packets, set())[0]
    np.testing.assert_allclose(mono, (left + right) / 2, atol=1e-6)
    assert np.abs(mono).max() > 0.1


@pytest.mark.parametrize("channels", [1, 2])
def test_missing_audio_is_silence_in_its_place(channels: int) -> None:
    """Packets 10 to 14, 100 ms from 200 ms on: the same as silence put in by hand between what the codec gives."""
    packets, lost = opus_packets(tones(1.0, 440, 1000)), {10, 11, 12, 13, 14}
    codec = OpusCodec(channels)
    by_hand = [
        np.zeros((channels, PACKET), np.float32) if number in lost else codec.decode(data)
        for number, data in enumerate(packets)
    ]
    found, holes = taken(Intake(channels, 60.0), packets, lost)
    assert holes == [(3200, 4800)]
    for samples, wanted in zip(found, np.concatenate(by_hand, axis=1), strict=True):
        resampler = StreamResampler(OPUS_RATE_HZ)
        exact = np.concatenate([resampler.push(np.ascontiguousarray(wanted)), resampler.flush()])
        np.testing.assert_allclose(samples, exact, atol=1e-6)
        assert np.abs(samples[3300:4700]).max() < 1e-3 < np.abs(samples[4900:5000]).max()


def test_a_long_pause_comes_in_pieces() -> None:
    intake, packets = Intake(2, 60.0), opus_packets(tones(0.04, 440, 440))
    intake.push(Encoded(packets[0], 0, 0), 0.0)
    assert intake.pause(3.5) == (320, 56320)
    intake.push(Encoded(packets[1], 4 * OPUS_RATE_HZ, 0), 4.0)
    assert intake.position == intake.held == 4 * SAMPLE_RATE_HZ + 320
    pieces = [*intake.take(), intake.flush()]
    assert intake.held == 0
    assert max(len(left) for left, _ in pieces) <= SAMPLE_RATE_HZ + 320
    assert [len(samples) for samples in joined(pieces)] == [4 * SAMPLE_RATE_HZ + 320] * 2


def test_a_packet_that_is_none_is_missing() -> None:
    intake, packets = Intake(1, 60.0), opus_packets(tones(0.1, 440, 440))
    packets[1] = b"\x03\x00"  # says that it holds no frame
    found = [
        (intake.push(Encoded(data, number * PACKET, 0), 0.02 * number), intake.spoiled)
        for number, data in enumerate(packets[:3])
    ]
    assert found == [(None, False), (None, True), ((320, 640), False)]
