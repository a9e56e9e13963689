"""What every transfer begins with: a target's clips in classes that the source knows, and members that hear them its way."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.torch import save as serialised
from torch import Tensor

from model.adaptation import Adaptation
from model.spec import MemberSpec
from train.acquaintance import assert_unheard, of_corpus
from train.config import Recipe
from train.corpora import read_corpus
from train.dataset import TEXT, Examples
from train.errors import LeakageError, RunError
from train.features import Progress
from train.manifest import Split
from train.prepare import Prepared, View, prepare
from train.stages.members import TrainingSet, draw_training, occurring
from train.transfer.budgets import Budget
from train.transfer.normalise import normalised, reference_of
from train.transfer.rehearsal import Rehearsal, moves_between
from train.transfer.self_training import Unspoken
from train.transfer.source import Source
from train.transfer.start import Anchor, Start
from train.transfer.target import Target, TransferConfig, shared_classes
from train.transfer.unlabelled import Unlabelled, target_audio


@dataclass(frozen=True, slots=True)
class Begun:
    """What a transfer begins with.

    Attributes:
        prepared: the target's labelled clips; its training set knows what members begin with.
        audio: of all but the test speakers, as it was recorded; None where nothing is learned from it.
        labelled: ids of clips that somebody has labelled.
        unsure: ids of clips whose speaker may be anybody's.
    """

    prepared: Prepared
    audio: Unlabelled | None
    labelled: frozenset[str]
    unsure: frozenset[str]

    def without_labels(
        self, config: TransferConfig, ids: Collection[str] | None = None, speakers: Collection[str] = ()
    ) -> Unspoken | None:
        """What members may guess about; None where they are not to, or everything is labelled.

        Nothing of speakers that select, unless these are those that train.

        Args:
            config: says whether they are.
            ids: of clips that count as labelled; all that are, if None.
            speakers: whose clips count as labelled too.
        """
        if config.self_training is None or self.audio is None:
            return None
        training = self.prepared.training
        selecting = set() if set(training.dev.ids) & set(training.train.ids) else set(training.dev.speakers)
        taken = self.unsure | set(self.labelled if ids is None else ids)
        audio = self.audio.without(taken, {*speakers, *selecting})
        return Unspoken(audio, self.prepared.adaptation, config.self_training) if len(audio) else None

    def unbought(self, budget: Budget, config: TransferConfig) -> Unspoken | None:
        """As `without_labels`, of what a budget has not bought: who buys a speaker has listened to all of it."""
        bought = [self.prepared.training.train, self.prepared.training.dev]
        if budget.unit == "speakers":
            return self.without_labels(config, (), {name for part in bought for name in part.speakers})
        return self.without_labels(config, {name for part in bought for name in part.ids})


def begin(
    source: Source,
    target: Target,
    data: Path,
    cache: Path,
    progress: Progress,
    budget: Budget | None = None,
    taught: TrainingSet | None = None,
) -> Begun:
    """Prepares the target's classes that the source knows.

    Args:
        source: where members begin.
        target: corpus and how.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        progress: told what is done.
        budget: of the labels; None for all of them.
        taught: what the source was trained on, where that is rehearsed.

    Raises:
        CorpusError: if the corpus is missing or incomplete.
        LeakageError: if somebody who made the source would be tested on.
        RunError: if the target has no class that the source knows, or lacks a part.
    """
    own, config, recipe = source.checkpoint.adaptation, target.transfer, target.recipe
    weights = {member.spec.name: member.state_dict() for member in source.members}
    audio, labelled, unsure = None, frozenset[str](), frozenset[str]()
    if config.statistics == "target" or config.self_training:
        audio, division = target_audio(recipe, data, cache, progress)
        labelled, unsure = division.labelled, division.unsure
    if config.statistics == "target" and audio:
        own = reference_of(audio, own) if own else None
        heard, encoders = audio.heard(own, np.random.default_rng(recipe.seed)), recipe.encoder_specs()
        weights = {member.spec.name: normalised(member, heard, encoders) for member in source.members}
    view = _view(source, recipe, data, own)
    known = view.narrow
    if budget:
        view = replace(view, narrow=lambda split: budget.narrow(known(split), recipe.data.intended_votes))
    prepared = prepare(recipe, data, cache, progress, view=view)
    start = start_of(weights, config)
    content, rehearsal = prepared.training.content, None
    if taught is not None:
        moves = {m.spec.name: moves_between(m.state_dict(), weights[m.spec.name]) for m in source.members}
        rehearsal = Rehearsal(partial(practise, source.recipe, taught), len(taught.train), config.rehearsal, moves)
        content = f"{content} rehearsal of {config.rehearsal}: {taught.content}"
    training = replace(
        prepared.training, start=start, rehearsal=rehearsal, content=started_content(content, start, config)
    )
    training = selecting(training) if budget else training
    return Begun(replace(prepared, training=training), audio, labelled, unsure)


def selecting(training: TrainingSet) -> TrainingSet:
    """Without selection where the development clips are those that train."""
    selects = not set(training.train.ids) & set(training.dev.ids)
    return replace(training, selects=selects, content=f"{training.content} selects: {selects}")


def heard_by_source(source: Source, target: Target, data: Path, cache: Path, progress: Progress) -> Prepared:
    """The target's classes that the source knows, with channels as the untouched source hears them."""
    view = _view(source, target.recipe, data, source.checkpoint.adaptation)
    return prepare(target.recipe, data, cache, progress, view=view)


def taught_by(source: Source, target: Target, data: Path, cache: Path, progress: Progress) -> TrainingSet | None:
    """What the source was trained on, as it heard it; None where nothing is to be rehearsed.

    Raises:
        CorpusError: if the source's corpus is missing or incomplete.
        RunError: if it has not the classes that the source was trained on.
    """
    if not target.transfer.rehearsal:
        return None
    view = View(adaptation=source.checkpoint.adaptation, classes=source.classes)
    own = source.recipe.data.model_copy(update={"evaluate": (), "evaluate_options": {}})
    recipe = source.recipe.model_copy(update={"data": own})
    training = prepare(recipe, data, cache, progress, view=view).training
    if lacking := sorted(set(source.classes) - set(occurring(training.train.targets))):
        raise RunError(
            f"{source.recipe.data.corpus} lacks {', '.join(lacking)}, which the source was trained on: rehearsal needs them"
        )
    return training


def practise(
    recipe: Recipe, taught: TrainingSet, member: MemberSpec, rows: npt.NDArray[np.int64], rng: np.random.Generator
) -> Examples:
    """Clips of the source as its own training drew them: any copy, any text."""
    data = taught if TEXT in member.modalities else replace(taught, bank=None)
    return draw_training(recipe, data, [copy.subset(rows) for copy in taught.copies], rng)


def start_of(weights: Mapping[str, Mapping[str, Tensor]], config: TransferConfig) -> Start:
    """What members begin with, and what holds them to it."""
    anchor = config.anchor
    return Start(
        weights=weights,
        heads_only=config.train == "heads",
        auxiliary=(lambda member, seed, steps: Anchor(member, weights[member.spec.name], anchor)) if anchor else None,
    )


def started_content(content: str, start: Start, config: TransferConfig) -> str:
    """The hash of the examples and of all that members begin with."""
    digest = hashlib.sha256(f"{content} {config.model_dump_json(exclude={'self_training', 'rehearsal'})}".encode())
    for name, weights in start.weights.items():
        digest.update(name.encode() + serialised({key: values.contiguous() for key, values in weights.items()}))
    return digest.hexdigest()


def _view(source: Source, recipe: Recipe, data: Path, adaptation: Adaptation | None) -> View:
    """The classes that the source knows, of speakers who did not make it."""
    corpora = (recipe.data.corpus, *recipe.data.evaluate)
    known = source.acquaintances(corpora, data)

    def narrow(split: Split) -> Split:
        if not split.allow_overlap:
            assert_unheard(known, recipe.data.corpus, split.test.speakers)
        return _known(split, source, recipe)

    tested = {}
    for name in recipe.data.evaluate:
        if familiar := of_corpus(known, name):
            clips = read_corpus(name, data, recipe.data.options_of(name)).clips
            tested[name] = frozenset(clip.id for clip in clips if clip.speaker not in familiar and clip.label)
            if not any(clip.id in tested[name] and clip.label in source.classes for clip in clips):
                raise LeakageError(
                    f"everybody in {name} has trained or selected what it begins with: take it out of evaluate"
                )
    return View(narrow, adaptation, tested, source.classes)


def _known(split: Split, source: Source, recipe: Recipe) -> Split:
    found = shared_classes(split, source.classes)
    if empty := [name for name, part in found.parts.items() if not part.clips]:
        raise RunError(
            f"{recipe.data.corpus} has no clip of {', '.join(source.classes)} for {', '.join(empty)}: "
            "more speakers, or other dev_fraction and test_fraction, would give it some"
        )
    return found
