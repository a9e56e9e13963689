"""Fine-tuning: the members of a finished run, trained further on a corpus of one's own, and joined and calibrated anew."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.torch import save as serialised

from model.network.member import Member
from model.spec import Lineage
from train.config import Recipe
from train.cost import FEATURES, META, Cost
from train.errors import RunError
from train.execution import device_of
from train.features import Progress
from train.manifest import Split
from train.prepare import Prepared, View, prepare
from train.reference import Guesses
from train.run import Descent, finish_run, jobs_of, train_meta_classifiers
from train.stacking import Stacked
from train.stages.members import ALL_SPEAKERS, Job, Place, TrainingSet, train_member
from train.stored_stack import save_stacked
from train.transfer.joining import joined, soft_vote
from train.transfer.normalise import normalised, reference_of
from train.transfer.source import UNTOUCHED, Source
from train.transfer.start import Anchor, Start
from train.transfer.target import Target, TransferConfig, shared_classes
from train.transfer.unlabelled import target_audio

COMMAND: Final = "medusa-train finetune"


def finetune(source: Source, target: Target, data: Path, cache: Path, out: Path, progress: Progress) -> Path:
    """Trains the source's members on the target, or what is missing of it; returns the report's path.

    Args:
        source: where members begin.
        target: corpus, stages, and how.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        out: folder of the new run.
        progress: told what is done.

    Raises:
        CorpusError: if the corpus is missing or incomplete.
        RunError: if the target has no class that the source knows.
    """
    cost, recipe = Cost(out), target.recipe
    with cost.timed(FEATURES):
        prepared = begin(source, target, data, cache, progress)
        as_source = heard_by_source(source, target, data, cache, progress)
    speakers = len(set(prepared.training.train.speakers))
    refit = target.transfer.meta == "refit" and speakers >= recipe.meta.folds
    jobs = jobs_of(recipe) if refit else [Job(spec, ALL_SPEAKERS) for spec in recipe.member_specs()]
    trained = train_jobs(jobs, recipe, prepared.training, out / "members", progress)
    with cost.timed(META):
        ensemble = (
            train_meta_classifiers(recipe, prepared, out)
            if refit
            else _kept(source, recipe, prepared, tuple(trained.values()), out)
        )
    told = () if refit else (_told_of_meta(source, speakers, recipe),)
    descent = Descent(
        lineage=(*source.checkpoint.lineage, step_of(source, prepared, recipe, COMMAND)),
        beside=untouched(source, as_source),
        limits=told,
    )
    return finish_run(recipe, prepared, ensemble, cache, out, progress, descent)


def begin(
    source: Source,
    target: Target,
    data: Path,
    cache: Path,
    progress: Progress,
    narrow: Callable[[Split], Split] = lambda split: split,
) -> Prepared:
    """Prepares the target's classes that the source knows; the training set knows what members begin with.

    Args:
        source: where members begin.
        target: corpus and how.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        progress: told what is done.
        narrow: takes further clips out of the split.

    Raises:
        CorpusError: if the corpus is missing or incomplete.
        RunError: if the target has no class that the source knows, or lacks a part.
    """
    own, config, recipe = source.checkpoint.adaptation, target.transfer, target.recipe
    weights = {member.spec.name: member.state_dict() for member in source.members}
    if config.statistics == "target":
        audio, _ = target_audio(recipe, data, cache, progress)
        own = reference_of(audio, own) if own else None
        heard, encoders = audio.heard(own, np.random.default_rng(recipe.seed)), recipe.encoder_specs()
        weights = {member.spec.name: normalised(member, heard, encoders) for member in source.members}
    view = View(lambda split: narrow(_known(split, source, recipe)), own)
    prepared = prepare(recipe, data, cache, progress, view=view)
    anchor = config.anchor
    start = Start(
        weights=weights,
        heads_only=config.train == "heads",
        auxiliary=(lambda member, seed, steps: Anchor(member, anchor)) if anchor else None,
    )
    training = replace(
        prepared.training,
        start=start,
        content=started_content(prepared.training.content, start, config),
        trained_classes=source.classes,  # it does not unlearn one that few clips happen to lack
    )
    return replace(prepared, training=training)


def untouched(source: Source, as_source: Prepared) -> dict[str, dict[str, Guesses]]:
    """The source's own guesses on every test set, by the way in which clips are heard: what a transfer is held against.

    Args:
        source: as it is served.
        as_source: the test sets, with channels as the source hears them.
    """
    found = {}
    for name, test in as_source.test.items():
        others = {f"{UNTOUCHED}, {way}": source.guesses(heard) for way, heard in as_source.otherwise[name].items()}
        found[name] = {UNTOUCHED: source.guesses(test), **others}
    return found


def heard_by_source(source: Source, target: Target, data: Path, cache: Path, progress: Progress) -> Prepared:
    """The target's classes that the source knows, with channels as the untouched source hears them."""
    view = View(lambda split: _known(split, source, target.recipe), source.checkpoint.adaptation)
    return prepare(target.recipe, data, cache, progress, view=view)


def _known(split: Split, source: Source, recipe: Recipe) -> Split:
    found = shared_classes(split, source.classes)
    if empty := [name for name, part in found.parts.items() if not part.clips]:
        raise RunError(
            f"{recipe.data.corpus} has no clip of {', '.join(source.classes)} for {', '.join(empty)}: "
            "more speakers, or other dev_fraction and test_fraction, would give it some"
        )
    return found


def started_content(content: str, start: Start, config: TransferConfig) -> str:
    """The hash of the examples and of all that members begin with."""
    digest = hashlib.sha256(f"{content} {config.model_dump_json()}".encode())
    for name, weights in start.weights.items():
        digest.update(name.encode() + serialised({key: values.contiguous() for key, values in weights.items()}))
    return digest.hexdigest()


def train_jobs(
    jobs: list[Job], recipe: Recipe, training: TrainingSet, folder: Path, progress: Progress
) -> Mapping[str, Member]:
    """Members by the name of their job, one after the other: a corpus of one's own is small."""
    place, found = Place(device_of(recipe.compute.device)), {}
    for done, job in enumerate(jobs, 1):
        found[job.name] = train_member(job, recipe, training, folder, place=place)
        progress("members", done, len(jobs))
    return found


def step_of(source: Source, prepared: Prepared, recipe: Recipe, command: str) -> Lineage:
    """What the run learned from, for its lineage."""
    learned = prepared.training.train
    return Lineage(source.id, command, recipe.data.corpus, len(learned), len(set(learned.speakers)))


def _kept(source: Source, recipe: Recipe, prepared: Prepared, members: tuple[Member, ...], out: Path) -> Stacked:
    meta = source.meta or soft_vote(len(members))
    stacked = joined(recipe, prepared, members, meta, source.checkpoint.spec.trained_attributes)
    save_stacked(out / "meta", "given", stacked)
    return stacked


def _told_of_meta(source: Source, speakers: int, recipe: Recipe) -> str:
    given = "the source's" if source.meta else "a soft vote"
    return f"The meta-classifier is {given}: {speakers} training speakers, {recipe.meta.folds} folds."
