"""Scores a recording without a server: the same session and engine, nothing in between. What streaming must equal."""

import asyncio
from pathlib import Path
from typing import Final

from daemon.config import Config
from daemon.engine import load_models, running_engine
from daemon.messages import CallInfo, EmotionEvent, Utterance
from daemon.pipeline import now_ms
from daemon.session import Session
from model.adaptation import NO_HISTORY
from model.audio import Samples
from model.recording import read_recording
from model.vad import SpeechDetector

ROLES: Final = ("customer", "agent")


async def score_recording(path: Path, config: Config) -> list[EmotionEvent]:
    """Final results of a recording of one or two channels, one utterance at a time.

    Raises:
        RecordingError: if the file cannot be read.
        ConfigError: if the configuration cannot work.
    """
    audio = await asyncio.to_thread(read_recording, path)
    return await score_samples(audio, config)


async def score_samples(audio: Samples, config: Config, roles: tuple[str, ...] = ROLES) -> list[EmotionEvent]:
    """Final results of `float32 [channels, T]` at 16 kHz, in the order in which utterances end.

    Raises:
        ConfigError: if the configuration cannot work.
    """
    settings = config.engine_settings()
    models = await asyncio.to_thread(load_models, config.bundle, settings)
    utterances = cut(audio, config, roles)
    events = []
    histories = [NO_HISTORY] * len(audio)
    async with running_engine(models, settings) as engine:
        info = CallInfo("offline", "offline", roles[: len(audio)], engine.bundle_id)
        for utterance in utterances:
            scores = await engine.score(info, utterance, histories[utterance.channel])
            histories[utterance.channel] = scores.history
            events.append(EmotionEvent(info, utterance, scores, now_ms()))
    return events


def cut(audio: Samples, config: Config, roles: tuple[str, ...] = ROLES) -> list[Utterance]:
    """The utterances of a recording `float32 [channels, T]`, in the order in which they end; of roles that are analysed."""
    analyzed = config.call_policy().analyzed(roles)
    detectors = [SpeechDetector() if role in analyzed else None for role in roles[: len(audio)]]
    session = Session(detectors, config.endpointing_rules())
    session.push(list(audio))
    utterances = [output for output in session.close() if isinstance(output, Utterance)]
    return sorted(utterances, key=lambda utterance: utterance.decided)
