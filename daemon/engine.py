"""The engine: every model once, each behind its batcher, shared by all streams.

utterance -> asr batcher (frames, words) -> emotion batcher (posteriors) -> scores
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import ctranslate2
import numpy as np

from daemon.asr import AsrItem, AsrModel, Heard, Task
from daemon.batcher import Batcher, BatchSettings, Timed
from daemon.emotion import EmotionItem, EmotionModel, Scored
from daemon.errors import ConfigError
from daemon.messages import CallInfo, Latency, Scores, Utterance
from daemon.overload import Steps
from daemon.policy import Transcripts, shown
from model.adaptation import NO_HISTORY, History
from model.audio import MIN_UTTERANCE, bucket_length, ms_from_samples
from model.bundle import Bundle, BundleError
from model.onnx_session import ProviderError
from model.providers import AUTO, DEVICES, Execution, GpuSettings, settled
from model.runtime import Runtime, load_runtime
from model.signature import KeyFormatError, require_signature
from model.sources import SourceError, resolve, sha256_of
from model.spec import EncoderSpec
from model.whisper import Whisper

_WHISPER_WEIGHTS = "model.bin"
_MS_PER_S = 1000.0
_STUCK_S = 60.0
"""No batch takes this long; one that does will not end."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How models run.

    Attributes:
        device: of the encoders: "auto" (a GPU where CTranslate2 sees one), "cpu", "cuda" or "tensorrt".
        ensemble_device: of the ensemble; "auto" is the encoders'.
        gpu: what graphs on a GPU are told.
        threads: threads of one batch on the CPU.
        batch: sizes and delays of every batcher.
        whisper_sources: where Whisper's weights are; empty takes the bundle's own list.
        trusted_keys: public keys of which one must have signed the bundle; empty takes any bundle.
        transcripts: what of the words is in its scores; the models read them all.
        fallback_wait_s: how long finals wait before members drop out, where the bundle declares an order.
    """

    device: str = AUTO
    ensemble_device: str = AUTO
    gpu: GpuSettings = field(default_factory=GpuSettings)
    threads: int = 1
    batch: BatchSettings = field(default_factory=BatchSettings)
    whisper_sources: tuple[str, ...] = ()
    trusted_keys: tuple[str, ...] = ()
    transcripts: Transcripts = "full"
    fallback_wait_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Models:
    """The loaded models of a bundle."""

    bundle: Bundle
    asr: AsrModel
    emotion: EmotionModel
    languages: tuple[str, ...]


def load_models(folder: Path, settings: EngineSettings, execution: Execution | None = None) -> Models:
    """Verifies the bundle and loads everything it needs.

    Args:
        folder: the bundle's.
        settings: how models run.
        execution: where its graphs run, for who measures; None for what the settings say.

    Raises:
        ConfigError: if the bundle is damaged or not signed by who is trusted, weights are missing or others, or the device
            is not there.
    """
    try:
        device = pick_device(settings.device)
        require_signature(folder, settings.trusted_keys)
        runtime = load_runtime(folder, settings.threads, execution or execution_of(settings))
        whisper = _load_whisper(runtime, settings, device)
    except (BundleError, SourceError, ProviderError, KeyFormatError) as error:
        raise ConfigError(str(error)) from error
    models = Models(runtime.bundle, AsrModel(whisper), EmotionModel(runtime), whisper.languages)
    _try_out(models)
    return models


def _try_out(models: Models) -> None:
    """Scores a moment of silence: a bundle that was made for other features than ours is refused here, not call by call."""
    silence = np.zeros(MIN_UTTERANCE, np.float32)
    try:
        (heard,) = models.asr([AsrItem(silence, None, Task.FEATURES)])
        for fallback in range(len(models.bundle.manifest.fallbacks) + 1):
            models.emotion([EmotionItem(silence, heard)], fallback)
    except ValueError as error:
        raise ConfigError(
            f"the bundle {models.bundle.id} was made for other features than this program computes: {error}; "
            "export it again, or use the medusa-rt that wrote it"
        ) from error


def _load_whisper(runtime: Runtime, settings: EngineSettings, device: str) -> Whisper:
    encoder = runtime.bundle.spec.whisper
    if encoder is None:
        raise ConfigError(f"the bundle {runtime.bundle.id} has no Whisper encoder; this daemon needs one")
    folder = resolve(settings.whisper_sources or encoder.sources)
    found = sha256_of(folder / _WHISPER_WEIGHTS)
    if encoder.sha256 and found != encoder.sha256:
        raise ConfigError(
            f"{folder} holds another Whisper model (SHA-256 {found}) than the bundle was trained with "
            f"({encoder.revision}, {encoder.sha256}): its features would not fit"
        )
    return Whisper(folder, device, decoder_precision(encoder, device), settings.threads, runtime.hidden_states)


def decoder_precision(encoder: EncoderSpec, device: str) -> str:
    """CTranslate2's arithmetic for the words of a Whisper encoder."""
    return encoder.compute_type if device == "cpu" else "float16"


def execution_of(settings: EngineSettings) -> Execution:
    """Where graphs run: beside CTranslate2, but "auto" takes the CPU if onnxruntime has no CUDA.

    Raises:
        ProviderError: if a device is asked for that is not there.
    """
    gpus = ctranslate2.get_cuda_device_count()
    device = settled(settings.device, gpus)
    ensemble = device if settings.ensemble_device == AUTO else settled(settings.ensemble_device, gpus)
    return Execution(device, ensemble, settings.gpu, settings.batch.max_batch_size)


def pick_device(wanted: str) -> str:
    """The device for Whisper, which CTranslate2 decodes: TensorRT is for graphs, CUDA is beside it.

    Raises:
        ConfigError: if CUDA is asked for and not there: never a silent fallback.
    """
    gpus, known = ctranslate2.get_cuda_device_count(), (AUTO, *DEVICES)
    if wanted not in known:
        raise ConfigError(f"device is {wanted!r}; it must be one of {', '.join(known)}")
    if wanted in ("cuda", "tensorrt") and gpus == 0:
        raise ConfigError(
            f'device is "{wanted}", but CTranslate2 sees no GPU: check nvidia-smi, install the CUDA libraries '
            '(pip install "medusa-rt[gpu]"), or set device to "cpu"'
        )
    return "cpu" if wanted == "cpu" or gpus == 0 else "cuda"


Listener = Callable[[Bundle, CallInfo, Utterance, Heard], None]
"""Told of what a bundle's Whisper made of a final utterance."""


class _Members:
    """The emotion model with the members that there is time for when a batch begins, not when its utterances began to wait.

    Attributes:
        fallback: as the model takes it. Threads read it: a number, set on the event loop.
    """

    def __init__(self, model: EmotionModel) -> None:
        self.fallback = 0
        self._model = model

    def __call__(self, items: Sequence[EmotionItem]) -> list[Scored]:
        """Scores one batch."""
        return self._model(items, self.fallback) if self.fallback else self._model(items)


class _Wanted:
    """When the scores of an utterance are wanted: when its pause is over, or at once if it turns out to be certain before.

    Attributes:
        utterance: as it will be.
    """

    def __init__(self, utterance: Utterance, ahead_s: float) -> None:
        self.utterance = utterance
        self._at = time.perf_counter() + ahead_s
        self._certain = asyncio.Event()

    @property
    def ahead_s(self) -> float:
        """How long before that it is now; 0 from there on."""
        return 0.0 if self._certain.is_set() else max(0.0, self._at - time.perf_counter())

    def is_of(self, utterance: Utterance) -> bool:
        """Whether `utterance`, of the same channel and index, is the same audio."""
        return (self.utterance.start, self.utterance.end) == (utterance.start, utterance.end)

    def now(self) -> None:
        """They are wanted now."""
        self._certain.set()

    async def comes(self) -> None:
        """Returns once they are wanted."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.ahead_s):
                await self._certain.wait()


class Engine:
    """Implements `daemon.interfaces.Scorer` over two batchers.

    Attributes:
        listener: hears what Whisper made of final utterances; None for nobody.
        steps: decide which members score, where the bundle declares an order in which they drop out.
    """

    def __init__(
        self, models: Models, settings: EngineSettings, asr: ThreadPoolExecutor, emotion: ThreadPoolExecutor
    ) -> None:
        self.models = models
        self.listener: Listener | None = None
        self._transcripts = settings.transcripts
        self._ahead: dict[tuple[str, int, int], _Wanted] = {}
        """What is scored ahead, by session, channel and index."""
        self.steps = Steps(settings.fallback_wait_s, time.monotonic)
        self.asr: Batcher[AsrItem, Heard] = Batcher("asr", models.asr, asr, settings.batch)
        self._members = _Members(models.emotion)
        self.emotion: Batcher[EmotionItem, Scored] = Batcher("emotion", self._members, emotion, settings.batch)

    @property
    def bundle_id(self) -> str:
        """What results are stamped with."""
        return self.models.bundle.id

    def accept(self, info: CallInfo, utterance: Utterance) -> None:
        """What is scored of it ahead is wanted now: a stream may end, or its client send faster than anybody speaks.

        Else nothing: the call holds its utterances until it asks for their scores, and it ends with us.
        """
        wanted = self._ahead.get((info.session, utterance.channel, utterance.index))
        if wanted is not None and wanted.is_of(utterance):
            wanted.now()
            audio = wanted.utterance.audio
            self.asr.hasten(lambda item: item.audio is audio)
            self.emotion.hasten(lambda item: item.audio is audio)

    def stuck(self) -> str | None:
        """Which model has been at one batch for longer than any takes; None if none has."""
        for batcher in (self.asr, self.emotion):
            if batcher.running_s > _STUCK_S:
                return f"the {batcher.name} model has been at one batch for {batcher.running_s:.0f} s"
        return None

    @property
    def has_room(self) -> bool:
        """Whether nothing is to be done, and there is room for work that nobody waits for."""
        return self.asr.idle and self.asr.spare and self.emotion.idle

    @property
    def wait_s(self) -> float:
        """How long finals were waited for lately because the models were busy."""
        return self.asr.wait_s + self.emotion.wait_s

    @contextmanager
    def _wanted(self, info: CallInfo, utterance: Utterance, ahead_s: float) -> Iterator[_Wanted]:
        """When the scores are wanted, which `accept` may change while the block lasts."""
        key, wanted = (info.session, utterance.channel, utterance.index), _Wanted(utterance, ahead_s)
        if ahead_s:
            self._ahead[key] = wanted
        try:
            yield wanted
        finally:
            if self._ahead.get(key) is wanted:  # a later pause may have begun while this one's work was given up
                del self._ahead[key]

    async def _heard(self, utterance: Utterance, bucket: int, language: str | None, wanted: _Wanted) -> Timed[Heard]:
        task = Task.WORDS if utterance.final else Task.FEATURES
        item = AsrItem(utterance.audio, language, task)
        first = await self.asr.submit(item, (bucket, task, language), final=utterance.final, ahead_s=wanted.ahead_s)
        words = first.value.transcript
        if words is None or words.trusted:
            return first
        item = AsrItem(utterance.audio, language, Task.WORDS_AGAIN)
        await wanted.comes()  # it takes long, and what was not said to its end is often not understood
        again = await self.asr.submit(item, (item.task, id(item)), final=True)  # alone, for the same reason
        heard = Heard(first.value.frames, again.value.transcript)
        return Timed(heard, first.queue_s + again.queue_s, first.run_s + again.run_s)

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        """Scores one utterance; interim ones are not transcribed.

        Raises:
            CapacityError: if the utterance is interim and a queue is full.
            UpstreamError: if a model failed on it.
        """
        bucket = bucket_length(max(len(utterance.audio), MIN_UTTERANCE))
        final = utterance.final
        with self._wanted(info, utterance, ahead_s) as wanted:
            heard = await self._heard(utterance, bucket, info.language, wanted)
            if final and self.listener is not None:
                self.listener(self.models.bundle, info, utterance, heard.value)
            self._members.fallback = self.steps.number(self.wait_s, len(self.models.bundle.manifest.fallbacks))
            item = EmotionItem(utterance.audio, heard.value, history)
            scored = await self.emotion.submit(item, bucket, final=final, ahead_s=wanted.ahead_s)
        queue_s = heard.queue_s + scored.queue_s
        latency = Latency(
            endpoint=ms_from_samples(utterance.decided - utterance.end),
            queue=queue_s * _MS_PER_S,
            asr=heard.run_s * _MS_PER_S,
            encoders=scored.value.encoders_s * _MS_PER_S,
            fusion=scored.value.fusion_s * _MS_PER_S,
            total=(queue_s + heard.run_s + scored.run_s) * _MS_PER_S,
        )
        found = scored.value
        words = shown(heard.value.transcript, self._transcripts)
        return Scores(found.posteriors, words, latency, found.history, found.adaptation)


@asynccontextmanager
async def running_engine(models: Models, settings: EngineSettings) -> AsyncIterator[Engine]:
    """An engine whose batchers run until the block ends."""
    workers = settings.batch.workers
    asr = ThreadPoolExecutor(workers, thread_name_prefix="asr")
    emotion = ThreadPoolExecutor(workers, thread_name_prefix="emotion")
    engine = Engine(models, settings, asr, emotion)
    tasks = [asyncio.create_task(batcher.run()) for batcher in (engine.asr, engine.emotion)]
    try:
        yield engine
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for executor in (asr, emotion):  # a batch may still run, and another bundle's engine goes on meanwhile
            await asyncio.to_thread(executor.shutdown)


def default_threads() -> int:
    """Threads of one batch: one on small machines, where several batches at once use the cores better."""
    return max(1, (os.cpu_count() or 1) // 4)
