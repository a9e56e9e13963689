"""Stages 1 and 2 of one member, on all training speakers or with one fold of speakers held out."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from model.labels import CLASSES
from model.network.deepser import DeepSER
from model.spec import EncoderSpec, MemberSpec
from train.config import Recipe
from train.dataset import Examples, balanced_subset, concatenate, mix_copies
from train.loop import EpochSource, History, StageData, class_bias, predict, train_stage
from train.losses import class_weights
from train.pairing import Pairing, TextBank

ALL_SPEAKERS = -1
"""The fold number of a member that is trained on every training speaker."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Everything that members are trained on.

    Attributes:
        copies: all training examples: the recordings themselves, then each degraded copy.
        folds: fold number of every training example.
        dev: held-out speakers, for selection and calibration only; their recordings and a degraded copy.
        bank: sentences that carry emotion; None where the recipe has no text section.
        trained_classes: classes that occur.
        content: a hash of the examples and their features.
    """

    copies: tuple[Examples, ...]
    folds: npt.NDArray[np.int64]
    dev: Examples
    bank: TextBank | None
    trained_classes: tuple[str, ...]
    content: str = ""

    @property
    def train(self) -> Examples:
        """The training recordings as they are."""
        return self.copies[0]


@dataclass(frozen=True, slots=True)
class Job:
    """One member trained without the speakers of `fold` (or with all, `ALL_SPEAKERS`)."""

    member: MemberSpec
    fold: int

    @property
    def name(self) -> str:
        """For files and progress bars."""
        return self.member.name + ("" if self.fold == ALL_SPEAKERS else f"-without-fold-{self.fold}")


def pairing_of(recipe: Recipe) -> Pairing:
    """How the recipe pairs clips with texts."""
    if recipe.text is None:
        return Pairing()
    return Pairing(**recipe.text.model_dump(include={"own", "none", "neutral", "congruent", "any", "words_weight"}))


def train_member(
    job: Job,
    recipe: Recipe,
    data: TrainingSet,
    folder: Path,
    on_epoch: Callable[[str, dict[str, float]], None] = lambda stage, row: None,
) -> DeepSER:
    """Runs stages 1 and 2, or reads their result if `folder` already has it for the same recipe.

    A stage starts from its own seed and from the stage before, so a run that was killed and started again gives the
    same weights as one that was not.
    """
    encoders = recipe.encoder_specs()
    torch.manual_seed(job.member.seed)
    member = DeepSER(job.member, encoders)
    mine = np.flatnonzero(data.folds != job.fold)
    copies = tuple(copy.subset(mine) for copy in data.copies)
    set_statistics(member, concatenate(copies))
    stages = (
        ("stage1", recipe.stage1, _all_examples(recipe, data, copies), class_weights(copies[0].targets)),
        ("stage2", recipe.stage2, _balanced(recipe, data, copies), torch.ones(len(CLASSES))),
    )
    for number, (stage, config, source, weights) in enumerate(stages):
        path = folder / f"{job.name}.{stage}.safetensors"
        key = _key(recipe, job, stage, data.content)
        if _is_done(path, key):
            member.load_state_dict(load_file(path))
            continue
        epochs = StageData(source, data.dev, weights, data.trained_classes)
        seed = job.member.seed * 1000 + (job.fold + 1) * 10 + number
        history = train_stage(member, encoders, epochs, config, seed, lambda row, s=stage: on_epoch(s, row))  # type: ignore[misc]
        round_to_half(member)
        _save(path, member, history, key)
    return member.eval()


def out_of_fold(
    members: Mapping[int, DeepSER], encoders: Mapping[str, EncoderSpec], examples: Examples, data: TrainingSet
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Posteriors `[N, 8]` and attributes `[N, 3]` of every training example from the member that never saw its speaker.

    Args:
        members: fold number -> member trained without that fold.
        encoders: the recipe's encoders.
        examples: the training examples, in their own order, with any texts.
        data: gives each example's fold.
    """
    posterior = np.full((len(examples), 8), np.nan, np.float32)
    attributes = np.full((len(examples), 3), np.nan, np.float32)
    for fold, member in members.items():
        rows = np.flatnonzero(data.folds == fold)
        posterior[rows], attributes[rows] = predict(
            member, encoders, examples.subset(rows), class_bias(data.trained_classes)
        )
    if np.isnan(posterior).any():
        raise ValueError("some training examples belong to no fold: every example needs an out-of-fold prediction")
    return posterior, attributes


@torch.no_grad()
def round_to_half(member: DeepSER) -> None:
    """Rounds every weight to what float16 holds, arithmetic stays float32: what follows sees what a bundle will store."""
    for parameter in member.parameters():
        parameter.copy_(parameter.half())


def set_statistics(member: DeepSER, examples: Examples) -> None:
    """Fixes the mean and deviation by which the member standardises each modality's frames."""
    for name, stack in member.stacks.items():
        rows = [frames for frames in examples.frames[name] if len(frames)]
        sample = np.concatenate(rows[:: max(1, len(rows) // 2000)]).astype(np.float32)
        stack.set_statistics(torch.from_numpy(sample.mean(axis=0)), torch.from_numpy(sample.std(axis=0)))  # type: ignore[operator]


def draw_training(recipe: Recipe, data: TrainingSet, copies: Sequence[Examples], rng: np.random.Generator) -> Examples:
    """Training examples as one epoch sees them: a random copy of each, with a random text."""
    examples = mix_copies(copies, rng)
    return data.bank.pair(examples, pairing_of(recipe), rng) if data.bank else examples


def _all_examples(recipe: Recipe, data: TrainingSet, copies: Sequence[Examples]) -> EpochSource:
    return lambda rng: draw_training(recipe, data, copies, rng)


def _balanced(recipe: Recipe, data: TrainingSet, copies: Sequence[Examples]) -> EpochSource:
    classes = copies[0].dominant

    def draw(rng: np.random.Generator) -> Examples:
        rows = balanced_subset(classes, rng)
        return draw_training(recipe, data, [copy.subset(rows) for copy in copies], rng)

    return draw


def _key(recipe: Recipe, job: Job, stage: str, content: str) -> str:
    """Names everything that decides a stage's weights."""
    parts = recipe.model_dump(mode="json", include={"seed", "text", "encoders", "stage1"})
    parts["content"] = content
    if stage == "stage2":
        parts["stage2"] = recipe.stage2.model_dump(mode="json")
    parts["job"] = {"member": asdict(job.member), "fold": job.fold}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_done(path: Path, key: str) -> bool:
    notes = path.with_suffix(".json")
    return path.is_file() and notes.is_file() and json.loads(notes.read_text())["key"] == key


def _save(path: Path, member: DeepSER, history: History, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    path.with_suffix(".json").unlink(
        missing_ok=True
    )  # a kill between the two files must not leave new weights under an old key
    save_file(member.state_dict(), partial)
    partial.replace(path)
    notes = path.with_suffix(".json.part")
    notes.write_text(json.dumps({"key": key, **asdict(history)}, indent=1))
    notes.replace(path.with_suffix(".json"))
