"""Against `transformers` itself: what is summed, which frames count, what padding and neighbours change (nothing)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

from model.audio import Samples
from model.network.speech_encoder import (
    SpeechEncoder,
    SpeechFrames,
    described,
    load_speech_encoder,
    wants_standardised,
)
from model.spec import EncoderSpec
from tests.model.tiny_audio import relative, waves
from tests.model.tiny_speech import KINDS, LAYERS, SPEECH_DIM, tiny_speech, write_tiny_speech

TOLERANCE = 1e-4
CPU = torch.device("cpu")
LENGTHS = (16_000, 6_400, 11_111, 20_007)


def inputs(audio: list[Samples], length: int) -> tuple[Tensor, Tensor]:
    padded, mask = torch.zeros(len(audio), length), torch.zeros(len(audio), length, dtype=torch.bool)
    for row, wave in enumerate(audio):
        padded[row, : len(wave)] = torch.from_numpy(wave)
        mask[row, : len(wave)] = True
    return padded, mask


@pytest.fixture(scope="module", params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("standardised", [True, False])
def test_neighbours_do_not_change_a_result(kind: str, standardised: bool) -> None:
    encode = SpeechFrames(SpeechEncoder(tiny_speech(kind)), standardised, CPU)
    audio = waves(*LENGTHS)
    together = encode(audio)
    for wave, frames in zip(audio, together, strict=True):
        (alone,) = encode([wave])
        assert relative(frames, alone) < TOLERANCE


def test_padding_does_not_change_a_result_nor_does_what_it_holds(kind: str) -> None:
    network = SpeechEncoder(tiny_speech(kind))
    audio = waves(8_000)
    alone, _ = network(*inputs(audio, 8_000))
    for filling in (0.0, 0.7):
        padded, mask = inputs(audio, 24_000)
        hidden, kept = network(padded.masked_fill(~mask, filling), mask)
        assert relative(hidden[kept], alone[0]) < TOLERANCE


def test_sums_the_last_four_states_of_which_the_last_is_normed(kind: str) -> None:
    backbone: Any = tiny_speech(kind)
    padded, mask = inputs(waves(9_000), 9_000)
    with torch.no_grad():
        output = backbone(padded, output_hidden_states=True)
        last_layer = output.hidden_states[LAYERS]
    normed = backbone.encoder.layer_norm(last_layer)
    torch.testing.assert_close(normed, output.last_hidden_state)
    assert relative(normed.detach(), last_layer) > 0.01, "in these models the final norm matters"
    hidden, _ = SpeechEncoder(backbone)(padded, mask)
    torch.testing.assert_close(hidden, sum(output.hidden_states[LAYERS - 3 : LAYERS]) + normed)
    assert hidden.shape[2] == SPEECH_DIM


@settings(deadline=None)
@given(st.lists(st.integers(400, 400_000), min_size=1, max_size=5))
def test_frames_are_counted_by_the_model_s_own_rule(lengths: list[int]) -> None:
    backbone: Any = tiny_speech("hubert")
    given_lengths = torch.tensor(lengths)
    expected = backbone._get_feat_extract_output_lengths(given_lengths)
    assert torch.equal(SpeechEncoder(backbone).frame_counts(given_lengths), expected)


def test_a_frame_is_20_ms_and_the_mask_ends_with_the_utterance() -> None:
    hidden, kept = SpeechEncoder(tiny_speech())(*inputs(waves(16_000, 8_000), 16_000))
    assert hidden.shape == (2, 49, SPEECH_DIM)
    assert kept.sum(dim=1).tolist() == [49, 24]
    assert kept[1, :24].all()


def test_an_utterance_shorter_than_one_frame_is_refused() -> None:
    """Else the attention mask of its frames would be that of no frame at all, which the model takes for all of them."""
    network = SpeechEncoder(tiny_speech())
    assert network.receptive_field == 400
    assert network(*inputs(waves(400), 400))[0].shape == (1, 1, SPEECH_DIM)
    with pytest.raises(ValueError, match=r"at least the 400 samples that one frame hears, got \[399, 8000\]"):
        network(*inputs(waves(399, 8_000), 8_000))


# The front end of "base" checkpoints normalises over time, padding included.


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_a_front_end_that_hears_padding_takes_equal_lengths_only(kind: str) -> None:
    backbone = tiny_speech(kind, norm="group")
    network = SpeechEncoder(backbone)
    assert network.needs_equal_lengths
    assert not SpeechEncoder(tiny_speech(kind)).needs_equal_lengths
    audio = waves(8_000)
    alone, _ = network(*inputs(audio, 8_000))
    padded, mask = inputs(audio, 16_000)
    with torch.no_grad():
        leaked = backbone(padded).last_hidden_state[:, :24]
        clean = backbone(padded[:, :8_000]).last_hidden_state
    assert relative(leaked, clean) > 0.01, "else there would be nothing to refuse"
    with pytest.raises(ValueError, match=r"takes utterances of one length, got \[8000\] samples"):
        network(padded, mask)
    pair = waves(8_000, 8_000)
    together, _ = network(*inputs(pair, 8_000))
    assert relative(together[:1], alone) < TOLERANCE


def tiny_data2vec() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Data2VecAudioConfig(
        hidden_size=SPEECH_DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8,) * 7,
        num_conv_pos_embedding_groups=2,
    )
    network: PreTrainedModel = Data2VecAudioModel(config)
    network.train(mode=False)
    return network


def test_data2vec_hears_padding_so_it_takes_equal_lengths_only(tmp_path: Path) -> None:
    backbone: Any = tiny_data2vec()
    network = SpeechEncoder(backbone)
    assert network.needs_equal_lengths
    padded, mask = inputs(waves(8_000), 16_000)
    with torch.no_grad():
        leaked = backbone(padded, attention_mask=mask.long()).last_hidden_state[:, :24]
        output = backbone(padded[:, :8_000], output_hidden_states=True)
    assert relative(leaked, output.last_hidden_state) > 0.01, "else there would be nothing to refuse"
    with pytest.raises(ValueError, match=r"takes utterances of one length, got \[8000\] samples"):
        network(padded, mask)
    hidden, kept = network(padded[:, :8_000], mask[:, :8_000])
    torch.testing.assert_close(hidden, sum(output.hidden_states[-4:]), atol=1e-4, rtol=1e-4)
    assert kept.all()
    backbone.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 16000}')
    spec = EncoderSpec("emotions", "speech-transformer", SPEECH_DIM, 1)
    assert described(spec, tmp_path) == replace(spec, standardised=True, equal_lengths=True)
    again, _ = load_speech_encoder(tmp_path)(padded[:, :8_000], mask[:, :8_000])
    torch.testing.assert_close(again, hidden)


def test_a_checkpoint_that_tells_emotions_is_read_without_its_head(tmp_path: Path) -> None:
    """As checkpoints are published that were trained further on emotional speech."""
    config: Any = tiny_speech("wav2vec2").config
    config.num_labels = 3
    torch.manual_seed(0)
    classifier: Any = Wav2Vec2ForSequenceClassification(config)
    classifier.save_pretrained(tmp_path)
    found, expected = load_speech_encoder(tmp_path), SpeechEncoder(classifier.wav2vec2)
    assert found.state_dict().keys() == expected.state_dict().keys()
    audio = inputs(waves(9_000, 6_000), 9_000)
    for ours, theirs in zip(found(*audio), expected(*audio), strict=True):
        torch.testing.assert_close(ours, theirs)


# Loading.


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_description_says_what_the_settings_say(norm: str, tmp_path: Path) -> None:
    folder = write_tiny_speech(tmp_path / norm, "hubert", norm, normalise=norm == "layer")
    spec = EncoderSpec("hubert", "speech-transformer", SPEECH_DIM, 1)
    assert described(spec, folder) == replace(spec, standardised=norm == "layer", equal_lengths=norm == "group")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_computations_of_attention_agree(attention: Literal["eager", "sdpa"], tmp_path: Path) -> None:
    folder, audio = write_tiny_speech(tmp_path / "hubert", "hubert"), inputs(waves(9_000, 5_000), 9_000)
    expected, kept = load_speech_encoder(folder)(*audio)
    assert relative(load_speech_encoder(folder, attention)(*audio)[0][kept], expected[kept]) < TOLERANCE


def test_a_folder_is_loaded_as_it_was_saved(kind: str, tmp_path: Path) -> None:
    folder = write_tiny_speech(tmp_path / kind, kind)
    audio = inputs(waves(8_000), 8_000)
    expected, _ = SpeechEncoder(tiny_speech(kind))(*audio)
    network = load_speech_encoder(folder)
    torch.testing.assert_close(network(*audio)[0], expected)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.backbone.training


def test_standardisation_is_that_of_the_feature_extractor() -> None:
    audio = waves(7_000, 5_000)
    heard: list[Tensor] = []

    class Listening(SpeechEncoder):
        def forward(self, audio: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            heard.append(audio)
            return super().forward(audio, mask)

    SpeechFrames(Listening(tiny_speech()), True, CPU)(audio)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)  # type: ignore[no-untyped-call]
    expected = extractor(audio, sampling_rate=16_000, padding=True, return_tensors="pt").input_values
    torch.testing.assert_close(heard[0], expected, atol=1e-4, rtol=1e-4)


def test_the_settings_say_whether_to_standardise(tmp_path: Path) -> None:
    for wanted in (True, False):
        folder = write_tiny_speech(tmp_path / str(wanted), normalise=wanted)
        assert wants_standardised(folder) is wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling_rate": 16_000}, "do_normalize is true or false, got None"),
        ({"do_normalize": "yes"}, "do_normalize is true or false, got 'yes'"),
        ({"do_normalize": True, "sampling_rate": 8_000}, "sampling_rate is 16000, got 8000"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        wants_standardised(tmp_path)


def test_a_model_of_another_kind_is_refused() -> None:
    words = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match="'bert' is another kind of model"):
        SpeechEncoder(words)


@pytest.mark.parametrize("arithmetic", [torch.bfloat16, torch.float16])
def test_lower_arithmetic_stays_near(kind: str, arithmetic: torch.dtype) -> None:
    audio = waves(*LENGTHS[:2])
    exact = SpeechFrames(SpeechEncoder(tiny_speech(kind)), True, CPU)(audio)
    rounded = SpeechFrames(SpeechEncoder(tiny_speech(kind)), True, CPU, arithmetic)(audio)
    for found, expected in zip(rounded, exact, strict=True):
        assert found.dtype == np.float32
        assert 0 < relative(found, expected) < 0.1
