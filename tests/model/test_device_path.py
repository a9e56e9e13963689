"""What runs on a device, run on the CPU provider: few shapes, bound tensors, frames that are never copied in between.

It has to give what the plain path gives. What only a GPU can show (copies, streams, engines, recorded work) is in
bench/device.py.
"""

import atexit
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime import OrtValue

from daemon.asr import Heard
from daemon.config import DEFAULT_BUNDLE
from daemon.emotion import EmotionItem, EmotionModel
from export.bundle import write_bundle
from export.precision import Precisions
from model.audio import SAMPLE_RATE_HZ, Samples
from model.binding import BoundFrames, BoundGraph, Turn
from model.bundle import SPEECH_AUDIO, SPEECH_AUDIO_MASK, SPEECH_OUTPUT, SPEECH_OUTPUT_MASK, graph_file, read_bundle
from model.device_shapes import speech_length_for
from model.features import PROSODY_DIM, Frames, collate, prosody_frames
from model.network.checkpoint import save_checkpoint
from model.onnx_session import make_session
from model.posteriors import Posteriors
from model.providers import Execution, FixedShape, GpuSettings
from model.runtime import Runtime, load_runtime
from model.spec import EncoderSpec, EnsembleSpec
from model.transcript import Transcript
from tests.model.tiny import TEXT_DIM, tiny_checkpoint, tiny_member, write_tiny_text_encoder
from tests.model.tiny_speech import SPEECH_DIM, write_tiny_speech

LIMIT = 1e-6
BOUND = Execution(bound=True)
TEXTS = ("what the hell are you doing", "no", "i am so happy today that i could sing and dance", "", "are you angry ?")
LENGTHS = (6400, 11_111, 31_999, 16_000, 48_321)


def speech_spec(folder: Path, kind: str, norm: str, stack: int) -> EncoderSpec:
    weights = write_tiny_speech(folder / kind, kind, norm, seed=stack)
    return EncoderSpec(kind, "speech-transformer", SPEECH_DIM, stack, (f"path:{weights}",))


@cache
def bundle() -> Path:
    """Members that read an encoder that binds in steps of two frames, one that would hear padding, words and pitch."""
    folder = TemporaryDirectory(prefix="device-path-")
    atexit.register(folder.cleanup)
    path = Path(folder.name)
    write_tiny_text_encoder(path / "text")
    encoders = (
        speech_spec(path, "wavlm", "layer", 2),
        speech_spec(path, "wav2vec2", "group", 1),
        EncoderSpec("text", "text-transformer", TEXT_DIM, 1, (f"path:{path / 'text'}",)),
        EncoderSpec("prosody", "prosody", PROSODY_DIM, 16),
    )
    members = (
        tiny_member("said", ("wavlm", "text"), layers=1),
        tiny_member("voice", ("wav2vec2", "prosody"), layers=1, seed=2),
    )
    spec = EnsembleSpec(encoders, members, ("angry", "sad", "happy", "neutral"), ("arousal",))
    save_checkpoint(path / "checkpoint", tiny_checkpoint(spec))
    write_bundle(path / "checkpoint", path / "bundle", precisions=Precisions.parse(["encoders=fp32"]))
    return path / "bundle"


@cache
def plain() -> Runtime:
    return load_runtime(bundle(), threads=1)


@cache
def bound() -> Runtime:
    return load_runtime(bundle(), threads=1, execution=BOUND)


def voices(lengths: Sequence[int] = LENGTHS) -> list[Samples]:
    return [np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32) for length in lengths]


def computed(audio: Samples) -> dict[str, Frames]:
    """What needs no graph."""
    return {"prosody": prosody_frames(audio)}


def on_host(runtime: Runtime, audio: Sequence[Samples], texts: Sequence[str]) -> list[Posteriors]:
    rows = [computed(samples) for samples in audio]
    for speech in runtime.speech:
        for row, frames in zip(rows, speech.encode(audio), strict=True):
            row[speech.spec.name] = frames
    for text in runtime.text:
        for row, frames in zip(rows, text.encode(texts), strict=True):
            row[text.spec.name] = frames
    return runtime.ensemble.score(rows)


def on_device(runtime: Runtime, audio: Sequence[Samples], texts: Sequence[str]) -> list[Posteriors]:
    """Frames of encoders that bind stay where they are: the rows do not have them."""
    rows, there = [computed(samples) for samples in audio], dict[str, BoundFrames]()
    for speech in runtime.speech:
        if speech.binds:
            there[speech.spec.name] = speech.encode_bound(audio)
        else:
            for row, frames in zip(rows, speech.encode(audio), strict=True):
                row[speech.spec.name] = frames
    for text in runtime.text:
        assert text.binds
        there[text.spec.name] = text.encode_bound(texts)
    assert set(there) == {"wavlm", "text"}
    return runtime.ensemble.score(rows, there)


def values(posteriors: Sequence[Posteriors]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array([[*each.probabilities, each.attributes[0] or 0.0, each.uncertainty] for each in posteriors])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_bound_tensors_give_what_arrays_give(count: int) -> None:
    audio, texts = voices()[:count], TEXTS[:count]
    expected = values(on_host(plain(), audio, texts))
    np.testing.assert_allclose(values(on_device(bound(), audio, texts)), expected, atol=LIMIT)
    np.testing.assert_allclose(values(on_host(bound(), audio, texts)), expected, atol=LIMIT)
    others = [f"no {text}" for text in texts]
    assert np.abs(values(on_device(bound(), audio, others)) - expected).max() > 1e2 * LIMIT, "words arrive there"


def test_the_daemon_leaves_frames_where_they_are() -> None:
    items = [
        EmotionItem(samples, Heard(np.zeros((0, 0), np.float32), Transcript(text, "en", -0.1, 0.0, trusted=True)))
        for samples, text in zip(voices()[:3], TEXTS, strict=False)
    ]
    expected = EmotionModel(plain())(items)
    silent = [replace(item, heard=replace(item.heard, transcript=None)) for item in items]
    for asked in (items, silent):
        found = values([scored.posteriors for scored in EmotionModel(bound())(asked)])
        wanted = values([scored.posteriors for scored in EmotionModel(plain())(asked)])
        np.testing.assert_allclose(found, wanted, atol=LIMIT)
    assert np.abs(wanted - values([scored.posteriors for scored in expected])).max() > 1e2 * LIMIT, "words count"
    deaf = EmotionModel(replace(bound(), shared=False))  # through the host
    np.testing.assert_allclose(values([scored.posteriors for scored in deaf(silent)]), wanted, atol=LIMIT)


@settings(deadline=None, max_examples=15)
@given(rows=st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=5))
def test_rows_that_fill_a_batch_change_nothing(rows: list[int]) -> None:
    audio, texts = voices(), TEXTS
    together = values(on_device(bound(), [audio[row] for row in rows], [texts[row] for row in rows]))
    assert len(together) == len(rows)
    for row, found in zip(rows, together, strict=True):
        np.testing.assert_allclose(found, values(on_host(plain(), [audio[row]], [texts[row]]))[0], atol=LIMIT)


def test_every_batch_has_one_of_few_shapes() -> None:
    (wavlm,) = [each for each in bound().speech if each.binds]
    (words,) = bound().text
    shapes = {tuple(wavlm.encode_bound(voices([length] * 3)).frames.shape()) for length in range(6400, 14_400, 1000)}
    assert shapes == {(4, 26, 16), (4, 50, 16)}, "whole steps of two frames"
    texts = {tuple(words.encode_bound(["no " * count] * 5).frames.shape()[:2]) for count in range(1, 40, 3)}
    assert texts == {(8, 16), (8, 32), (8, 48)}


def test_frames_come_to_the_host_as_they_are_without_binding() -> None:
    for there, here in zip(bound().speech, plain().speech, strict=True):
        if there.binds:
            for frames, wanted in zip(there.encode_bound(voices()).host(), here.encode(voices()), strict=True):
                assert frames.shape == wanted.shape
                np.testing.assert_allclose(frames, wanted, atol=1e-5)
    for text, wanted_text in zip(bound().text, plain().text, strict=True):
        for frames, wanted in zip(text.encode_bound(TEXTS).host(), wanted_text.encode(TEXTS), strict=True):
            assert frames.shape == wanted.shape
            np.testing.assert_allclose(frames, wanted, atol=1e-5)


def test_an_encoder_that_would_hear_padding_does_not_bind() -> None:
    names = {each.spec.name: each.binds for each in bound().speech}
    assert names == {"wavlm": True, "wav2vec2": False}
    assert not any(each.binds for each in plain().speech)
    assert not any(each.binds for each in plain().text)


def test_frames_that_are_no_whole_steps_are_read_all_the_same() -> None:
    """Of a front end with another hop: they go through the host."""
    audio, texts = voices()[:2], TEXTS[:2]
    expected = on_host(plain(), audio, texts)
    rows = [computed(samples) for samples in audio]
    there = {each.spec.name: each.encode_bound(texts) for each in bound().text}
    for speech in bound().speech:
        odd, mask = collate(speech.encode(audio), 51)
        assert odd.shape[1] % 2 == 1
        there[speech.spec.name] = BoundFrames(
            OrtValue.ortvalue_from_numpy(odd), OrtValue.ortvalue_from_numpy(mask), len(audio)
        )
    np.testing.assert_allclose(values(bound().ensemble.score(rows, there)), values(expected), atol=LIMIT)


def test_frames_of_another_batch_are_refused() -> None:
    audio, texts = voices()[:3], TEXTS[:3]
    rows = [computed(samples) for samples in audio]
    there = {each.spec.name: each.encode_bound(texts[:2]) for each in bound().text}
    for speech in bound().speech:
        for row, frames in zip(rows, speech.encode(audio), strict=True):
            row[speech.spec.name] = frames
    with pytest.raises(ValueError, match=r"'text' frames of 3 utterances are \[3, F, 12\], got \[2, 16, 12\]"):
        bound().ensemble.score(rows, there)


def test_whisper_gives_the_same_states() -> None:
    here = load_runtime(DEFAULT_BUNDLE, 1).hidden_states
    gpu = GpuSettings(cuda_graphs=(FixedShape(4, 1),))
    there = load_runtime(DEFAULT_BUNDLE, 1, Execution(bound=True, gpu=gpu)).hidden_states
    assert here is not None
    assert there is not None
    generator = np.random.default_rng(0)
    for _ in range(2):
        mels = generator.standard_normal((3, here.bands, 400)).astype(np.float32)  # filled up to the recorded shape
        expected = here(mels)
        assert there(mels).shape == expected.shape
        np.testing.assert_allclose(there(mels), expected, atol=1e-4)


# Recorded work: on a CPU nothing is recorded, but its tensors live at fixed addresses there too.


def graph(*shapes: FixedShape) -> BoundGraph:
    found = read_bundle(bundle())
    session = make_session(found.path / graph_file(found.spec.encoder("wavlm")), 1)
    sizes = [(shape.rows, speech_length_for(shape.seconds * SAMPLE_RATE_HZ, 1)) for shape in shapes]
    return BoundGraph(session, "cpu", [(size, size) for size in sizes])


def run(found: BoundGraph, wave: Samples, rows: int) -> list[OrtValue]:
    padded, mask = collate([wave[:, None]] * rows, speech_length_for(len(wave), 1))
    feed = {SPEECH_AUDIO: padded[:, :, 0], SPEECH_AUDIO_MASK: mask}
    return found.run(feed, (SPEECH_OUTPUT, SPEECH_OUTPUT_MASK))


def test_a_recorded_shape_has_its_own_tensors_and_the_same_values() -> None:
    recorded, ordinary = graph(FixedShape(1, 1), FixedShape(2, 1)), graph()
    addresses: dict[int, set[int]] = {1: set(), 2: set()}
    for rows in (1, 2, 1, 2):
        for wave in voices([15_000, 14_000, 16_000]):
            hidden, mask = run(recorded, wave, rows)
            wanted = run(ordinary, wave, rows)
            np.testing.assert_allclose(hidden.numpy(), wanted[0].numpy(), atol=LIMIT)
            np.testing.assert_array_equal(mask.numpy(), wanted[1].numpy())
            addresses[rows].add(hidden.data_ptr())
    assert [len(found) for found in addresses.values()] == [1, 1]
    assert addresses[1] != addresses[2]


def test_other_shapes_are_not_recorded() -> None:
    recorded, ordinary = graph(FixedShape(1, 1)), graph()
    first, second = (run(recorded, wave, 1)[0] for wave in voices([30_000, 31_000]))
    assert first.data_ptr() != second.data_ptr(), "both are there at the same time"
    for wave in voices([30_000, 6400]):
        np.testing.assert_allclose(run(recorded, wave, 1)[0].numpy(), run(ordinary, wave, 1)[0].numpy(), atol=LIMIT)


def test_what_came_to_the_host_is_not_overwritten() -> None:
    recorded = graph(FixedShape(1, 1))
    padded = {
        length: collate([voices([length])[0][:, None]], speech_length_for(length, 1)) for length in (15_000, 16_000)
    }
    outputs = []
    for audio, mask in padded.values():
        feed = {SPEECH_AUDIO: audio[:, :, 0], SPEECH_AUDIO_MASK: mask}
        outputs += recorded.run(feed, (SPEECH_OUTPUT,), to_host=True)
    assert np.abs(outputs[0].numpy() - outputs[1].numpy()).max() > 1e-3


def test_a_runtime_with_recorded_shapes_says_the_same() -> None:
    gpu = GpuSettings(cuda_graphs=(FixedShape(2, 1), FixedShape(1, 2)))
    runtime = load_runtime(bundle(), 1, Execution(bound=True, gpu=gpu))
    for audio in (voices([15_000, 12_000]), voices([31_000]), voices([15_000, 12_000]), voices([6400])):
        texts = TEXTS[: len(audio)]
        found = on_device(runtime, audio, texts)
        np.testing.assert_allclose(values(found), values(on_host(plain(), audio, texts)), atol=LIMIT)


def test_a_second_batch_waits_where_tensors_are_fixed() -> None:
    for needed in (True, False):
        turn, entered = Turn(needed=needed), threading.Event()

        def second(turn: Turn = turn, entered: threading.Event = entered) -> None:
            with turn:
                entered.set()

        with turn:
            other = threading.Thread(target=second)
            other.start()
            assert entered.wait(0.2) is not needed
        other.join(5)
        assert entered.is_set()
