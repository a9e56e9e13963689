"""Stages 1 and 2 of one member, or its fit, on all training speakers or with one fold of speakers held out."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from model.labels import CLASSES
from model.network.linear import Linear
from model.network.member import Member, build_member
from model.spec import EncoderSpec, MemberSpec
from train.cache import let_go
from train.config import Recipe, StageConfig
from train.dataset import TEXT, Examples, HalfFrames, balanced_subset, concatenate, mix_copies, one_hot
from train.execution import CPU, Execution, Ranks
from train.first_weights import draw_by_name
from train.history import History
from train.linear import fit_linear
from train.loop import EpochSource, StageData, class_bias, predict, train_stage
from train.losses import class_weights
from train.pairing import Pairing, TextBank
from train.pseudo_labels import Guessed
from train.resume import ResumePoint
from train.transfer.rehearsal import Rehearsal
from train.transfer.start import Start
from train.word_errors import Misheard

ALL_SPEAKERS = -1
"""The fold number of a member that is trained on every training speaker."""
_STATISTICS: Final = 2000
"""Utterances, and up to twice as many, whose frames decide how a modality is standardised."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Everything that members are trained on.

    Attributes:
        copies: all training examples: the recordings themselves, then each degraded copy.
        folds: fold number of every training example.
        dev: held-out speakers, for selection and calibration only; their recordings and a degraded copy.
        bank: sentences that carry emotion; None where the recipe has no text section.
        trained_classes: classes that occur, and those that members begin with.
        content: a hash of the examples and their features.
        misheard: what a recogniser might have heard instead; None where the recipe has no word errors.
        start: what members begin with; None for weights of their own. It stands in `content`.
        selects: the held-out speakers choose the epoch; else the last one is kept. It stands in `content` too.
        guessed: examples that train beside these, without labels; None for none. They stand in `content` too.
        rehearsal: what is practised beside both in stage 1 and in fits; None for nothing. It stands in `content` too.
    """

    copies: tuple[Examples, ...]
    folds: npt.NDArray[np.int64]
    dev: Examples
    bank: TextBank | None
    trained_classes: tuple[str, ...]
    content: str = ""
    misheard: Misheard | None = None
    start: Start | None = None
    selects: bool = True
    guessed: Guessed | None = None
    rehearsal: Rehearsal | None = None

    @property
    def train(self) -> Examples:
        """The training recordings as they are."""
        return self.copies[0]


@dataclass(frozen=True, slots=True)
class Job:
    """One member trained without the speakers of `fold` (or with all, `ALL_SPEAKERS`).

    Attributes:
        member: what is trained.
        fold: whose speakers it never hears.
        drawn_by_name: first weights are drawn module by module, so that those of members that share modules can be compared.
    """

    member: MemberSpec
    fold: int
    drawn_by_name: bool = False

    @property
    def name(self) -> str:
        """For files and progress bars."""
        return self.member.name + ("" if self.fold == ALL_SPEAKERS else f"-without-fold-{self.fold}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member is trained: its device, and the processes that share it."""

    device: torch.device = CPU
    ranks: Ranks = field(default_factory=Ranks)


def occurring(targets: npt.NDArray[np.float32]) -> tuple[str, ...]:
    """Classes with mass in soft targets `[N, 8]`, in canonical order."""
    return tuple(name for name, mass in zip(CLASSES, targets.sum(axis=0), strict=True) if mass > 0)


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
    place: Place | None = None,
) -> Member:
    """Runs stages 1 and 2, or a linear member's fit, or reads their result if `folder` has it for the same recipe.

    A stage starts from its own seed and from the stage before, or continues behind the last epoch that a killed run has
    finished; either way it ends in the same weights. The member is returned on the CPU.
    """
    place = place or Place()
    if TEXT not in job.member.modalities:
        data = replace(data, bank=None)  # words that it cannot read would only move its targets
    encoders = recipe.encoder_specs()
    member = fresh_member(job, encoders)
    finished = is_trained(job, recipe, data.content, folder)
    place.ranks.wait()  # all have looked before one of them writes
    if finished:
        for stage in _stages(recipe, job):
            _point(folder, job, stage, recipe, data.content).remove()
        member.load_state_dict(load_file(_path(folder, job, _stages(recipe, job)[-1])))
        return member.eval()
    mine = np.flatnonzero(data.folds != job.fold)
    copies = tuple(copy.subset(mine) for copy in data.copies)
    labelled = copies
    if data.guessed:
        copies = data.guessed.beside(labelled, job.fold, _compared(data, labelled[0], job, "stage1"))
    if data.start is None:
        set_statistics(member, concatenate(copies))
    else:
        data.start.begin(member)
    stages = (
        (
            "stage1",
            recipe.stage1,
            _all_examples(recipe, data, copies, job),
            class_weights(aimed(recipe, copies[0]).targets, recipe.objective.class_weight),
        ),
        ("stage2", recipe.stage2, _balanced(recipe, data, labelled), torch.ones(len(CLASSES))),
    )
    for number, (stage, config, source, weights) in enumerate(stages):
        if stage not in _stages(recipe, job):
            continue
        path, key = _path(folder, job, stage), _key(recipe, job, stage, data.content)
        resume = _point(folder, job, stage, recipe, data.content)
        if _is_done(path, key):
            resume.remove()
            member.load_state_dict(load_file(path))
            continue
        terms = recipe.objective.terms(job.member.family)
        contrast = recipe.objective.contrast.settings if job.member.contrast else None
        seed = job.member.seed * 1000 + (job.fold + 1) * 10 + number
        steps = config.epochs * -(-len(copies[0]) // config.batch_size)
        auxiliary = data.start.auxiliary(member, seed, steps) if data.start and data.start.auxiliary else None
        started = data.start is not None
        dev = data.dev if data.selects else None
        compared = _compared(data, labelled[0], job, stage)
        epochs = StageData(source, dev, weights, data.trained_classes, terms, contrast, auxiliary, started, compared)
        point = None if auxiliary else resume  # a point holds nothing of what an auxiliary loss has learned and drawn
        execution = Execution(place.device, recipe.compute.compile, point, partial(on_epoch, stage), place.ranks)
        if isinstance(member, Linear):
            kept = started and config.epochs == 0  # of a transfer that trains nothing
            history = History() if kept else fit_linear(member, encoders, epochs, recipe.linear, seed, execution)
        else:
            history = train_stage(member, encoders, epochs, config, seed, execution)
        member.to(CPU)
        round_to_half(member)
        if place.ranks.rank == 0:
            _save(path, member, history, key)
            resume.remove()
        place.ranks.wait()
    return member.eval()


def _compared(data: TrainingSet, labelled: Examples, job: Job, stage: str) -> tuple[str, ...]:
    """Classes that the loss compares: where a member does not begin anew, one that nothing is said for keeps its logit."""
    if data.start is None or (data.rehearsal and stage == "stage1"):
        return data.trained_classes
    guessed = data.guessed.classes(job.fold) if data.guessed and stage == "stage1" else ()
    occur = {*occurring(labelled.targets), *(CLASSES[index] for index in guessed if index >= 0)}
    return tuple(name for name in CLASSES if name in occur)


def fresh_member(job: Job, encoders: Mapping[str, EncoderSpec]) -> Member:
    """The member of a job with the weights that its first stage begins with, where it begins with weights of its own."""
    torch.manual_seed(job.member.seed)
    member = build_member(job.member, encoders)
    if job.drawn_by_name:
        draw_by_name(member, job.member.seed)
    return member


def last_key(job: Job, recipe: Recipe, content: str) -> str:
    """Names everything that decides a member's final weights."""
    return _key(recipe, job, _stages(recipe, job)[-1], content)


def selected_stages(jobs: Iterable[Job], recipe: Recipe, data: TrainingSet) -> frozenset[str]:
    """Keys of all that these members go through, where held-out speakers choose epochs and strengths; else none."""
    keys = (_key(recipe, job, stage, data.content) for job in jobs for stage in _stages(recipe, job))
    return frozenset(keys if data.selects else ())


def is_trained(job: Job, recipe: Recipe, content: str, folder: Path) -> bool:
    """Whether `folder` has every stage of a member, made of the same recipe and data."""
    stages = _stages(recipe, job)
    return all(_is_done(_path(folder, job, stage), _key(recipe, job, stage, content)) for stage in stages)


def _is_fitted(job: Job) -> bool:
    """In one piece, as linear members are, and not in epochs."""
    return job.member.family == "linear"


def _stages(recipe: Recipe, job: Job) -> tuple[str, ...]:
    """What a member goes through. A fit balances the classes itself, so nothing of it is left for stage 2."""
    return ("stage1", "stage2") if recipe.stage2.epochs and not _is_fitted(job) else ("stage1",)


def _point(folder: Path, job: Job, stage: str, recipe: Recipe, content: str) -> ResumePoint:
    path = folder / f"{job.name}.{stage}.epoch.safetensors"
    return ResumePoint(path, _key(recipe, job, stage, content), recipe.compute.resume_every)


def _path(folder: Path, job: Job, stage: str) -> Path:
    return folder / f"{job.name}.{stage}.safetensors"


def out_of_fold(
    members: Mapping[int, Member], encoders: Mapping[str, EncoderSpec], examples: Examples, data: TrainingSet
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
def round_to_half(member: Member) -> None:
    """Rounds every weight to what float16 holds, arithmetic stays float32: what follows sees what a bundle will store."""
    for parameter in member.parameters():
        parameter.copy_(parameter.half())


def set_statistics(member: Member, examples: Examples) -> None:
    """Fixes the mean and deviation by which the member standardises each modality's frames: of some 2000 utterances."""
    for name, stack in member.stacks.items():
        rows = [frames for frames in examples.frames[name] if len(frames)]
        mean, deviation = moments(rows[:: max(1, len(rows) // _STATISTICS)])
        stack.set_statistics(torch.from_numpy(mean), torch.from_numpy(deviation))  # type: ignore[operator]


def moments(rows: Sequence[HalfFrames]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and standard deviation `[d]` over all frames of utterances `[F, d]`, one utterance in memory at a time."""
    width = rows[0].shape[1]
    total, squares, count = np.zeros(width), np.zeros(width), 0
    for frames in rows:
        exact = frames.astype(np.float64)
        total += exact.sum(axis=0)
        squares += np.einsum("fd,fd->d", exact, exact)
        count += len(frames)
        let_go([frames])
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return mean.astype(np.float32), deviation.astype(np.float32)


def draw_training(recipe: Recipe, data: TrainingSet, copies: Sequence[Examples], rng: np.random.Generator) -> Examples:
    """Training examples as one epoch sees them: a random copy of each, with a random text."""
    examples = mix_copies(copies, rng)
    if data.misheard:
        examples = data.misheard.draw(examples, rng)
    return aimed(recipe, data.bank.pair(examples, pairing_of(recipe), rng) if data.bank else examples)


def aimed(recipe: Recipe, examples: Examples) -> Examples:
    """Examples with the targets that the recipe asks for."""
    return one_hot(examples) if recipe.objective.targets == "one-hot" else examples


def _all_examples(recipe: Recipe, data: TrainingSet, copies: Sequence[Examples], job: Job) -> EpochSource:
    def draw(rng: np.random.Generator) -> Examples:
        learned = draw_training(recipe, data, copies, rng)
        return data.rehearsal.beside(learned, job.member, rng) if data.rehearsal else learned

    return draw


def _balanced(recipe: Recipe, data: TrainingSet, copies: Sequence[Examples]) -> EpochSource:
    classes = copies[0].dominant

    def draw(rng: np.random.Generator) -> Examples:
        rows = balanced_subset(classes, rng)
        return draw_training(recipe, data, [copy.subset(rows) for copy in copies], rng)

    return draw


def _key(recipe: Recipe, job: Job, stage: str, content: str) -> str:
    """Names everything that decides a stage's weights."""
    read = {"seed", "encoders"} | ({"text"} if TEXT in job.member.modalities else set())
    parts = recipe.model_dump(mode="json", include=read)
    parts["stage1"] = _fit_parts(recipe) if _is_fitted(job) else _stage_parts(recipe.stage1)
    parts["content"] = content
    if stage == "stage2":
        parts["stage2"] = _stage_parts(recipe.stage2)
    # What later versions can switch counts only where it is switched, so that old weights keep their key.
    later = {"fusion", "family", "attention", "gates", "contrast"}
    plain = {f.name: f.default for f in fields(MemberSpec) if f.name in later}
    member = {n: value for n, value in asdict(job.member).items() if n not in plain or value != plain[n]}
    unread = {"focal_gamma", "label_smoothing"} if job.member.family == "vga" else {"vga"}
    unread |= set() if job.member.contrast else {"contrast"}
    unread |= {"class_weight"} if _is_fitted(job) else set()
    if objective := recipe.objective.model_dump(mode="json", exclude_defaults=True, exclude=unread):
        parts["objective"] = objective
    parts["job"] = {"member": member, "fold": job.fold} | ({"drawn_by_name": True} if job.drawn_by_name else {})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _fit_parts(recipe: Recipe) -> dict[str, Any]:
    return recipe.linear.model_dump(mode="json") | ({} if recipe.stage1.epochs else {"epochs": 0})


def _stage_parts(config: StageConfig) -> dict[str, Any]:
    """A stage's settings. Switches that came later count only where they are used, so that old weights keep their key."""
    later = {"accumulate", "precision", "patience"}
    settings = config.model_dump(mode="json")
    return {
        name: value
        for name, value in settings.items()
        if name not in later or value != StageConfig.model_fields[name].default
    }


def _is_done(path: Path, key: str) -> bool:
    notes = path.with_suffix(".json")
    return path.is_file() and notes.is_file() and json.loads(notes.read_text())["key"] == key


def _save(path: Path, member: Member, history: History, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    path.with_suffix(".json").unlink(
        missing_ok=True
    )  # a kill between the two files must not leave new weights under an old key
    save_file(member.state_dict(), unfinished)
    unfinished.replace(path)
    notes = path.with_suffix(".json.part")
    notes.write_text(json.dumps({"key": key, **asdict(history)}, indent=1))
    notes.replace(path.with_suffix(".json"))
