"""From a data folder to what stages train on: corpora, splits, features, sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.features import functionals
from model.labels import CLASSES
from model.spec import EncoderSpec
from train.config import Recipe
from train.corpora import read_corpus
from train.corpora.goemotions import Sentence, read_goemotions
from train.dataset import TEXT, Examples, HalfFrames, examples_of
from train.features import Progress, extract_speech, extract_text
from train.manifest import Clip, Manifest, Split, speaker_folds, split_speakers
from train.pairing import TextBank
from train.stages.members import TrainingSet


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a run needs.

    Attributes:
        training: what members are trained on.
        test: clips of speakers that no stage sees, per corpus.
        votes: annotators' vote vectors of the test clips, rows sum to 1, per corpus.
        dropped: corpus -> reason -> rows left out.
    """

    training: TrainingSet
    test: dict[str, Examples]
    votes: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
    dropped: dict[str, dict[str, int]]


def prepare(recipe: Recipe, data: Path, cache: Path, progress: Progress) -> Prepared:
    """Reads the corpora, extracts what is not cached, and splits by speaker.

    Raises:
        CorpusError: if a corpus is missing or incomplete.
        LeakageError: if a speaker would stand on two sides.
    """
    manifest = read_corpus(recipe.data.corpus, data)
    dropped = {recipe.data.corpus: manifest.dropped}
    split = split_speakers(manifest, recipe.data.dev_fraction, recipe.data.test_fraction, recipe.data.split_seed)
    encoders = recipe.encoder_specs()
    frames = _frames(manifest.clips, encoders, cache, progress)
    train = examples_of(split.train.clips, _only(frames, split.train), recipe.data.intended_votes)
    trained = tuple(name for name, mass in zip(CLASSES, train.targets.sum(axis=0), strict=True) if mass > 0)
    training = TrainingSet(
        train=train,
        folds=_fold_numbers(split, recipe),
        dev=examples_of(split.dev.clips, _only(frames, split.dev), recipe.data.intended_votes),
        bank=_bank(recipe, data, cache, trained, encoders, progress),
        trained_classes=trained,
    )
    tests = {recipe.data.corpus: split.test}
    for name in recipe.data.evaluate:
        other = read_corpus(name, data)
        kept = tuple(clip for clip in other.clips if clip.intended in trained)
        dropped[name] = other.dropped | {"class that was not trained": len(other.clips) - len(kept)}
        tests[name] = Manifest(kept)
        frames = _merge(frames, _frames(kept, encoders, cache, progress))
    return Prepared(
        training=training,
        test={name: examples_of(part.clips, _only(frames, part), 1.0) for name, part in tests.items()},
        votes={name: examples_of(part.clips, {}, 1e-6).targets for name, part in tests.items()},
        dropped=dropped,
    )


def _frames(
    clips: Sequence[Clip], encoders: Mapping[str, EncoderSpec], cache: Path, progress: Progress
) -> dict[str, dict[str, HalfFrames]]:
    extracted = extract_speech(clips, encoders, cache, progress)
    frames = dict(extracted.frames)
    if "functionals" in encoders:
        frames["functionals"] = {
            clip.id: functionals(
                frames["whisper"][clip.id].astype(np.float32), frames["prosody"][clip.id].astype(np.float32)
            ).astype(np.float16)
            for clip in clips
        }
    if TEXT in encoders:
        frames[TEXT] = extract_text(extracted.transcripts, encoders[TEXT], cache, progress)
    return {name: frames[name] for name in encoders}


def _only(frames: Mapping[str, Mapping[str, HalfFrames]], part: Manifest) -> dict[str, dict[str, HalfFrames]]:
    return {name: {clip.id: rows[clip.id] for clip in part.clips} for name, rows in frames.items()}


def _merge(
    first: Mapping[str, dict[str, HalfFrames]], second: Mapping[str, dict[str, HalfFrames]]
) -> dict[str, dict[str, HalfFrames]]:
    return {name: first[name] | second[name] for name in first}


def _fold_numbers(split: Split, recipe: Recipe) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    folds = speaker_folds(split.train, recipe.meta.folds, recipe.data.split_seed)
    number = {speaker: index for index, fold in enumerate(folds) for speaker in fold.speakers}
    return np.array([number[clip.speaker] for clip in split.train.clips], np.int64)


def _bank(
    recipe: Recipe,
    data: Path,
    cache: Path,
    trained: Sequence[str],
    encoders: Mapping[str, EncoderSpec],
    progress: Progress,
) -> TextBank | None:
    if recipe.text is None or TEXT not in encoders:
        return None
    rows = read_goemotions(data / "text" / recipe.text.corpus, "train", trained).rows
    rng = np.random.default_rng(recipe.seed)
    chosen: dict[str, list[Sentence]] = {}
    for name in trained:
        mine = [row for row in rows if row.emotion == name]
        order = rng.permutation(len(mine))[: recipe.text.sentences_per_class]
        chosen[name] = [mine[index] for index in order]
    texts = {row.id: row.text for part in chosen.values() for row in part}
    frames = extract_text(texts, encoders[TEXT], cache, progress)
    return TextBank({name: [frames[row.id] for row in part] for name, part in chosen.items()})
