"""Features of whole corpora, every modality of a recipe: in one process, or in several that fill one cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.features import functionals
from model.spec import EncoderSpec
from train.augment_config import AugmentConfig
from train.cache import pinned
from train.config import Recipe
from train.corpora import read_corpus
from train.dataset import FUNCTIONALS, HalfFrames
from train.encoding import choose_device
from train.errors import RecipeError
from train.features import CLEAN, Progress, extract_speech, extract_text
from train.manifest import Clip


@dataclass(frozen=True, slots=True)
class Extraction:
    """How features are extracted: encoders by modality, cache folder, where it is told, device, degraded copies."""

    encoders: Mapping[str, EncoderSpec]
    cache: Path
    progress: Progress
    device: str
    augment: AugmentConfig

    def frames(
        self, clips: Sequence[Clip], copy: int = CLEAN, clean: Mapping[str, dict[str, HalfFrames]] | None = None
    ) -> dict[str, dict[str, HalfFrames]]:
        """Features of clips by modality and id; a degraded copy is given the words of the clean one."""
        extracted = extract_speech(clips, self.encoders, self.cache, self.progress, copy, self.device, self.augment)
        frames = dict(extracted.frames)
        if FUNCTIONALS in self.encoders:
            frames[FUNCTIONALS] = {
                clip.id: functionals(
                    frames["whisper"][clip.id].astype(np.float32), frames["prosody"][clip.id].astype(np.float32)
                ).astype(np.float16)
                for clip in clips
            }
        for name, encoder in self.encoders.items():
            if encoder.kind == "text-transformer":
                frames[name] = clean[name] if clean else self.words(extracted.transcripts, name)
        return {name: frames[name] for name in self.encoders}

    def words(self, texts: Mapping[str, str], modality: str) -> dict[str, HalfFrames]:
        """Frames of texts by their key."""
        return extract_text(texts, self.encoders[modality], self.cache, self.progress, self.device)


def extraction_of(recipe: Recipe, cache: Path, progress: Progress, device: str) -> Extraction:
    """How a recipe's features are extracted, its encoders pinned to the weights that are here.

    Raises:
        RecipeError: if there is no such device.
        SourceError: if no source has an encoder's weights.
    """
    choose_device(device)  # before hours of other work
    encoders = {name: pinned(encoder) for name, encoder in recipe.encoder_specs().items()}
    return Extraction(encoders, cache, progress, device, recipe.augment)


def fill_cache(recipe: Recipe, data: Path, cache: Path, progress: Progress, device: str, part: tuple[int, int]) -> int:
    """Extracts one of several disjoint parts of the clips, for processes that fill one cache side by side.

    Args:
        recipe: names the corpora and the encoders.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        progress: told what is done.
        device: where encoders run.
        part: (number from 1, of how many).

    Returns:
        The number of clips in this part.

    Raises:
        CorpusError: if a corpus is missing or incomplete.
        RecipeError: if there is no such part.
    """
    number, parts = part
    if not 1 <= number <= parts:
        raise RecipeError(f"a part is one of 1/{parts} to {parts}/{parts}, got {number}/{parts}")
    extraction = extraction_of(recipe, cache, progress, device)
    count = 0
    for name in (recipe.data.corpus, *recipe.data.evaluate):
        own = name == recipe.data.corpus
        options = recipe.data.options if own else recipe.data.options_of(name)
        clips = read_corpus(name, data, options).clips[number - 1 :: parts]
        clean = extraction.frames(clips)
        for copy in range(1, recipe.data.degraded_copies + 1 if own else 1):
            extraction.frames(clips, copy, clean)
        count += len(clips)
    return count
