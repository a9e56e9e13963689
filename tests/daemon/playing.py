"""Calls under test: scripted speech goes in, and everything that a call gives is kept."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import numpy as np

from daemon.detection import Detection
from daemon.errors import UpstreamError
from daemon.messages import EmotionEvent
from daemon.pipeline import Call, Services
from daemon.session import Previews, Session
from daemon.sinks.memory import MemorySink
from daemon.wire import Message
from model.audio import SAMPLE_RATE_HZ, VAD_WINDOW
from model.segmenter import Endpointing
from tests.factories import make_info
from tests.fakes import ScriptedDetector, ScriptedScorer

SPEECH, PAUSE = [0.9] * 10, [0.0] * 20
"""An utterance of 320 ms, and a pause that ends it."""
INTERIM = SAMPLE_RATE_HZ // 2
AHEAD = 5 * VAD_WINDOW
"""Silence after which an utterance is scored ahead."""


@dataclass(frozen=True)
class Played:
    """A call under test, and everything that it gave."""

    call: Call
    scorer: ScriptedScorer
    sink: MemorySink
    told: list[Message]
    scoring: "asyncio.Task[None]"

    async def feed(self, windows: int) -> None:
        """Silent samples on every channel: the script says which of them are speech."""
        await self.call.feed([np.zeros(windows * VAD_WINDOW, np.float32)] * len(self.call.info.roles))

    async def finish(self) -> None:
        await self.call.close()
        await self.scoring

    @property
    def published(self) -> list[tuple[int, int, int]]:
        """Channel, index and interim count of every emotion event."""
        found = [event.utterance for event in self.sink.events if isinstance(event, EmotionEvent)]
        return [(utterance.channel, utterance.index, utterance.interim) for utterance in found]

    @property
    def asked(self) -> list[tuple[int, int]]:
        """Index and interim count of everything that the engine was asked for."""
        return [(utterance.index, utterance.interim) for utterance in self.scorer.seen]


@asynccontextmanager
async def playing(
    *scripts: Sequence[float], scorer: ScriptedScorer | None = None, interim: int = 0, ahead: int = 0
) -> AsyncIterator[Played]:
    """A call with one script of speech probabilities per channel, being scored."""
    scorer = scorer or ScriptedScorer()
    sink, told = MemorySink(), list[Message]()
    session = Session([ScriptedDetector(script) for script in scripts], Endpointing(), Previews(interim, ahead))
    with ThreadPoolExecutor(1) as compute:
        info = make_info(roles=("customer", "agent")[: len(scripts)])
        call = Call(info, session, Services(scorer, sink, Detection(compute)), told.append)
        scoring = asyncio.create_task(call.run())
        yield Played(call, scorer, sink, told, scoring)
        scoring.cancel()
        with suppress(asyncio.CancelledError, UpstreamError):
            await scoring


def finals(played: Played) -> list[EmotionEvent]:
    return [event for event in played.sink.events if isinstance(event, EmotionEvent) and event.utterance.final]
