"""Tiny text encoders of the families that the full recipe reads, each with a tokenizer of its own family. No downloads."""

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, ModernBertConfig, RobertaConfig

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


def write_tiny_text(family: Family, folder: Path) -> Path:
    """The model, with weights that are not small, and its tokenizer, as the hub keeps them."""
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
