"""Clips, examples and corpora that are made up, the corpora with the file layout of the real ones."""

import csv
import wave
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from model.audio import SAMPLE_RATE_HZ, Samples
from model.labels import CLASS_INDEX, CLASSES
from model.network.deepser import DeepSER
from model.spec import EncoderSpec, MemberSpec
from tests.fakes import linear16
from train.config import Recipe, load_recipe
from train.dataset import Examples
from train.manifest import Clip
from train.pairing import TextBank
from train.stages.members import TrainingSet

RECIPES = Path(__file__).parents[2] / "recipes"
TRAINED = ("angry", "sad", "happy", "neutral")
ENCODERS = {
    "whisper": EncoderSpec("whisper", "whisper-ctranslate2", 6, 2),
    "prosody": EncoderSpec("prosody", "prosody", 5, 4),
    "text": EncoderSpec("text", "text-transformer", 7, 1),
}


def make_clip(
    id: str = "1001_DFA_ANG_XX",
    speaker: str = "cremad-1001",
    votes: Mapping[str, float] | None = None,
    intended: str | None = None,
    attributes: tuple[float, float, float] = (float("nan"),) * 3,
) -> Clip:
    """A clip without audio; three raters heard anger where a test does not say what was heard."""
    heard = {"angry": 3.0} if votes is None else votes
    return Clip(
        id=id,
        corpus="cremad",
        audio=Path(f"{id}.wav"),
        speaker=speaker,
        votes=tuple(heard.get(name, 0.0) for name in CLASSES),
        intended=intended,
        attributes=attributes,
    )


def make_examples(labels: Sequence[str | None], seed: int = 0, *, signal: float = 1.0, speakers: int = 4) -> Examples:
    """Examples whose frames tell their class, with soft targets 0.8 : 0.2; None for a tie of anger and sadness.

    Arousal is rated everywhere, valence in every second example, dominance nowhere.
    """
    rng = np.random.default_rng(seed)
    targets = np.zeros((len(labels), len(CLASSES)), np.float32)
    frames: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.float16]]]] = {name: [] for name in ENCODERS}
    for row, label in enumerate(labels):
        index = 0 if label is None else CLASS_INDEX[label]
        targets[row, index] = 0.5 if label is None else 0.8
        targets[row, CLASS_INDEX["sad" if index == 0 else "angry"]] = 1.0 - targets[row, index]
        for name, encoder in ENCODERS.items():
            values = rng.standard_normal((int(rng.integers(1, 4 * encoder.stack)), encoder.dim))
            values[:, index % encoder.dim] += signal * (1.0 + index)
            frames[name].append(values.astype(np.float16))
    attributes = np.full((len(labels), 3), np.nan, np.float32)
    attributes[:, 0] = rng.uniform(1.0, 7.0, len(labels))
    attributes[::2, 1] = rng.uniform(1.0, 7.0, len(attributes[::2]))
    return Examples(
        ids=tuple(f"clip-{seed}-{row}" for row in range(len(labels))),
        frames=frames,
        targets=targets,
        attributes=attributes,
        intended=np.array([-1 if label is None else CLASS_INDEX[label] for label in labels], np.int64),
        speakers=tuple(f"speaker-{row % speakers}" for row in range(len(labels))),
        outvoted=np.zeros(len(labels), np.bool_),
    )


def make_member(modalities: tuple[str, ...] = ("prosody", "text"), dropout: float = 0.0, seed: int = 1) -> DeepSER:
    """A network of width 8 whose weights `seed` decides."""
    torch.manual_seed(seed)
    spec = MemberSpec("member", modalities, 8, heads=2, layers=1, feed_forward=12, dropout=dropout, seed=seed)
    return DeepSER(spec, ENCODERS)


def write_wav(path: Path, samples: Samples) -> None:
    """One channel, 16 bit, 16 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(linear16(samples))


def write_votes(root: Path, rows: Mapping[str, Sequence[int]]) -> None:
    """CREMA-D's table of votes: clip -> counts A D F H N S."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "votes.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["clip", "A", "D", "F", "H", "N", "S", "raters", "mean_level"])
        table.writerows([name, *counts, sum(counts), 50.0] for name, counts in rows.items())


def write_actors(root: Path, sexes: Mapping[str, str]) -> None:
    """CREMA-D's table of actors: actor -> "Male" or "Female"."""
    lines = [f'{actor},40,"{sex}","Caucasian","Not Hispanic"' for actor, sex in sexes.items()]
    header = '"ActorID","Age","Sex","Race","Ethnicity"'
    (root / "actors.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


GOEMOTIONS_LABELS = (
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval disgust "
    "embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief remorse sadness "
    "surprise neutral"
).split()


def write_goemotions(root: Path, rows: Iterable[tuple[str, str]], part: str = "train") -> None:
    """GoEmotions: texts with the names of their labels, joined by commas."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.txt").write_text("\n".join(GOEMOTIONS_LABELS) + "\n", encoding="utf-8")
    lines = [
        f"{text}\t{','.join(str(GOEMOTIONS_LABELS.index(name)) for name in names.split(','))}\tcomment{index}\n"
        for index, (text, names) in enumerate(rows)
    ]
    (root / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")


def make_recipe(**sections: Any) -> Recipe:
    """The default recipe over `ENCODERS` with one narrow member and short stages; sections are exchanged by name."""
    stage = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "mixup": 0.5}
    data = load_recipe(RECIPES / "default.toml").model_dump() | {
        "encoders": {n: {"kind": e.kind, "dim": e.dim, "stack": e.stack} for n, e in ENCODERS.items()},
        "member_defaults": {"dim": 8, "heads": 2, "layers": 1, "feed_forward": 12, "dropout": 0.1},
        "members": [{"name": "tiny", "modalities": ["prosody", "text"], "seed": 5}],
        "stage1": stage,
        "stage2": stage,
        "meta": {"folds": 2, "epochs": 2, "seeds": [1, 2]},
        "adaptation": None,
    }
    return Recipe.model_validate(data | sections)


def make_training_set(*copies: Examples, folds: int = 2) -> TrainingSet:
    """Folds by speaker, other speakers for selection, two sentences a class; the first copy is the recordings."""
    bank = {
        name: [np.full((size, ENCODERS["text"].dim), CLASS_INDEX[name], np.float16) for size in (1, 3)]
        for name in TRAINED
    }
    return TrainingSet(
        copies=copies,
        folds=np.array([int(speaker.split("-")[1]) % folds for speaker in copies[0].speakers], np.int64),
        dev=make_examples(TRAINED * 5, seed=99),
        bank=TextBank(bank),
        trained_classes=TRAINED,
    )


@contextmanager
def optimizer_steps() -> Iterator[list[tuple[torch.optim.Optimizer, float]]]:
    """Every optimizer step of this process: which optimizer, at which learning rate."""
    steps: list[tuple[torch.optim.Optimizer, float]] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        steps.append((optimizer, float(optimizer.param_groups[0]["lr"])))

    handle = register_optimizer_step_post_hook(note)
    try:
        yield steps
    finally:
        handle.remove()
