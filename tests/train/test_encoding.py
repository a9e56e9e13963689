from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.spec import EncoderSpec
from tests.model.tiny_speech import SPEECH_DIM, write_tiny_speech
from train import encoding
from train.encoding import choose_device, half, load_speech, speech_pass
from train.errors import RecipeError

SECOND = 16_000


def spec(folder: Path, dim: int = SPEECH_DIM, compute_type: str = "float32") -> EncoderSpec:
    return EncoderSpec("wavlm", "speech-transformer", dim, 1, (f"path:{folder}",), compute_type=compute_type)


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(400, 20 * SECOND), max_size=40), st.booleans())
def test_passes_hold_every_utterance_once_and_no_more_than_fits(lengths: dict[str, int], equal: bool) -> None:
    passes = list(encoding._passes(lengths, equal))
    assert sorted(name for part in passes for name in part) == sorted(lengths)
    for part in passes:
        longest = max(lengths[name] for name in part)
        assert len(part) == 1 or len(part) * longest <= encoding._PASS
        assert not equal or {lengths[name] for name in part} == {longest}


def test_passes_waste_little() -> None:
    """Short and long utterances do not share a pass just because they follow each other."""
    lengths = {f"clip{n}": (1 if n % 2 else 10) * SECOND for n in range(160)}
    passes = list(encoding._passes(lengths, equal=False))
    padded = sum(len(part) * max(lengths[name] for name in part) for part in passes)
    assert padded <= 1.1 * sum(lengths.values())


def test_a_device_that_was_asked_for_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu, auto in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert choose_device("auto").type == auto
        assert choose_device("cpu").type == "cpu"
    assert choose_device("cuda").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match='"cuda" was asked for, but torch sees no GPU'):
        choose_device("cuda")
    with pytest.raises(RecipeError, match="got 'tpu'"):
        choose_device("tpu")


def test_frames_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    encoder = spec(tmp_path, compute_type="float16")
    np.testing.assert_array_equal(half(np.array([[-65504.0, 1.0]], np.float32), encoder), [[-65504.0, 1.0]])
    assert half(np.zeros((0, 3), np.float32), encoder).shape == (0, 3)
    for value in (7e4, np.inf, np.nan):
        with pytest.raises(RecipeError, match=r"'wavlm' gives frames up to .* got 'float16'"):
            half(np.array([[1.0, value]], np.float32), encoder)


def test_an_encoder_that_is_not_what_the_recipe_says_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_speech(tmp_path / "model")
    with pytest.raises(RecipeError, match=f"frames of width {SPEECH_DIM}, not dim = 1024"):
        load_speech(spec(folder, dim=1024), "cpu")
    with pytest.raises(RecipeError, match="compute_type is one of float32, bfloat16, float16, got 'int8'"):
        load_speech(spec(folder, compute_type="int8"), "cpu")
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"'wavlm': .*do_normalize is true or false, got None"):
        load_speech(spec(folder), "cpu")


def test_a_base_checkpoint_is_encoded_without_padding(tmp_path: Path) -> None:
    """Its front end would hear padding: utterances of other lengths go through it alone."""
    encoder = spec(write_tiny_speech(tmp_path / "model", "hubert", norm="group"))
    network = load_speech(encoder, "cpu")
    rng = np.random.default_rng(0)
    cut = {name: rng.standard_normal(n).astype(np.float32) for name, n in {"a": 8000, "b": 6000, "c": 8000}.items()}
    together = speech_pass(network, cut, encoder)
    for name, samples in cut.items():
        alone = speech_pass(network, {name: samples}, encoder)[name]
        np.testing.assert_allclose(together[name].astype(np.float32), alone.astype(np.float32), rtol=2e-3, atol=2e-3)
