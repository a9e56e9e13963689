"""Features of whole corpora, every modality of a recipe: in one process, or in several that fill one cache."""

from pathlib import Path

from train.cache import pinned
from train.config import Recipe
from train.corpora import read_corpus
from train.errors import RecipeError
from train.execution import device_of
from train.features import Extraction, Progress


def extraction_of(recipe: Recipe, cache: Path, progress: Progress, device: str = "") -> Extraction:
    """How a recipe's features are extracted, its encoders pinned to the weights that are here.

    Args:
        recipe: names the encoders.
        cache: folder of the feature cache.
        progress: told what is done.
        device: where encoders run; "" for the recipe's `compute.device`.

    Raises:
        RecipeError: if there is no such device.
        SourceError: if no source has an encoder's weights.
    """
    place = device_of(device or recipe.compute.device)  # before hours of other work
    encoders = {name: pinned(encoder) for name, encoder in recipe.encoder_specs().items()}
    return Extraction(encoders, cache, progress, place, recipe.augment)


def fill_cache(recipe: Recipe, data: Path, cache: Path, progress: Progress, device: str, part: tuple[int, int]) -> int:
    """Extracts one of several disjoint parts of the clips, for processes that fill one cache side by side.

    Args:
        recipe: names the corpora and the encoders.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        progress: told what is done.
        device: where encoders run; "" for the recipe's `compute.device`.
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
