"""Text encoders of the two families that the full recipe reads, each with a tokenizer of its own family."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, ModernBertConfig, RobertaConfig

from model.features import Frames
from model.network.encoders import TextEncoder, load_text_encoder
from model.text import TextTokenizer, word_frames

DIM, LAYERS, ROWS = 16, 5, 300
TEXTS = ("i am so angry with your service", "no", "", "thank you so much, that is wonderful news!")
Family = Literal["roberta", "modernbert"]
SPECIAL = {"roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "modernbert": ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]}


def write_tokenizer(family: Family, path: Path) -> Tokenizer:
    """Byte-level BPE, trained on the texts above, with the special tokens of its family around each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 1,
        special_tokens=SPECIAL[family],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    number = tokenizer.get_vocab()
    if family == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", number["</s>"]), ("<s>", number["<s>"]))
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[(name, number[name]) for name in ("[CLS]", "[SEP]")]
        )
    tokenizer.save(str(path))
    return tokenizer


def write_model(family: Family, folder: Path) -> Path:
    sizes: dict[str, Any] = {
        "vocab_size": ROWS,
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
    }
    config: RobertaConfig | ModernBertConfig
    if family == "roberta":
        config = RobertaConfig(**sizes, intermediate_size=24, max_position_embeddings=130, type_vocab_size=1)
    else:
        marks: dict[str, Any] = {
            "pad_token_id": 0,
            "bos_token_id": 1,
            "cls_token_id": 1,
            "eos_token_id": 2,
            "sep_token_id": 2,
        }
        config = ModernBertConfig(**sizes, **marks, intermediate_size=24, local_attention=8)
    torch.manual_seed(0)
    network = AutoModel.from_config(config)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    write_tokenizer(family, folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module", params=["roberta", "modernbert"])
def family(request: pytest.FixtureRequest) -> Family:
    return "roberta" if request.param == "roberta" else "modernbert"


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(family, tmp_path_factory.mktemp("text") / family)


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
