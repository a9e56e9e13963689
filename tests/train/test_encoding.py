from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import logging as transformers_logging

from model.spec import EncoderSpec
from tests.model.tiny import TEXT_DIM, write_tiny_text_encoder
from tests.model.tiny_speech import SPEECH_DIM, write_tiny_speech
from train import encoding
from train.encoding import TextPasses, half, load_speech, speech_pass
from train.errors import RecipeError
from train.execution import CPU

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


def test_loading_draws_no_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The bar of transformers is off while we load, and afterwards as it was."""
    write_tiny_text_encoder(tmp_path / "text")
    words = EncoderSpec("text", "text-transformer", TEXT_DIM, 1, (f"path:{tmp_path / 'text'}",))
    voice = spec(write_tiny_speech(tmp_path / "speech"))
    before = transformers_logging.is_progress_bar_enabled()
    try:
        for drawn in (True, False):
            _draw_bars(drawn)
            capfd.readouterr()
            TextPasses(words, CPU)
            load_speech(voice, CPU)
            assert capfd.readouterr().err == ""
            assert transformers_logging.is_progress_bar_enabled() is drawn
    finally:
        _draw_bars(before)


def _draw_bars(drawn: bool) -> None:
    if drawn:
        transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    else:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


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
        load_speech(spec(folder, dim=1024), CPU)
    with pytest.raises(RecipeError, match="compute_type is one of float32, bfloat16, float16, got 'int8'"):
        load_speech(spec(folder, compute_type="int8"), CPU)
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"'wavlm': .*do_normalize is true or false, got None"):
        load_speech(spec(folder), CPU)


def test_a_base_checkpoint_is_encoded_without_padding(tmp_path: Path) -> None:
    """Its front end would hear padding: utterances of other lengths go through it alone."""
    encoder = spec(write_tiny_speech(tmp_path / "model", "hubert", norm="group"))
    network = load_speech(encoder, CPU)
    rng = np.random.default_rng(0)
    cut = {name: rng.standard_normal(n).astype(np.float32) for name, n in {"a": 8000, "b": 6000, "c": 8000}.items()}
    together = speech_pass(network, cut, encoder)
    for name, samples in cut.items():
        alone = speech_pass(network, {name: samples}, encoder)[name]
        np.testing.assert_allclose(together[name].astype(np.float32), alone.astype(np.float32), rtol=2e-3, atol=2e-3)
