from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.text import MAX_TOKENS, TextTokenizer, TokenBatch, word_frames
from tests.model.tiny import WORDS, write_tiny_tokenizer

PAD, CLS, SEP, UNKNOWN = range(4)
FIRST_WORD = 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tiny_tokenizer(path)
    return TextTokenizer(path)


def test_marks_padding_and_special_tokens(tokenizer: TextTokenizer) -> None:
    batch = tokenizer.encode(["I am happy", "no"])
    assert batch.ids.tolist() == [[CLS, 4, 5, 7, SEP], [CLS, 10, SEP, PAD, PAD]]
    assert batch.mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.keep.tolist() == [[False, True, True, True, False], [False, True, False, False, False]]
    assert batch.ids.dtype == np.int64


def test_an_unknown_word_is_a_word(tokenizer: TextTokenizer) -> None:
    batch = tokenizer.encode(["hovercraft"])
    assert batch.ids.tolist() == [[CLS, UNKNOWN, SEP]]
    assert batch.keep.tolist() == [[False, True, False]]


@pytest.mark.parametrize("text", ["", "   ", "\t\n"])
def test_a_blank_text_has_no_words(tokenizer: TextTokenizer, text: str) -> None:
    batch = tokenizer.encode([text, "no"])
    assert not batch.keep[0].any()
    hidden = np.ones((*batch.ids.shape, 5), np.float32)
    assert [frames.shape for frames in word_frames(hidden, batch)] == [(0, 5), (1, 5)]


def test_long_text_is_cut_and_keeps_its_special_tokens(tokenizer: TextTokenizer) -> None:
    batch = tokenizer.encode(["no " * 1000])
    assert batch.ids.shape == (1, MAX_TOKENS)
    assert (batch.ids[0, 0], batch.ids[0, -1]) == (CLS, SEP)
    assert batch.keep.sum() == MAX_TOKENS - 2


def test_no_texts_are_an_empty_batch(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode([]).ids.shape == (0, 1)


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=10), min_size=1, max_size=5))
def test_a_text_keeps_its_words_whatever_its_neighbours(tokenizer: TextTokenizer, texts: list[list[str]]) -> None:
    batch = tokenizer.encode([" ".join(words) for words in texts])
    for row, words in enumerate(texts):
        assert [WORDS[token - FIRST_WORD] for token in batch.ids[row, batch.keep[row]]] == words


def test_word_frames_are_the_kept_rows() -> None:
    keep = np.array([[False, True, True], [False, False, False]])
    batch = TokenBatch(np.zeros((2, 3), np.int64), np.ones((2, 3), np.bool_), keep)
    hidden = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    first, second = word_frames(hidden, batch)
    assert first.tolist() == [[2, 3], [4, 5]]
    assert second.shape == (0, 2)
    assert first.dtype == np.float32


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
        TextTokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(FileNotFoundError):
        TextTokenizer(tmp_path / "absent.json")
