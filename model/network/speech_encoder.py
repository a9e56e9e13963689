"""Frozen speech encoders, reduced to what members read: those of `transformers` (WavLM, HuBERT, wav2vec 2.0, data2vec and
their kin), and emotion2vec.

A checkpoint that was trained further, to tell emotions for instance, is read without its head.

Shapes: B = batch, T = samples at 16 kHz, F = frames (20 ms), d = encoder width.

Source: Chen et al., "WavLM", arXiv:2110.13900; Hsu et al., "HuBERT", arXiv:2106.07447.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from model.audio import SAMPLE_RATE_HZ, Samples
from model.features import Frames, collate, standardise
from model.network.emotion2vec import CONVOLUTIONS, Emotion2Vec
from model.network.emotion2vec_folder import load_emotion2vec, read_layout
from model.network.encoders import summed_states
from model.spec import EncoderSpec

_MISMATCHED_MASKS: Final = "Support for mismatched key_padding_mask and attn_mask"
"""WavLM hands torch a boolean mask and a bias of floats; torch adds them up rightly, and says that it may stop to."""
_OVER_TIME: Final = "group"
"""A front end whose first layer normalises each channel over time, padding included."""
_NORM: Final = "feat_extract_norm"
_DATA2VEC: Final = "data2vec-audio"
"""Its front end normalises every frame by itself, but of its five positional convolutions in a row only the first finds zeros
where there is padding."""


class SpeechEncoder(nn.Module):
    """A frozen speech encoder: waveform `float32 [B, T]`, mask `bool [B, T]` -> sum of its last four hidden states.

    Of emotion2vec it is the last hidden state alone: what its authors publish as its features.

    Padding is on the right and never changes a result: frames whose receptive field reaches into it do not count, the
    model sets them to zero before its positional convolution, and attention masks them. That holds where the convolutional
    front end normalises every frame by itself (the "large" checkpoints). "base" checkpoints normalise each channel over
    the whole padded length, and data2vec's positional convolutions hear padding; these take utterances of one length only
    (`needs_equal_lengths`).

    Args:
        backbone: a model of `transformers` with a front end of strided convolutions (`conv_kernel`, `conv_stride`), or an
            emotion2vec.

    Raises:
        ValueError: if it has no such front end.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(requires_grad=False)
        if isinstance(backbone, Emotion2Vec):
            self.dim, self.needs_equal_lengths, self._convolutions = backbone.layout.dim, False, CONVOLUTIONS
            return
        config: Any = backbone.config
        if not hasattr(config, "conv_kernel") or not (config.model_type == _DATA2VEC or hasattr(config, _NORM)):
            raise ValueError(
                f"a speech encoder reads a waveform through strided convolutions, as WavLM, HuBERT and wav2vec 2.0 do: "
                f"{config.model_type!r} is another kind of model"
            )
        self.dim = int(config.hidden_size)
        self.needs_equal_lengths = _hears_padding(config)
        self._convolutions = tuple(zip(config.conv_kernel, config.conv_stride, strict=True))

    @property
    def receptive_field(self) -> int:
        """Samples that one frame hears: the shortest utterance."""
        heard = 1
        for kernel, stride in reversed(self._convolutions):
            heard = (heard - 1) * stride + kernel
        return int(heard)

    def forward(self, audio: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The summed hidden states `float32 [B, F, d]` and their mask `bool [B, F]`.

        Raises:
            ValueError: if an utterance is shorter than one frame, or has padding although the model needs equal lengths.
        """
        lengths = mask.sum(dim=1)
        if int(lengths.min()) < self.receptive_field:
            raise ValueError(
                f"an utterance has at least the {self.receptive_field} samples that one frame hears, got "
                f"{lengths.tolist()} samples"
            )
        if self.needs_equal_lengths and not bool(mask.all()):
            raise ValueError(
                f"this model normalises over the padded length, so padding would change its frames: it takes utterances of "
                f"one length, got {lengths.tolist()} samples"
            )
        return self.encode(audio, mask)

    def encode(self, audio: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, without looking at the lengths: the part of it that a graph can hold."""
        frames = self.frame_counts(mask.sum(dim=1))
        hidden = self._hidden(audio, mask, frames)
        return hidden, torch.arange(hidden.shape[1], device=hidden.device) < frames.unsqueeze(1)

    def _hidden(self, audio: Tensor, mask: Tensor, frames: Tensor) -> Tensor:
        if isinstance(self.backbone, Emotion2Vec):
            last: Tensor = self.backbone(audio, frames)
            return last
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_MISMATCHED_MASKS)
            output = self.backbone(audio, attention_mask=mask.to(torch.int64), output_hidden_states=True)
        return summed_states(output.hidden_states, output.last_hidden_state)

    def frame_counts(self, samples: Tensor) -> Tensor:
        """Frames whose whole receptive field lies inside the first `samples` samples: `int64 [B]` -> `int64 [B]`."""
        for kernel, stride in self._convolutions:
            samples = torch.div(samples - kernel, stride, rounding_mode="floor") + 1
        return samples


def load_speech_encoder(folder: Path, attention: Literal["eager", "sdpa"] | None = None) -> SpeechEncoder:
    """Loads a speech encoder from a folder in the format of `transformers`, or one that `write_folder` made of an emotion2vec.

    Args:
        folder: holds the model.
        attention: which of two equal computations, None for the faster one that the model has; the exported graph is made
            of "eager". An emotion2vec has one.

    Raises:
        OSError: if the folder holds no such model.
        ValueError: if it is another kind of model.
    """
    if layout := read_layout(folder):
        return SpeechEncoder(load_emotion2vec(folder, layout))
    return SpeechEncoder(AutoModel.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32))


def wants_standardised(folder: Path) -> bool:
    """Whether a checkpoint was trained on utterances of mean 0 and variance 1 (`do_normalize`).

    Raises:
        OSError: if the folder has no preprocessor_config.json.
        ValueError: if it does not say, or wants another sampling rate than ours.
    """
    path = folder / "preprocessor_config.json"
    settings: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    wanted = settings.get("do_normalize")
    if not isinstance(wanted, bool):
        raise ValueError(f"{path}: do_normalize is true or false, got {wanted!r}")
    if settings.get("sampling_rate", SAMPLE_RATE_HZ) != SAMPLE_RATE_HZ:
        raise ValueError(f"{path}: sampling_rate is {SAMPLE_RATE_HZ}, got {settings['sampling_rate']!r}")
    return wanted


def described(encoder: EncoderSpec, folder: Path) -> EncoderSpec:
    """An encoder's description with what the settings of its checkpoint say of its input.

    Raises:
        OSError: if the folder holds no settings.
        ValueError: as `wants_standardised`.
    """
    equal = False if read_layout(folder) else _hears_padding(AutoConfig.from_pretrained(folder))
    return replace(encoder, standardised=wants_standardised(folder), equal_lengths=equal)


def _hears_padding(config: Any) -> bool:
    return bool(config.model_type == _DATA2VEC or config.feat_extract_norm == _OVER_TIME)


def _in_float32(convolution: nn.Conv1d) -> None:
    """Has a convolution computed in float32 wherever less is asked for."""
    computed = convolution.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return computed(x.float())

    convolution.forward = forward  # type: ignore[assignment]  # of this instance alone


class SpeechFrames:
    """A speech encoder on arrays.

    Args:
        network: the encoder.
        standardised: whether utterances are brought to mean 0 and variance 1 first.
        device: where it runs; the network is moved there.
        autocast: arithmetic of matrix products and convolutions; None keeps float32.
    """

    def __init__(
        self, network: SpeechEncoder, standardised: bool, device: torch.device, autocast: torch.dtype | None = None
    ) -> None:
        self._network = network.to(device)
        self._standardised, self._device, self._autocast = standardised, device, autocast
        if device.type == "cpu" and autocast is not None:
            # oneDNN gets convolutions in groups wrong in bfloat16 where the processor has AMX (docs/LOG.md, 2026-11-22).
            for part in network.modules():
                if isinstance(part, nn.Conv1d) and part.groups > 1:
                    _in_float32(part)

    @property
    def dim(self) -> int:
        """Width of a frame."""
        return self._network.dim

    @property
    def needs_equal_lengths(self) -> bool:
        """Whether only utterances of one length can share a batch."""
        return self._network.needs_equal_lengths

    @torch.no_grad()
    def __call__(self, audio: Sequence[Samples]) -> list[Frames]:
        """Frames `float32 [F, d]` of each utterance `float32 [T]`, one pass over all of them, whole.

        Raises:
            ValueError: as `SpeechEncoder.forward`.
        """
        waves = [standardise(samples) if self._standardised else samples for samples in audio]
        padded, mask = collate([wave[:, None] for wave in waves], 1)
        inputs = (torch.from_numpy(padded[:, :, 0]).to(self._device), torch.from_numpy(mask).to(self._device))
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            hidden, kept = self._network(*inputs)
        rows: npt.NDArray[np.float32] = hidden.cpu().numpy()
        return [
            np.ascontiguousarray(frames[: int(count)])
            for frames, count in zip(rows, kept.sum(dim=1).cpu(), strict=True)
        ]
