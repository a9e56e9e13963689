"""Encoders of recipes that want a GPU, in their published sizes: run on shapes, nothing downloaded, nothing allocated."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel
from transformers.initialization import no_init_weights

from model.network.encoders import TextEncoder
from model.network.published import PUBLISHED, parameter_count, published_config
from model.network.speech_encoder import SpeechEncoder
from tests.train.synthetic import RECIPES
from train.config import load_recipe

MILLIONS = {
    "microsoft/wavlm-large": 316,
    "facebook/hubert-large-ls960-ft": 316,
    "Systran/faster-whisper-large-v3": 637,
    "FacebookAI/roberta-large": 355,
    "answerdotai/ModernBERT-large": 395,
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim": 164,  # 315 of wav2vec 2.0 large less twelve layers of 12.6
    "google-bert/bert-base-uncased": 109.5,
}
SPEECH = [
    "microsoft/wavlm-large",
    "facebook/hubert-large-ls960-ft",
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim",
]
TEXT = ["FacebookAI/roberta-large", "answerdotai/ModernBERT-large", "google-bert/bert-base-uncased"]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_has_as_many_parameters_as_published(name: str) -> None:
    assert parameter_count(published_config(name)) / 1e6 == pytest.approx(MILLIONS[name], rel=0.005)


@pytest.mark.parametrize("name", SPEECH)
def test_speech_gives_a_frame_every_20_ms(name: str) -> None:
    with FakeTensorMode(), no_init_weights(), torch.no_grad():
        encoder = SpeechEncoder(AutoModel.from_config(published_config(name)))  # type: ignore[no-untyped-call]
        assert not encoder.needs_equal_lengths
        hidden, mask = encoder.encode(torch.zeros(3, 20 * 16_000), torch.ones(3, 20 * 16_000, dtype=torch.bool))
    assert (tuple(hidden.shape), tuple(mask.shape)) == ((3, 999, 1024), (3, 999))
    assert hidden.dtype == torch.float32


@pytest.mark.parametrize("name", TEXT)
def test_text_gives_a_frame_for_every_token(name: str) -> None:
    with FakeTensorMode(), no_init_weights(), torch.no_grad():
        encoder = TextEncoder(AutoModel.from_config(published_config(name)))  # type: ignore[no-untyped-call]
        hidden = encoder(torch.zeros(3, 128, dtype=torch.int64), torch.ones(3, 128, dtype=torch.bool))
    assert tuple(hidden.shape) == (3, 128, published_config(name).hidden_size)


def test_the_encoders_of_recipes_for_a_gpu_are_these() -> None:
    """With the widths that the recipes give them."""
    recipes = [load_recipe(RECIPES / f"{name}.toml") for name in ("medusa", "iemocap")]
    encoders = [encoder for recipe in recipes for encoder in recipe.encoder_specs().values()]
    assert {source for encoder in encoders for source in encoder.sources} == {f"hub:{name}" for name in PUBLISHED}
    for encoder in encoders:
        assert published_config(encoder.sources[0].removeprefix("hub:")).hidden_size == encoder.dim
