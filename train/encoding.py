"""Frozen transformers over utterances and texts: which arithmetic, what shares a pass.

Utterances and texts are batched by length, so that little is padding. No result depends on who shares a pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils import logging as transformers_logging

from model.audio import SAMPLE_RATE_HZ, Samples
from model.features import Frames
from model.network.encoders import load_text_encoder
from model.network.speech_encoder import SpeechFrames, load_speech_encoder, wants_standardised
from model.sources import resolve_encoder
from model.spec import EncoderSpec
from model.text import TextTokenizer, word_frames
from train.errors import RecipeError

HalfFrames = npt.NDArray[np.float16]

_PASS: Final = 80 * SAMPLE_RATE_HZ
"""Samples, padding included, of one pass of a speech transformer: its widest activations then take about half a gigabyte."""
_TEXT_PASS: Final = 512 * 384
"""Texts times width of one pass of a text encoder."""
_ARITHMETIC: Final[dict[str, torch.dtype | None]] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""A transformer's `compute_type` -> what its matrix products are rounded to; sums over layers are float32."""


def load_speech(encoder: EncoderSpec, device: torch.device) -> SpeechFrames:
    """A speech transformer of a recipe, ready to run.

    Raises:
        SourceError: if no source has its weights.
        RecipeError: if they are another kind of model or of another width.
    """
    folder = resolve_encoder(encoder)
    try:
        with _quiet():
            network, standardised = load_speech_encoder(folder), wants_standardised(folder)
    except ValueError as error:
        raise RecipeError(f"encoder {encoder.name!r}: {error}") from error
    _check_width(encoder, network.dim)
    return SpeechFrames(network, standardised, device, _autocast(encoder))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar that transformers draws for the weights it loads: ours tells what takes long."""
    drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    try:
        yield
    finally:
        if drawn:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_width(encoder: EncoderSpec, dim: int) -> None:
    if dim != encoder.dim:
        raise RecipeError(f"encoder {encoder.name!r}: its weights give frames of width {dim}, not dim = {encoder.dim}")


def _autocast(encoder: EncoderSpec) -> torch.dtype | None:
    if encoder.compute_type not in _ARITHMETIC:
        known = ", ".join(_ARITHMETIC)
        raise RecipeError(f"encoder {encoder.name!r}: compute_type is one of {known}, got {encoder.compute_type!r}")
    return _ARITHMETIC[encoder.compute_type]


def half(frames: Frames, encoder: EncoderSpec) -> HalfFrames:
    """Frames as they are cached.

    Raises:
        RecipeError: if float16 cannot hold them.
    """
    limit = float(np.finfo(np.float16).max)
    if len(frames) and not np.abs(frames).max() <= limit:  # not so for NaN either
        raise RecipeError(
            f"encoder {encoder.name!r} gives frames up to {np.abs(frames).max():g}, and the cache holds float16, at most "
            f'{limit:g}: compute_type = "float32" is the safe arithmetic, got {encoder.compute_type!r}'
        )
    return frames.astype(np.float16)


def speech_pass(network: SpeechFrames, cut: Mapping[str, Samples], encoder: EncoderSpec) -> dict[str, HalfFrames]:
    """Frames of utterances, whole, in passes of like lengths."""
    frames: dict[str, HalfFrames] = {}
    for part in _passes({name: len(samples) for name, samples in cut.items()}, network.needs_equal_lengths):
        found = network([cut[name] for name in part])
        frames |= {name: half(rows, encoder) for name, rows in zip(part, found, strict=True)}
    return frames


def _passes(lengths: Mapping[str, int], equal: bool) -> Iterator[list[str]]:
    """Cuts names into passes by rising length; padding counts, and a pass has at least one name."""
    part: list[str] = []
    for name in sorted(lengths, key=lambda name: (lengths[name], name)):
        full = (len(part) + 1) * lengths[name] > _PASS
        if part and (full or (equal and lengths[part[0]] != lengths[name])):
            yield part
            part = []
        part.append(name)
    if part:
        yield part


class TextPasses:
    """A text transformer of a recipe, ready to run.

    Raises:
        SourceError: if no source has its weights.
        RecipeError: if they are of another width.
    """

    def __init__(self, encoder: EncoderSpec, device: torch.device) -> None:
        folder = resolve_encoder(encoder)
        self._device, self._autocast = device, _autocast(encoder)
        self._tokenizer = TextTokenizer(folder / "tokenizer.json")
        with _quiet():
            self._network = load_text_encoder(folder)
        _check_width(encoder, self._network.dim)
        self._network.to(self._device)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[Frames]:
        """Frames `float32 [F, d]` of the words of each text."""
        size = max(1, _TEXT_PASS // self._network.dim)
        frames: list[Frames] = []
        for start in range(0, len(texts), size):
            tokens = self._tokenizer.encode(texts[start : start + size])
            ids, mask = (torch.from_numpy(values).to(self._device) for values in (tokens.ids, tokens.mask))
            with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
                hidden = self._network(ids, mask)
            frames += word_frames(hidden.cpu().numpy(), tokens)
        return frames
