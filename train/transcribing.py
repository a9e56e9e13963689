"""The pass of Whisper through the utterances of a shard: frames and transcripts."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from model.audio import Samples, bucket_length
from model.network.whisper_encoder import TorchHiddenStates, load_whisper_encoder
from model.sources import resolve_encoder
from model.spec import EncoderSpec
from model.transcript import Transcript
from model.whisper import Whisper
from train.errors import RecipeError
from train.execution import CPU

HalfFrames = npt.NDArray[np.float16]

_BATCH: Final = 16


def load_whisper(encoder: EncoderSpec, device: torch.device = CPU) -> Whisper:
    """Whisper with the frames that the daemon computes.

    Args:
        encoder: of kind "whisper-ctranslate2", which runs on `device`, or "whisper-onnx", whose frames are made on the CPU.
        device: where an encoder of the first kind runs.

    Raises:
        SourceError: if no source has its weights.
        RecipeError: if the device cannot compute as the recipe says.
    """
    path, place = resolve_encoder(encoder), "cpu" if encoder.states else device.type
    states = TorchHiddenStates(load_whisper_encoder(encoder)) if encoder.states else None
    try:
        return Whisper(path, place, encoder.compute_type, encoder=states)
    except (ValueError, RuntimeError) as error:
        raise RecipeError(
            f"encoder {encoder.name!r} cannot run with compute_type {encoder.compute_type!r} on {place}: {error}"
        ) from error


def whisper_pass(
    whisper: Whisper, cut: Mapping[str, Samples], *, transcribe: bool
) -> tuple[dict[str, HalfFrames], dict[str, Transcript]]:
    """Frames and, where asked for, transcripts of clips, in batches of one bucket."""
    buckets: dict[int, list[str]] = {}
    for name, samples in cut.items():
        buckets.setdefault(bucket_length(len(samples)), []).append(name)
    frames: dict[str, HalfFrames] = {}
    transcripts: dict[str, Transcript] = {}
    for members in buckets.values():
        for start in range(0, len(members), _BATCH):
            part = members[start : start + _BATCH]
            encoded = whisper.encode([cut[name] for name in part])
            frames |= {name: rows.astype(np.float16) for name, rows in zip(part, encoded.frames, strict=True)}
            if transcribe:
                transcripts |= dict(zip(part, whisper.transcribe(encoded), strict=True))
    return frames, transcripts
