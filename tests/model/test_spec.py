from dataclasses import replace

import pytest

from model.spec import EncoderSpec, EnsembleSpec, SpecError
from tests.model.tiny import tiny_spec


def test_what_a_checkpoint_says_of_its_input_survives() -> None:
    speech = EncoderSpec("wavlm", "speech-transformer", 16, 1, standardised=True, equal_lengths=True)
    spec = replace(tiny_spec(), encoders=(*tiny_spec().encoders, speech))
    assert EnsembleSpec.from_dict(spec.to_dict()) == spec
    assert not tiny_spec().encoders[0].standardised


@pytest.mark.parametrize("recorded", ["standardised", "equal_lengths"])
def test_only_speech_transformers_read_utterances_so(recorded: str) -> None:
    with pytest.raises(SpecError, match="'text': only a speech-transformer .* not a text-transformer"):
        EncoderSpec("text", "text-transformer", 16, 1, **{recorded: True})  # type: ignore[arg-type]  # one of two flags
