"""What a recipe says for people to read changes nothing that is trained."""

from pathlib import Path

from tests.train.synthetic import RECIPES, TRAINED, make_examples, make_recipe, make_training_set
from train.config import Recipe, load_recipe
from train.stages.members import ALL_SPEAKERS, Job, train_member

SHIPPED = load_recipe(RECIPES / "default.toml")


def with_words(recipe: Recipe, licence: str, notes: tuple[str, ...]) -> Recipe:
    encoders = {name: encoder.model_copy(update={"licence": licence}) for name, encoder in recipe.encoders.items()}
    return recipe.model_copy(update={"encoders": encoders, "notes": notes})


def test_the_default_recipe_names_the_licences_of_what_it_builds_on() -> None:
    named = {name: encoder.licence for name, encoder in SHIPPED.encoders.items() if encoder.sources}
    assert named == {"whisper": "MIT", "text": "Apache-2.0"}


def test_a_licence_is_part_of_no_description_of_an_encoder() -> None:
    other = with_words(SHIPPED, "another", ())
    assert other.encoders["whisper"].licence == "another"
    assert other.encoder_specs() == SHIPPED.encoder_specs()
    assert "licence" not in SHIPPED.model_dump()["encoders"]["whisper"]


def test_other_words_train_nothing_again(tmp_path: Path) -> None:
    recipe, data = make_recipe(), make_training_set(make_examples(TRAINED * 6))
    job = Job(recipe.member_specs()[0], ALL_SPEAKERS)
    epochs: list[str] = []
    train_member(job, recipe, data, tmp_path, lambda stage, row: epochs.append(stage))
    assert epochs == ["stage1"] * 2 + ["stage2"] * 2
    train_member(job, with_words(recipe, "MIT", ("A note.",)), data, tmp_path, lambda stage, row: epochs.append(stage))
    assert len(epochs) == 4
    changed = recipe.model_copy(update={"seed": recipe.seed + 1})
    train_member(job, changed, data, tmp_path, lambda stage, row: epochs.append(stage))
    assert len(epochs) == 8
