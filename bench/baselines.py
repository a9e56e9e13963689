"""What others build, behind our own doors: the same sockets, speech detection and Redis, another engine.

    python -m bench.baselines naive --port 8765 --redis redis://127.0.0.1:6379/0

naive        one lock around everything; Whisper as its library runs it, over 30 s and with five beams; every member a network
             in PyTorch with an encoder pass of its own, over 30 s too
per-client   our models and graphs, loaded once more for every client, one utterance at a time; those of as many clients as
             BENCH_CLIENTS says are loaded before the server is ready, so that nobody's first words wait for them

The members of "naive" have random weights, so its posteriors mean nothing: it is there for its time.
"""

import argparse
import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import uvicorn
import uvloop
from faster_whisper import WhisperModel
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from bench.export import spec_of
from bench.under_test import BASELINES, CLIENTS
from daemon.asr import AsrItem, AsrModel, Task, scorable
from daemon.config import Config, load_config
from daemon.detection import Detection
from daemon.emotion import EmotionItem, EmotionModel
from daemon.engine import EngineSettings, Models, load_models
from daemon.interfaces import Scorer
from daemon.messages import CallInfo, Latency, Scores, Utterance
from daemon.metrics import Metrics
from daemon.pipeline import Services
from daemon.probes import Uvicorn, probes, told_to_stop
from daemon.sinks.redis import RedisSink
from daemon.sinks.spool import Spool
from daemon.streams import StreamRules, Streams
from daemon.transports.native import NativeDialect
from daemon.transports.websocket import WebSocketDoor
from export.references import reference_of
from model.adaptation import NO_HISTORY, History
from model.audio import WHISPER_HOP, WHISPER_WINDOW, Samples, frame_count, ms_from_samples, pad_to
from model.bundle import read_bundle
from model.features import Frames, collate, functionals, prosody_frames
from model.network.deepser import DeepSER
from model.network.whisper_encoder import load_whisper_encoder
from model.posteriors import posteriors_of
from model.sources import resolve
from model.spec import EnsembleSpec, MemberSpec
from model.transcript import Transcript
from train.config import load_recipe

_RECIPE: Final = Path("recipes/default.toml")
_MS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class _Timed:
    """An utterance's scores but for its wait, and seconds in Whisper, the other encoders and the members."""

    scores: Callable[[Latency], Scores]
    asr_s: float
    encoders_s: float
    fusion_s: float


class _Blocking:
    """A scorer whose work is one function that blocks, in threads."""

    def accept(self, info: CallInfo, utterance: Utterance) -> None:
        """Nothing: it is scored when it is asked for."""

    def work(self, info: CallInfo, utterance: Utterance, history: History) -> _Timed:
        """Scores one utterance."""
        raise NotImplementedError

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        """As `daemon.interfaces.Scorer`; it knows of no load, so nothing is refused."""
        begun = time.perf_counter()
        done = await asyncio.to_thread(self.work, info, utterance, history)
        total_s = time.perf_counter() - begun
        queue_s = total_s - done.asr_s - done.encoders_s - done.fusion_s
        endpoint = ms_from_samples(utterance.decided - utterance.end)
        stages = (queue_s, done.asr_s, done.encoders_s, done.fusion_s, total_s)
        return done.scores(Latency(endpoint, *(_MS * seconds for seconds in stages)))


class Naive(_Blocking):
    """One lock, padded Whisper, an encoder pass per member in PyTorch; members as the default recipe has them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        spec = spec_of(load_recipe(_RECIPE))
        encoders = {encoder.name: encoder for encoder in spec.encoders}
        assert spec.whisper is not None
        self._spec: EnsembleSpec = spec
        self._whisper = WhisperModel(str(resolve(spec.whisper.sources)), device="cpu", compute_type="int8")
        self._encoder = load_whisper_encoder(spec.whisper)
        self._texts: dict[str, Any] = {e.name: reference_of(e) for e in spec.encoders if e.kind == "text-transformer"}
        self._members = [
            DeepSER(member, encoders).eval().requires_grad_(requires_grad=False) for member in spec.members
        ]
        self._lock = threading.Lock()

    def work(self, info: CallInfo, utterance: Utterance, history: History) -> _Timed:
        """Everything under the lock."""
        audio = scorable(utterance.audio)
        with self._lock, torch.no_grad():
            begun = time.perf_counter()
            words = self._words(audio) if utterance.final else None
            heard = time.perf_counter()
            rows, encoded_s = [], 0.0
            for member, network in zip(self._spec.members, self._members, strict=True):
                at = time.perf_counter()
                frames = self._frames(member, audio, words.text if words else "")
                encoded_s += time.perf_counter() - at
                rows.append(_probabilities(network, self._spec, frames))
            total_s = time.perf_counter() - heard
        votes = np.stack(rows)
        attributes = np.full(3, 4.0, np.float32)
        posteriors = posteriors_of(votes.mean(axis=0), attributes, votes, self._spec.trained_attributes, 0.0)
        return _Timed(lambda latency: Scores(posteriors, words, latency), heard - begun, encoded_s, total_s - encoded_s)

    def _words(self, audio: Samples) -> Transcript:
        segments, _ = self._whisper.transcribe(audio, language="en")
        text = " ".join(segment.text.strip() for segment in segments)
        return Transcript(text, "en", 0.0, 0.0, trusted=True)

    def _frames(self, member: MemberSpec, audio: Samples, text: str) -> dict[str, Frames]:
        """The features of one member, each from a pass of its own."""
        rows: dict[str, Frames] = {}
        for encoder in (self._spec.encoder(name) for name in member.modalities):
            if encoder.kind == "text-transformer":
                (rows[encoder.name],) = self._texts[encoder.name].expected([text])
            elif encoder.kind == "prosody":
                rows[encoder.name] = prosody_frames(audio)
            elif encoder.kind == "functionals":
                rows[encoder.name] = functionals(self._pass(audio), prosody_frames(audio))
            else:
                rows[encoder.name] = self._pass(audio)
        return rows

    def _pass(self, audio: Samples) -> Frames:
        mels = self._whisper.feature_extractor(pad_to(audio, WHISPER_WINDOW), padding=0).astype(np.float32)
        states = self._encoder(torch.from_numpy(mels)[None])[0]
        frames: Frames = states.flatten(1).numpy()[: frame_count(len(audio), WHISPER_HOP)]
        return frames


def _probabilities(network: DeepSER, spec: EnsembleSpec, rows: dict[str, Frames]) -> Frames:
    frames, masks = {}, {}
    for name, found in rows.items():
        padded, mask = collate([found], spec.encoder(name).stack)
        frames[name], masks[name] = torch.from_numpy(padded), torch.from_numpy(mask)
    logits, _ = network(frames, masks)
    probabilities: Frames = torch.softmax(logits, dim=1)[0].numpy()
    return probabilities


class PerClient(_Blocking):
    """Every client's own models, nothing batched.

    Args:
        folder: of the bundle.
        settings: how its models run.
        ready: clients whose models are loaded in advance.
    """

    def __init__(self, folder: Path, settings: EngineSettings, ready: int = 0) -> None:
        self._folder = folder
        self._settings = settings
        self._ready = [load_models(folder, settings) for _ in range(ready)]
        self._models: dict[str, Models] = {}
        self._lock = threading.Lock()

    def work(self, info: CallInfo, utterance: Utterance, history: History) -> _Timed:
        """An utterance by itself."""
        asr, emotion = self._of(info.session)
        begun = time.perf_counter()
        task = Task.WORDS if utterance.final else Task.FEATURES
        (heard,) = asr([AsrItem(utterance.audio, info.language, task)])
        asr_s = time.perf_counter() - begun
        (found,) = emotion([EmotionItem(utterance.audio, heard, history)])
        return _Timed(
            lambda latency: Scores(found.posteriors, heard.transcript, latency, found.history, found.adaptation),
            asr_s,
            found.encoders_s,
            found.fusion_s,
        )

    def _of(self, session: str) -> tuple[AsrModel, EmotionModel]:
        with self._lock:
            if session not in self._models:
                self._models[session] = self._ready.pop() if self._ready else load_models(self._folder, self._settings)
        models = self._models[session]
        return models.asr, models.emotion


def scorer_of(kind: str, config: Config) -> Scorer:
    """The engine of a baseline."""
    if kind == "naive":
        return Naive()
    return PerClient(config.bundle, config.engine_settings(), int(os.environ.get(CLIENTS, "0")))


def rules_of(config: Config) -> StreamRules:
    """Streams as the daemon has them, but that none is refused for want of time."""
    spec = read_bundle(config.bundle).spec
    return StreamRules(
        bundle_id="baseline",
        trained_classes=spec.trained_classes,
        trained_attributes=spec.trained_attributes,
        languages=("en",),
        endpointing=config.endpointing_rules(),
        interim_ms=config.interim_ms,
        ahead_silence_ms=0,
        max_streams=config.limits.max_streams,
        max_wait_s=float("inf"),
        max_message_bytes=config.limits.max_message_bytes,
        idle_timeout_s=config.limits.idle_timeout_s,
        resume_window_s=0,
        outbox=config.limits.outbox,
    )


async def run(kind: str, config: Config) -> None:
    """Serves until SIGTERM."""
    stop = told_to_stop()
    scorer = scorer_of(kind, config)
    sink = RedisSink(config.redis, spool=Spool(config.streams.spool_dir))
    await sink.start()
    with ThreadPoolExecutor(2, thread_name_prefix="vad") as compute:
        streams = Streams(rules_of(config), Services(scorer, sink, Detection(compute)), Metrics())
        door = WebSocketDoor(streams, NativeDialect)
        routes = [WebSocketRoute("/v1/stream", door.__call__), *probes(lambda: kind, _fine, _fine, Metrics())]
        settings = uvicorn.Config(
            Starlette(routes=routes), port=config.port, ws="websockets-sansio", log_level="warning", lifespan="off"
        )
        server = Uvicorn(settings)
        serving = asyncio.create_task(server.serve())
        await stop.wait()
        await streams.drain(config.drain_timeout_s)
        server.should_exit = True
        await serving
    await sink.close()


def _fine() -> str | None:
    return None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=BASELINES)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--redis", required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(os.cpu_count() or 1)
    uvloop.run(run(options.kind, load_config(None, {"port": options.port, "redis": options.redis})))


if __name__ == "__main__":
    main()
