"""Scripted stand-ins at the seams, and a voice made of arithmetic. None of our own code is replaced anywhere else."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt

from daemon.errors import CapacityError, UpstreamError
from daemon.messages import CallInfo, Scores, Utterance
from daemon.session import Output, Session
from model.adaptation import NO_HISTORY, History
from model.audio import SAMPLE_RATE_HZ, Samples
from model.labels import CLASSES
from tests.factories import make_scores


def judged(session: Session, channels: Sequence[Samples]) -> list[Output]:
    """What comes of the next samples, as whoever drives a session asks for it."""
    session.push(channels)
    return session.judge() if session.due else []


class ScriptedDetector:
    """Speech probabilities that a test wrote down; silence behind the last one. Counts windows, as the real one does."""

    def __init__(self, script: Sequence[float]) -> None:
        self._script = script
        self._stepped = 0

    def __call__(self, windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        begin, self._stepped = self._stepped, self._stepped + len(windows)
        known = self._script[begin : self._stepped]
        return np.array([*known, *[0.0] * (len(windows) - len(known))], np.float32)


class ScriptedScorer:
    """An engine without models: scores everything the same, or fails where a test says so.

    Args:
        failing: utterances (by index) on which the model fails, interim cuts included.
        full: whether interim work is refused for lack of room.
        busy: whether work ahead is refused.

    Attributes:
        accepted: what it was told of, in order.
        seen: what it was asked to score, in order, but for work ahead.
        ahead: what it was asked to score ahead, in order.
        ahead_s: how long before it could be certain, of each.
        given_up: what was cancelled while it was being scored, in order.
        gate: set where it may answer; cleared by a test that holds work back.
    """

    def __init__(self, *, failing: frozenset[int] = frozenset(), full: bool = False, busy: bool = False) -> None:
        self.accepted: list[Utterance] = []
        self.seen: list[Utterance] = []
        self.ahead: list[Utterance] = []
        self.ahead_s: list[float] = []
        self.given_up: list[Utterance] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._failing = failing
        self._full = full
        self._busy = busy

    def accept(self, info: CallInfo, utterance: Utterance) -> None:
        self.accepted.append(utterance)

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        (self.ahead if ahead_s else self.seen).append(utterance)
        if ahead_s:
            self.ahead_s.append(ahead_s)
            if self._busy:
                raise CapacityError("workers elsewhere score what is certain: nothing is scored ahead")
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up.append(utterance)
            raise
        if utterance.index in self._failing:
            raise UpstreamError("the asr model failed: out of memory")
        if self._full and not utterance.final:
            raise CapacityError("the asr queue holds 64 items: interim work is refused")
        return make_scores(text="hello there" if utterance.final else None)


class ListeningScorer:
    """An engine without models whose scores say what it heard: they depend on the audio and on all its channel's audio before.

    Args:
        failing: utterances (by index) on which the model fails.
        dying: called with every utterance before it is scored; may raise what no engine raises.

    Attributes:
        seen: event ids of final utterances, as `<session>:<channel>:<index>`, in the order in which they were begun.
        together: the most utterances that were being scored at a time.
    """

    def __init__(
        self, *, failing: frozenset[int] = frozenset(), dying: Callable[[Utterance], None] = lambda utterance: None
    ) -> None:
        self.seen: list[str] = []
        self.together = 0
        self._now = 0
        self._failing = failing
        self._dying = dying

    def accept(self, info: CallInfo, utterance: Utterance) -> None:
        pass

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        if utterance.final:
            self.seen.append(f"{info.session}:{utterance.channel}:{utterance.index}")
        self._now += 1
        self.together = max(self.together, self._now)
        try:
            self._dying(utterance)
            await asyncio.sleep(0.001)
        finally:
            self._now -= 1
        if utterance.index in self._failing:
            raise UpstreamError("the asr model failed: out of memory")
        return heard_scores(utterance, history)


def heard_scores(utterance: Utterance, history: History) -> Scores:
    """What `ListeningScorer` says of an utterance."""
    loudness = float(np.abs(utterance.audio, dtype=np.float64).mean())
    before = 0.0 if history.deviation is None else float(history.deviation[0, 0])
    heard = 0.5 * before + loudness  # the order counts
    top = CLASSES[int(1e4 * heard) % len(CLASSES)]
    known = History(np.full((2, 3), heard), history.weight + 1.0)
    scores = make_scores(top, text="hello there" if utterance.final else None)
    return replace(scores, history=known, adaptation=heard)


_FORMANTS_HZ = ((700, 1220, 2600), (300, 2300, 3000), (450, 800, 2400), (550, 1800, 2500), (320, 870, 2240))
_WIDTHS_HZ = (80, 100, 140)


def silence(seconds: float) -> Samples:
    """Nothing, `float32 [T]`."""
    return np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)


@cache
def voice(seconds: float, pitch_hz: float = 120.0) -> Samples:
    """Syllables of hiss and gliding formants, `float32 [T]`: the real detector takes them for speech."""
    noise = np.random.default_rng(7)
    parts: list[npt.NDArray[np.float64]] = []
    for index in range(round(seconds / 0.22) + 1):
        hiss = np.diff(noise.standard_normal(801)) * 0.05 * np.hanning(800)
        parts += [hiss, _vowel(index, pitch_hz)]
    return np.concatenate(parts)[: round(seconds * SAMPLE_RATE_HZ)].astype(np.float32)


def _vowel(index: int, pitch_hz: float) -> npt.NDArray[np.float64]:
    t = np.arange(2720) / SAMPLE_RATE_HZ
    share = t / t[-1]
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1.15 - 0.15 * (index % 3) * share)) / SAMPLE_RATE_HZ
    here, there = _FORMANTS_HZ[index % 5], _FORMANTS_HZ[(index + 2) % 5]
    wave = np.zeros(len(t))
    for harmonic in range(1, min(35, int(4500 / pitch_hz))):
        gain = np.zeros(len(t))
        for a, b, width in zip(here, there, _WIDTHS_HZ, strict=True):
            gain += 1 / (1 + ((harmonic * pitch_hz - (1 - share) * a - share * b) / width) ** 2)
        wave += gain * np.sin(harmonic * phase) / harmonic**0.5
    wave *= np.hanning(len(t)) ** 0.5
    scaled: npt.NDArray[np.float64] = 0.3 * wave / np.abs(wave).max()
    return scaled


def linear16(*channels: Samples) -> bytes:
    """Interleaved little-endian 16-bit samples."""
    return np.round(np.stack(channels, axis=1) * 32767.0).astype("<i2").tobytes()
