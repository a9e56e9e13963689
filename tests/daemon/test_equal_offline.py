"""Streaming gives what scoring the whole file gives, however it is chunked and whoever else is there."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from daemon.client import paced
from daemon.config import load_config
from daemon.offline import score_recording
from daemon.wire import emotion_message
from model.recording import read_recording
from tests.daemon.conftest import ASSETS, CALL, Message, Served, assert_same_results, finals, linear16_of, pieces

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWO = ASSETS / "two_sentences.flac"
CLIPS = [CALL, *sorted(ASSETS.glob("*.flac"))]
OTHERS = 16

Results = dict[Path, list[Message]]


def odd_sizes(data: bytes, seed: int) -> Iterator[bytes]:
    """Messages of any whole number of samples, empty ones included."""
    chance, start = random.Random(seed), 0
    while start < len(data):
        size = 2 * chance.choice([0, 1, 3, 511, 512, 513, 1337, 7919])
        yield data[start : start + size]
        start += size


CHUNKINGS: dict[str, Any] = {
    "tiny": lambda data: pieces(data, 2 * 37),
    "one window": lambda data: pieces(data, 2 * 512),
    "odd": lambda data: odd_sizes(data, seed=1),
    "odd again": lambda data: odd_sizes(data, seed=2),
    "huge": lambda data: pieces(data, 2 * 50_001),
    "one message": lambda data: [data],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def offline() -> Results:
    """What every clip gives without a server."""
    config = load_config(None, {})
    return {clip: finals([emotion_message(event) for event in await score_recording(clip, config)]) for clip in CLIPS}


async def test_the_clips_hold_speech_and_silence(offline: Results) -> None:
    """Else the comparisons below would compare nothing."""
    counts = {clip.stem: len(results) for clip, results in offline.items()}
    assert counts["silence_noise"] == 0
    assert counts["two_sentences"] == 2
    assert counts["call"] >= 6
    assert all(count for name, count in counts.items() if name != "silence_noise")


@pytest.mark.parametrize("chunking", CHUNKINGS)
async def test_any_chunking_gives_the_offline_results(served: Served, offline: Results, chunking: str) -> None:
    messages = await served.stream(CHUNKINGS[chunking](linear16_of(TWO)), interim_ms=0)
    assert_same_results(finals(messages), offline[TWO])


async def test_interim_results_do_not_change_final_ones(served: Served, offline: Results) -> None:
    """At twice the pace of speech: a stream that is faster than its scores has no use for interim ones, and gets none."""
    await served.calm()
    messages = await served.stream(paced(read_recording(TWO), speed=2.0), interim_ms=100)
    assert any(not message["final"] for message in messages if message["type"] == "emotion")
    assert_same_results(finals(messages), offline[TWO])


async def test_a_call_at_the_pace_of_speech(served: Served, offline: Results) -> None:
    """Ten times as fast, to be exact; results then come one by one, with interim ones between them."""
    messages = await served.stream(paced(read_recording(CALL), speed=10.0), channels=2)
    assert_same_results(finals(messages), offline[CALL])


async def test_sixteen_other_streams_change_nothing(served: Served, offline: Results) -> None:
    """All of them at once, so that utterances share batches; each is its own offline result too."""
    chance = random.Random(3)

    async def one(clip: Path) -> tuple[Path, list[Message]]:
        channels = 2 if clip == CALL else 1
        sizes = chance.choice([640, 1280, 32_000])
        messages = await served.stream(pieces(linear16_of(clip), sizes), channels=channels, interim_ms=1500)
        return clip, finals(messages)

    clips = [TWO, CALL] + [CLIPS[1 + index % (len(CLIPS) - 1)] for index in range(OTHERS - 1)]
    async with asyncio.TaskGroup() as group:
        streams = [group.create_task(one(clip)) for clip in clips]
    for stream in streams:
        clip, got = stream.result()
        assert_same_results(got, offline[clip])
    _, page = await served.get("/metrics")
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(values["medusa_emotion_items_total"]) > float(values["medusa_emotion_batches_total"]), (
        "no batch was shared"
    )
