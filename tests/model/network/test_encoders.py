"""Text encoders of the two families that the full recipe reads, each with a tokenizer of its own family."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from model.features import Frames
from model.network.encoders import TextEncoder, load_text_encoder
from model.text import TextTokenizer, word_frames
from tests.model.tiny_text import DIM, LAYERS, TEXTS, Family, write_tiny_text


@pytest.fixture(scope="module", params=["roberta", "modernbert"])
def family(request: pytest.FixtureRequest) -> Family:
    return "roberta" if request.param == "roberta" else "modernbert"


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_text(family, tmp_path_factory.mktemp("text") / family)


def frames_of(network: TextEncoder, folder: Path, texts: tuple[str, ...]) -> list[Frames]:
    batch = TextTokenizer(folder / "tokenizer.json").encode(texts)
    with torch.no_grad():
        hidden = network(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).numpy()
    return word_frames(hidden, batch)


def test_special_tokens_are_left_out_by_the_tokenizer_s_own_mask(family: Family, folder: Path) -> None:
    batch = TextTokenizer(folder / "tokenizer.json").encode(TEXTS)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin, end = ("<s>", "</s>") if family == "roberta" else ("[CLS]", "[SEP]")
    for row, text in enumerate(TEXTS):
        words = plain.encode(text, add_special_tokens=False).ids
        assert batch.ids[row, batch.keep[row]].tolist() == words
        assert batch.ids[row, batch.mask[row]].tolist() == [plain.token_to_id(begin), *words, plain.token_to_id(end)]
        assert plain.decode(words) == text


def test_neighbours_and_padding_do_not_change_a_result(folder: Path) -> None:
    network = load_text_encoder(folder)
    together = frames_of(network, folder, TEXTS)
    assert together[2].shape == (0, DIM)
    for text, frames in zip(TEXTS, together, strict=True):
        (alone,) = frames_of(network, folder, (text,))
        np.testing.assert_allclose(frames, alone, atol=1e-4 * (np.abs(alone).max() if len(alone) else 1.0))


def test_what_lies_under_the_padding_does_not_matter(folder: Path) -> None:
    """RoBERTa counts positions over ids that are not its padding id, and the tokenizer pads with another one."""
    network = load_text_encoder(folder)
    batch = TextTokenizer(folder / "tokenizer.json").encode(TEXTS)
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    with torch.no_grad():
        expected = network(ids, mask)[mask]
        for filling in (1, 7):
            torch.testing.assert_close(network(ids.masked_fill(~mask, filling), mask)[mask], expected)


def test_both_computations_of_attention_agree(folder: Path) -> None:
    eager, fused = (frames_of(load_text_encoder(folder, kind), folder, TEXTS) for kind in ("eager", "sdpa"))
    for found, expected in zip(fused, eager, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sums_the_last_four_states_of_which_the_last_is_the_model_s_output(folder: Path) -> None:
    network = load_text_encoder(folder)
    assert network.dim == DIM
    ids = torch.arange(5, 15).unsqueeze(0)
    with torch.no_grad():
        output = network.backbone(input_ids=ids, output_hidden_states=True)
        found = network(ids, torch.ones_like(ids, dtype=torch.bool))
    expected = sum(output.hidden_states[LAYERS - 3 : LAYERS]) + output.last_hidden_state
    torch.testing.assert_close(found, expected)


def test_the_longest_text_fits_the_positions(folder: Path) -> None:
    """128 tokens, of which RoBERTa's first position is 2."""
    (frames,) = frames_of(load_text_encoder(folder), folder, ("so " * 400,))
    assert np.isfinite(frames).all()
    assert len(frames) == 126
