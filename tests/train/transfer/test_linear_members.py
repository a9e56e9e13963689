"""A linear member in a whole run, and what every kind of transfer makes of it."""

import json
from pathlib import Path

import pytest
import torch

from model.network.linear import Linear
from tests.train.transfer.conftest import World, silent
from train.errors import RecipeError
from train.run import train_ensemble
from train.transfer.adapt import adapt, adapted, hear
from train.transfer.finetune import finetune
from train.transfer.source import Source, read_source
from train.transfer.target import Target, load_target


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deep member and a linear one, of the corpus that all transfers begin with."""
    recipe = world.source().recipe
    deep = next(member for member in recipe.members if member.name == "voice")
    flat = {"name": "flat", "modalities": ["functionals", "text"], "seed": 3, "family": "linear"}
    plain = recipe.model_dump(exclude_unset=True) | {
        "members": [deep.model_dump(exclude_unset=True), flat],
        "fallbacks": (),
    }
    folder = tmp_path_factory.mktemp("linear") / "run"
    train_ensemble(type(recipe).model_validate(plain), world.data, world.cache, folder, 1, silent)
    return folder


def target_of(world: World, source: Source, more: str = "") -> Target:
    world.target(more)
    return load_target(world.folder / "target.toml", source.recipe)


def test_its_report_has_what_was_tried_and_no_learning_curve(run: Path) -> None:
    results = json.loads((run / "report.json").read_text())
    assert {row["member"] for row in results["learning_curves"]} == {"voice", "meta-classifier"}
    fits = results["linear_fits"]
    assert [(row["member"], row["fold"]) for row in fits] == [("flat", None), ("flat", 0), ("flat", 1)]
    assert all(row["kept"] == row["l2"][0] for row in fits)
    page = (run / "report.html").read_text()
    assert "Linear members: held-out macro-F1" in page
    assert "flat, without fold 1" in page


def test_aligning_leaves_it_as_it_is(world: World, run: Path, tmp_path: Path) -> None:
    """It has no representation of its own, and the deep member beside it does move."""
    source = read_source(run, ())
    target = target_of(world, source)
    found = adapted(source, target, "coral", hear(source, target, world.data, world.cache, silent), tmp_path, silent)
    voice, flat = (
        all(torch.equal(v, was.state_dict()[n]) for n, v in member.state_dict().items())
        for member, was in zip(found.ensemble.members, source.members, strict=True)
    )
    assert (voice, flat) == (False, True)
    alone = read_source(run, ("flat",))
    with pytest.raises(RecipeError, match="coral draws representations together, and linear members have none"):
        adapt(alone, target_of(world, alone), "coral", world.data, world.cache, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_fine_tuning_fits_it_anew_around_the_source(world: World, run: Path, tmp_path: Path) -> None:
    source, moved = read_source(run, ("flat",)), []
    (was,) = source.members
    assert isinstance(was, Linear)
    for l2 in (0.5, 500.0):
        target = target_of(world, source, f"[linear]\nl2 = [{l2}]\n")
        finetune(source, target, world.data, world.cache, tmp_path / str(l2), silent)
        (member,) = read_source(tmp_path / str(l2), ()).members
        assert isinstance(member, Linear)
        moved.append(float((member.classifier.weight - was.classifier.weight).detach().norm()))
    assert moved[0] > 3 * moved[1] > 0
