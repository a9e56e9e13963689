from dataclasses import replace
from pathlib import Path

import pytest

from model.features import PROSODY_DIM, functionals_dim
from model.labels import CLASSES
from tests.train.synthetic import RECIPES, make_clip
from train.config import load_recipe
from train.corpora import READERS
from train.errors import RecipeError
from train.manifest import Manifest, leave_one_fold_out
from train.prepare import split_of
from train.stages.members import pairing_of

SHIPPED = sorted(RECIPES.rglob("*.toml"))
DEFAULT = RECIPES / "default.toml"


def changed(tmp_path: Path, **lines: str) -> Path:
    """The default recipe with whole lines exchanged: old line -> new line."""
    text = DEFAULT.read_text(encoding="utf-8")
    for old, new in lines.items():
        assert text.count(f"{old}\n") >= 1, old
        text = text.replace(f"{old}\n", f"{new}\n", 1)
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return str(caught.value)


def test_there_are_recipes() -> None:
    assert DEFAULT in SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_shipped_recipe_can_be_run(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.data.corpus in READERS
    assert set(recipe.data.evaluate) <= set(READERS)
    assert recipe.data.corpus not in recipe.data.evaluate
    assert set(recipe.encoder_specs()) == set(recipe.encoders)
    assert len(set(recipe.meta.seeds)) == len(recipe.meta.seeds)
    pairing_of(recipe)
    for encoder in recipe.encoder_specs().values():
        if encoder.kind == "prosody":
            assert encoder.dim == PROSODY_DIM
        if encoder.kind == "functionals":
            assert encoder.dim == functionals_dim(recipe.encoders["whisper"].dim)
    for member in recipe.member_specs():
        assert set(member.modalities) <= set(recipe.encoders)
    read = {name for member in recipe.members for name in member.modalities}
    assert read <= set(recipe.encoders)


def test_members_of_one_description_differ_by_seed() -> None:
    """Members that are there to be compared share a seed, and differ in what is compared."""
    for path in SHIPPED:
        seen = [replace(spec, name="any") for spec in load_recipe(path).member_specs()]
        assert len(set(seen)) == len(seen), path


def test_sizes_come_from_the_defaults_unless_a_member_has_its_own(tmp_path: Path) -> None:
    path = changed(tmp_path, **{"feed_forward = 128": "feed_forward = 40"})
    recipe = load_recipe(path)
    sized = [spec for spec in recipe.member_specs() if spec.family != "linear"]
    assert {spec.feed_forward for spec in sized} == {40}
    own = {member.name: member.dim for member in recipe.members}
    for spec in sized:
        assert spec.dim == (own[spec.name] or recipe.member_defaults.dim)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    path = changed(
        tmp_path,
        **{
            "dev_fraction = 0.1": "dev_fraction = 1.5",
            'kind = "functionals"': 'kind = "opensmile"',
            "folds = 4": "folds = 1",
            "heads = 4": "heads = 'four'\nwings = 2",
        },
    )
    message = refusal(path)
    assert f"{path} has 5 mistakes" in message
    for field, value in (
        ("data.dev_fraction", "1.5"),
        ("encoders.functionals.kind", "'opensmile'"),
        ("meta.folds", "1"),
        ("member_defaults.heads", "'four'"),
        ("member_defaults.wings", "2"),
    ):
        assert any(line.strip().startswith(f"{field}: ") and f"(got {value})" in line for line in message.splitlines())


def test_a_section_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('name = "short"\n', encoding="utf-8")
    message = refusal(path)
    for section in ("data", "encoders", "member_defaults", "members", "stage1", "stage2", "meta"):
        assert f"  {section}: Field required" in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('modalities = ["functionals"]', 'modalities = ["egemaps"]', r"member 'functionals' reads \['egemaps'\]"),
        ('name = "functionals"', 'name = "functionals-text"', "member names must differ"),
        ("heads = 4", "heads = 5", "heads must divide dim, got 5"),
        ('modalities = ["functionals"]', "modalities = []", "needs one or more different modalities"),
        ("seeds = [1, 2, 3, 4, 5, 6]", "seeds = []", "meta.seeds"),
        ("heads = 4", 'heads = 4\nfamily = "vga"', r"fuses two or more modalities, and deeply, got \('functionals',\)"),
        ("heads = 4", "heads = 4\ncontrast = 8", "contrast is the width of projections of two or more modalities"),
        ("heads = 4", 'heads = 4\nattention = "hard"', "attention: Input should be 'plain' or 'vad-guided'"),
    ],
)
def test_members_that_cannot_be_built_are_refused(tmp_path: Path, old: str, new: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load_recipe(changed(tmp_path, **{old: new}))


@pytest.mark.parametrize(
    ("lines", "got"),
    [
        ('split = "folds"', "'folds', None and 5 folds"),
        ("test_fold = 1", "'speakers', 1 and 5 folds"),
        ('split = "folds"\ntest_fold = 5', "'folds', 5 and 5 folds"),
    ],
)
def test_a_fold_is_tested_where_speakers_are_split_into_folds(tmp_path: Path, lines: str, got: str) -> None:
    with pytest.raises(RecipeError, match='test_fold belongs to split = "folds" and is below `folds`') as caught:
        load_recipe(changed(tmp_path, **{"split_seed = 0": f"split_seed = 0\n{lines}"}))
    assert got in str(caught.value)
    folds = 'split_seed = 0\nsplit = "folds"\nfolds = 3\ntest_fold = 2'
    data = load_recipe(changed(tmp_path, **{"split_seed = 0": folds})).data
    manifest = Manifest(tuple(make_clip(f"clip-{n}", f"cremad-{n}") for n in range(9)))
    expected = leave_one_fold_out(manifest, 3, 0)[2]
    assert split_of(manifest, data) == expected


def test_what_is_no_recipe_is_a_recipe_error(tmp_path: Path) -> None:
    assert "cannot read the recipe" in refusal(tmp_path / "none.toml")
    path = tmp_path / "broken.toml"
    path.write_text("name = \n", encoding="utf-8")
    assert f"{path} is not TOML" in refusal(path)


def test_a_recipe_speaks_of_canonical_classes_only() -> None:
    """Classes come from the corpus: no recipe lists them again."""
    for path in SHIPPED:
        assert not set(CLASSES) & set(load_recipe(path).model_dump()), path
