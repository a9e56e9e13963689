from dataclasses import replace
from pathlib import Path

import pytest

from model.network.deepser import DeepSER
from model.spec import EncoderSpec
from tests.fakes import voice
from tests.model.tiny import TEXT_DIM, write_tiny_text_encoder
from tests.train.synthetic import RECIPES, write_votes, write_wav
from train import dry_run as module
from train.config import Recipe, load_recipe
from train.dry_run import dry_run

SHIPPED = sorted(RECIPES.rglob("*.toml"))
COUNT = 7
"""Recipes that ship: a new one is written down here, so that none is skipped unseen."""
PAPER = [
    ("hubert", "roberta"),
    ("wavlm", "hubert", "roberta"),
    ("wavlm", "whisper", "hubert"),
    ("wavlm", "modernbert"),
    *[("wavlm", "roberta")] * 4,
    *[("whisper", "modernbert")] * 2,
    *[("whisper", "roberta")] * 2,
    ("whisper", "wavlm"),
    ("whisper", "wavlm", "modernbert"),
]
"""Table 1."""
STANDS_FOR = {
    "wavlm": "functionals",
    "hubert": "prosody",
    "whisper": "whisper",
    "roberta": "text",
    "modernbert": "text",
}


def test_every_recipe_is_among_these() -> None:
    assert len(SHIPPED) == COUNT


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_shipped_recipe_can_be_built(path: Path) -> None:
    recipe = load_recipe(path)
    plan = dry_run(recipe, None)
    assert [(member.name, member.modalities) for member in plan.members] == [
        (member.name, member.modalities) for member in recipe.members
    ]
    assert all(member.parameters > 0 and member.operations > member.parameters for member in plan.members)
    assert [encoder.name for encoder in plan.encoders] == list(recipe.encoders)
    assert all(encoder.parameters is not None for encoder in plan.encoders)
    assert all(encoder.bytes_per_hour > 0 for encoder in plan.encoders if encoder.kind != "functionals")
    assert set(plan.missing) == {recipe.data.corpus, *recipe.data.evaluate}
    assert plan.corpora == ()
    assert plan.training_hours is None
    assert plan.why_no_time == f"the corpus {recipe.data.corpus} is not here"


def test_the_full_recipe_is_the_paper_s() -> None:
    recipe = load_recipe(RECIPES / "medusa.toml")
    assert [member.modalities for member in recipe.members] == PAPER
    assert {(spec.dim, spec.layers) for spec in recipe.member_specs()} == {(1024, 2)}
    for stage in (recipe.stage1, recipe.stage2):
        assert (stage.batch_size, stage.learning_rate, stage.mixup) == (16, 1e-5, 0.3)
    assert (recipe.meta.batch_size, recipe.meta.learning_rate, len(recipe.meta.seeds)) == (128, 1e-3, 6)
    assert recipe.encoders.keys() == STANDS_FOR.keys()


def test_the_small_recipe_has_the_shape_of_the_full_one() -> None:
    full, small = (load_recipe(RECIPES / f"{name}.toml") for name in ("medusa", "small"))
    assert [(m.name, m.seed) for m in small.members] == [(m.name, m.seed) for m in full.members]
    for mine, theirs in zip(small.members, full.members, strict=True):
        assert mine.modalities == tuple(STANDS_FOR[name] for name in theirs.modalities)
    assert (small.meta.seeds, small.stage1.mixup) == (full.meta.seeds, full.stage1.mixup)


def small_recipe(text: Path, **data: object) -> Recipe:
    shipped = load_recipe(RECIPES / "small.toml").model_dump(exclude_unset=True)
    words = {"kind": "text-transformer", "dim": TEXT_DIM, "stack": 1, "sources": [f"path:{text}"]}
    encoders = shipped["encoders"] | {"text": words}
    return Recipe.model_validate(shipped | {"data": shipped["data"] | data, "encoders": encoders})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten speakers with two clips of a second each, and a text encoder."""
    folder = tmp_path_factory.mktemp("dry")
    write_tiny_text_encoder(folder / "text")
    votes = {"ANG": (8, 0, 0, 0, 1, 0), "SAD": (0, 1, 0, 0, 1, 7)}
    write_votes(folder / "cremad", {f"{s}_DFA_{c}_XX": v for s in range(1001, 1011) for c, v in votes.items()})
    for speaker in range(1001, 1011):
        for code in votes:
            samples = voice(2.0, 100.0)[:16_000]
            write_wav(folder / "cremad" / f"{speaker}_DFA_{code}_XX.wav", samples)
    return folder


def test_parameters_are_those_of_the_members_that_would_be_trained(folder: Path) -> None:
    recipe = small_recipe(folder / "text")
    encoders = recipe.encoder_specs()
    for plan, spec in zip(dry_run(recipe, None).members, recipe.member_specs(), strict=True):
        assert plan.parameters == sum(p.numel() for p in DeepSER(spec, encoders).parameters())


def test_data_that_is_here_is_counted_and_a_step_is_timed(folder: Path) -> None:
    plan = dry_run(small_recipe(folder / "text"), folder)
    (corpus,) = plan.corpora
    assert (corpus.name, corpus.clips) == ("cremad", 20)
    assert corpus.hours == pytest.approx(20 / 3600, rel=0.01)
    hourly = sum(encoder.bytes_per_hour for encoder in plan.encoders)
    assert corpus.feature_bytes == pytest.approx(hourly * 20 / 3600, rel=0.01)
    assert set(plan.missing) == {"ravdess"}
    assert plan.training_hours is not None
    assert 0 < plan.training_hours < 1
    assert plan.why_no_time == ""


def test_degraded_copies_take_disk_but_for_their_words(folder: Path) -> None:
    plain, copied = (dry_run(small_recipe(folder / "text", degraded_copies=n), folder).corpora[0] for n in (0, 2))
    text = EncoderSpec("text", "text-transformer", TEXT_DIM, 1)
    words = 20 * module._bytes_per_s(text)
    assert copied.feature_bytes == pytest.approx(words + 3 * (plain.feature_bytes - words), rel=0.01)


def test_no_time_is_told_of_members_that_no_step_is_tried_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST_TIMED", 1000)
    plan = dry_run(small_recipe(folder / "text"), folder)
    assert plan.training_hours is None
    assert "no step of it was tried" in plan.why_no_time


def test_an_encoder_that_is_nowhere_has_no_count() -> None:
    whisper = load_recipe(RECIPES / "default.toml").encoder_specs()["whisper"]
    assert module._parameters(whisper) == pytest.approx(7.6e6, rel=0.01)
    assert module._parameters(replace(whisper, sources=("hub:somebody/else", "path:/nowhere"))) is None
