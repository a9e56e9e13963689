"""What a channel's earlier utterances do to its later ones: each is scored with the history of all before it."""

import asyncio
from dataclasses import replace

import pytest

from daemon.messages import CallInfo, Scores, Utterance
from model.adaptation import NO_HISTORY, History
from tests.daemon.playing import AHEAD, INTERIM, PAUSE, SPEECH, finals, playing
from tests.fakes import ScriptedScorer
from tests.waiting import until


class CountingScorer(ScriptedScorer):
    """Counts the finals of each history as a real engine would add them up."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[tuple[int, int, int, float]] = []

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        self.known.append((utterance.channel, utterance.index, utterance.interim, history.weight))
        scores = await super().score(info, utterance, history, ahead_s=ahead_s)
        return replace(scores, history=History(None, history.weight + 1))


@pytest.mark.parametrize("ahead", [0, AHEAD])
async def test_each_channel_is_heard_against_its_own_finals(ahead: int) -> None:
    scorer = CountingScorer()
    speech = SPEECH * 3
    scripts = (speech + PAUSE + speech + PAUSE + speech + PAUSE, [0.0] * len(speech + PAUSE) + speech + PAUSE)
    async with playing(*scripts, scorer=scorer, interim=INTERIM, ahead=ahead) as played:
        for _ in range(0, len(scripts[0]), 5):
            await played.feed(5)
            await asyncio.sleep(0)
        await played.finish()
    assert {(channel, index) for channel, index, _, _ in scorer.known} == {(0, 0), (0, 1), (0, 2), (1, 0)}
    assert any(interim for _, _, interim, _ in scorer.known)
    assert all(weight == index for _, index, _, weight in scorer.known)


async def test_nothing_is_scored_ahead_of_what_its_channel_still_waits_for() -> None:
    scorer = CountingScorer()
    scorer.gate.clear()
    async with playing(SPEECH + PAUSE + SPEECH + PAUSE, scorer=scorer, ahead=AHEAD) as played:
        await played.feed(len(SPEECH) + 8)
        await until(lambda: len(scorer.ahead) == 1)
        await played.feed(len(PAUSE + SPEECH))  # the second pause begins, the first utterance waits
        await asyncio.sleep(0.01)
        assert [utterance.index for utterance in scorer.ahead] == [0]
        scorer.gate.set()
        await played.feed(len(PAUSE))
        await played.finish()
    assert [event.utterance.index for event in finals(played)] == [0, 1]
    assert all(weight == index for _, index, _, weight in scorer.known)
