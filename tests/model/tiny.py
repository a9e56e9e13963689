"""A tiny ensemble over tiny encoders, and utterances for it. No downloads."""

import atexit
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from export.bundle import write_bundle
from model.features import FUNCTIONALS_STEPS, PROSODY_DIM, Frames
from model.network.checkpoint import Checkpoint, TrainedFallback, save_checkpoint
from model.network.deepser import FrameStack
from model.network.linear import Linear
from model.network.member import Member, build_member
from model.network.metaclassifier import MetaClassifier
from model.spec import LINEAR, EncoderSpec, EnsembleSpec, Fallback, MemberSpec
from tests.model.tiny_whisper import WIDTH, tiny_whisper, write_ctranslate2

DIM = 16
WHISPER_STATES = (1, 3)
WHISPER_DIM = len(WHISPER_STATES) * WIDTH
TEXT_DIM = 12
WORDS = ("i", "am", "so", "happy", "angry", "today", "no", "what", "are", "you", "doing", ".", "!", "?")
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")


def tiny_encoders(whisper: str = "path:whisper", text: str = "path:text") -> tuple[EncoderSpec, ...]:
    """Whisper, prosody and text encoders; the sources are those of the weights."""
    return (
        EncoderSpec("whisper", "whisper-onnx", WHISPER_DIM, 8, (whisper,), states=WHISPER_STATES),
        EncoderSpec("prosody", "prosody", PROSODY_DIM, 16),
        EncoderSpec("text", "text-transformer", TEXT_DIM, 1, (text,)),
    )


def tiny_member(name: str, modalities: tuple[str, ...], layers: int = 2, seed: int = 1) -> MemberSpec:
    """A member of width 16 with dropout."""
    return MemberSpec(name, modalities, DIM, heads=2, layers=layers, feed_forward=24, dropout=0.3, seed=seed)


def tiny_linear(name: str, modalities: tuple[str, ...]) -> MemberSpec:
    """A linear member."""
    return MemberSpec(name, modalities, seed=1, family="linear", **LINEAR)


def tiny_spec(encoders: tuple[EncoderSpec, ...] | None = None) -> EnsembleSpec:
    """Two members over three encoders; two classes and one attribute were never trained."""
    return EnsembleSpec(
        encoders=encoders or tiny_encoders(),
        members=(
            tiny_member("voice", ("prosody",), layers=1),
            tiny_member("words", ("whisper", "text"), seed=2),
        ),
        trained_classes=("angry", "sad", "happy", "fear", "disgust", "neutral"),
        trained_attributes=("arousal", "valence"),
    )


def tiny_networks(spec: EnsembleSpec, seed: int = 0) -> tuple[tuple[Member, ...], MetaClassifier]:
    """Networks with random weights and statistics that are not trivial."""
    torch.manual_seed(seed)
    encoders = {encoder.name: encoder for encoder in spec.encoders}
    members = tuple(build_member(member, encoders).eval() for member in spec.members)
    for member in members:
        for stack in member.stacks.values():
            assert isinstance(stack, FrameStack)
            stack.set_statistics(torch.randn_like(stack.mean), 0.5 + torch.rand_like(stack.mean))
        if isinstance(member, Linear):  # which begins at zero
            for parameter in member.parameters():
                torch.nn.init.normal_(parameter)
    return members, MetaClassifier(len(members)).eval()


def tiny_checkpoint(spec: EnsembleSpec, seed: int = 0) -> Checkpoint:
    """A checkpoint of random networks."""
    members, meta = tiny_networks(spec, seed)
    return Checkpoint(
        name="tiny",
        spec=spec,
        members=members,
        meta=meta,
        temperature=1.5,
        abstain_below=0.2,
        prior_log_ratio={"angry": -0.25, "neutral": 0.25},
        metrics={"uar": 0.5},
        training={"data": "random", "licence": "none", "contaminated_by": []},
        model_card="# Tiny\n",
    )


def with_fallbacks(checkpoint: Checkpoint, *fallbacks: tuple[str, ...], seed: int = 5) -> Checkpoint:
    """The same with smaller ensembles of these members, whose meta-classifiers are random."""
    torch.manual_seed(seed)
    made = tuple(
        TrainedFallback(Fallback(names, 1.0 + number / 4, 0.3 + number / 10), MetaClassifier(len(names)).eval())
        for number, names in enumerate(fallbacks, 1)
    )
    return replace(checkpoint, fallbacks=made)


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A checkpoint on disk whose encoders' weights lie beside it."""
    text, whisper = folder / "text", folder / "whisper"
    write_tiny_text_encoder(text)
    write_ctranslate2(tiny_whisper(), whisper, None)
    spec = tiny_spec(tiny_encoders(f"path:{whisper}", f"path:{text}"))
    save_checkpoint(folder / "checkpoint", tiny_checkpoint(spec, seed))
    return folder / "checkpoint"


def write_tiny_tokenizer(path: Path) -> None:
    """A word tokenizer with `[CLS]` and `[SEP]` around each text."""
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # no password
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.save(str(path))


def write_tiny_text_encoder(folder: Path) -> None:
    """A BERT of width 12 with random weights, and its tokenizer, as `transformers` keeps them."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(_SPECIAL) + len(WORDS),
        hidden_size=TEXT_DIM,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    write_tiny_tokenizer(folder / "tokenizer.json")


def tiny_frames(spec: EnsembleSpec, generator: np.random.Generator, count: int) -> list[dict[str, Frames]]:
    """Utterances with random frames of random lengths; the first has no words."""
    items = []
    for index in range(count):
        item: dict[str, Frames] = {}
        for encoder in spec.encoders:
            length = int(generator.integers(1, 5 * encoder.stack))
            if encoder.name == "text" and index == 0:
                length = 0
            if encoder.kind == "functionals":
                length = FUNCTIONALS_STEPS
            item[encoder.name] = generator.standard_normal((length, encoder.dim)).astype(np.float32)
        items.append(item)
    return items


@dataclass(frozen=True, slots=True)
class Exported:
    """A tiny checkpoint and its bundle; read them, never change them."""

    checkpoint: Path
    bundle: Path


@cache
def tiny_bundle() -> Exported:
    """The tiny ensemble exported once per process: an export takes several seconds."""
    folder = TemporaryDirectory(prefix="tiny-bundle-")
    atexit.register(folder.cleanup)
    checkpoint = write_tiny_checkpoint(Path(folder.name))
    write_bundle(checkpoint, Path(folder.name) / "bundle")
    return Exported(checkpoint, Path(folder.name) / "bundle")
