"""A recipe with several speech and text transformers, from a made-up corpus to what members read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from model.network.deepser import DeepSER
from tests.fakes import voice
from tests.model.tiny import TEXT_DIM, write_tiny_text_encoder
from tests.model.tiny_speech import SPEECH_DIM, write_tiny_speech
from tests.train.synthetic import RECIPES, write_votes, write_wav
from train.config import ComputeConfig, Recipe, load_recipe
from train.dataset import make_batch
from train.errors import RecipeError
from train.extraction import extraction_of, fill_cache
from train.prepare import Prepared, prepare

SPEAKERS = range(1001, 1007)
CODES = ("ANG", "SAD")
Calls = list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class Made:
    """A recipe with its data; read it, never change it."""

    recipe: Recipe
    data: Path
    cache: Path
    prepared: Prepared


def recipe_of(folder: Path) -> Recipe:
    shipped = load_recipe(RECIPES / "default.toml").model_dump(exclude_unset=True)
    speech = {"kind": "speech-transformer", "dim": SPEECH_DIM, "stack": 2}
    text = {"kind": "text-transformer", "dim": TEXT_DIM, "stack": 1}
    encoders = {
        "wavlm": speech | {"sources": [f"path:{folder / 'wavlm'}"]},
        "whisper": shipped["encoders"]["whisper"],
        "roberta": text | {"sources": [f"path:{folder / 'text'}"]},
        "modernbert": text | {"sources": [f"path:{folder / 'text'}"], "revision": "another"},
    }
    sizes = {"dim": 8, "heads": 2, "layers": 1, "feed_forward": 8, "dropout": 0.1}
    modalities = ["wavlm", "whisper", "roberta", "modernbert"]
    changed = {
        "data": shipped["data"] | {"evaluate": [], "dev_fraction": 0.2, "test_fraction": 0.2, "degraded_copies": 1},
        "text": None,
        "adaptation": None,
        "encoders": encoders,
        "member_defaults": sizes,
        "members": [{"name": "all", "modalities": modalities, "seed": 1}],
        "meta": shipped["meta"] | {"folds": 2},
    }
    return Recipe.model_validate(shipped | changed)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("extraction")
    write_tiny_speech(folder / "wavlm")
    write_tiny_text_encoder(folder / "text")
    cremad = folder / "data" / "cremad"
    votes = {"ANG": (8, 0, 0, 0, 1, 0), "SAD": (0, 1, 0, 0, 1, 7)}
    write_votes(cremad, {f"{s}_DFA_{code}_XX": votes[code] for s in SPEAKERS for code in CODES})
    for speaker in SPEAKERS:
        for index, code in enumerate(CODES):
            path = cremad / f"{speaker}_DFA_{code}_XX.wav"
            write_wav(path, voice(0.5 + 0.1 * index, 90.0 + 9.0 * (speaker - 1001) + 60.0 * index))
    recipe = recipe_of(folder)
    prepared = prepare(recipe, folder / "data", folder / "cache", lambda *call: None, "cpu")
    return Made(recipe, folder / "data", folder / "cache", prepared)


def test_members_are_given_every_modality_of_the_recipe(made: Made) -> None:
    for copy in made.prepared.training.copies:
        assert list(copy.frames) == ["wavlm", "whisper", "roberta", "modernbert"]
        assert {rows.shape[1] for rows in copy.frames["wavlm"]} == {SPEECH_DIM}
        assert {rows.shape[1] for rows in copy.frames["modernbert"]} == {TEXT_DIM}
    encoders = made.recipe.encoder_specs()
    batch = make_batch(made.prepared.training.train, encoders)
    member = DeepSER(made.recipe.member_specs()[0], encoders).eval()
    with torch.no_grad():
        logits, _ = member(batch.frames, batch.masks)
    assert torch.isfinite(logits).all()


def test_a_degraded_copy_sounds_different_and_says_the_same(made: Made) -> None:
    clean, degraded = made.prepared.training.copies
    for first, second in zip(clean.frames["wavlm"], degraded.frames["wavlm"], strict=True):
        assert not np.array_equal(first, second)
    for name in ("roberta", "modernbert"):
        for first, second in zip(clean.frames[name], degraded.frames[name], strict=True):
            np.testing.assert_array_equal(first, second)


def test_parts_fill_one_cache(made: Made, tmp_path: Path) -> None:
    """Each clip is in one part; after all parts nothing is left to extract, and nothing differs."""
    counts = [fill_cache(made.recipe, made.data, tmp_path, lambda *call: None, "cpu", (n, 3)) for n in (1, 2, 3)]
    assert counts == [4, 4, 4]
    calls = Calls()
    prepared = prepare(made.recipe, made.data, tmp_path, lambda *call: calls.append(call), "cpu")
    assert calls == []
    assert prepared.training.content == made.prepared.training.content
    for name, rows in made.prepared.training.train.frames.items():
        for found, expected in zip(prepared.training.train.frames[name], rows, strict=True):
            np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=5e-3, atol=0.02)


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (1, 0)])
def test_a_part_that_is_none_is_refused(part: tuple[int, int], made: Made) -> None:
    with pytest.raises(RecipeError, match=f"got {part[0]}/{part[1]}"):
        fill_cache(made.recipe, made.data, made.cache, lambda *call: None, "cpu", part)


def test_features_are_extracted_where_the_recipe_computes(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the command asks for another device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for wanted, asked, found in (
        ("cuda", "", "cuda"),
        ("cpu", "", "cpu"),
        ("auto", "cpu", "cpu"),
        ("cpu", "auto", "cuda"),
    ):
        recipe = made.recipe.model_copy(update={"compute": ComputeConfig(device=wanted)})
        assert extraction_of(recipe, tmp_path, lambda *call: None, asked).device.type == found
