"""Text to tokens and hidden states back to frames: the same at training and run time.

Shapes: B = batch, T = tokens with padding and special tokens, F = tokens that stand for words, d = encoder width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from model.features import Frames

MAX_TOKENS: Final = 128
"""Longer text is cut: 20 s of fast speech hold about 100 tokens."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Tokens of several texts, right padded.

    Attributes:
        ids: `int64 [B, T]`.
        mask: `bool [B, T]`, true on tokens, special ones included.
        keep: `bool [B, T]`, true on tokens that stand for words.
    """

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]
    keep: npt.NDArray[np.bool_]


class TextTokenizer:
    """A tokenizer file of the `tokenizers` library.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no tokenizer.
    """

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for a file that it cannot read
            raise ValueError(f"{path} is no tokenizer: {error}") from error
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Tokens of `texts`; the tokenizer's own special-tokens mask says what is not a word. A blank text has no words."""
        encodings = self._tokenizer.encode_batch([text if text.strip() else "" for text in texts])
        shape = (len(encodings), max([1, *(len(encoding.ids) for encoding in encodings)]))
        batch = TokenBatch(np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_))
        for row, encoding in enumerate(encodings):
            count = len(encoding.ids)
            batch.ids[row, :count] = encoding.ids
            batch.mask[row, :count] = True
            batch.keep[row, :count] = np.array(encoding.special_tokens_mask) == 0
        return batch


def word_frames(hidden: Frames, batch: TokenBatch) -> list[Frames]:
    """Hidden states `[B, T, d]` of the words alone: B arrays `float32 [F, d]`; F is 0 for an empty text."""
    return [np.ascontiguousarray(rows[keep], np.float32) for rows, keep in zip(hidden, batch.keep, strict=True)]
