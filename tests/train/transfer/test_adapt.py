"""Whole adaptations of a run to another corpus, whose labels are never read: what is heard, moved, told and tested."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from model.network.checkpoint import load_checkpoint
from model.spec import Lineage
from tests.train.transfer.conftest import LABELS, SPEAKERS, World, silent, with_data, write_target
from train.corpora import read_corpus
from train.dataset import Examples
from train.errors import RecipeError
from train.manifest import Clip
from train.prepare import prepare
from train.transfer.adapt import adapt, adapted, hear
from train.transfer.source import UNTOUCHED, Source, read_source
from train.transfer.start import CHOSEN
from train.transfer.target import Target
from train.transfer.unlabelled import Unlabelled, divided


@pytest.mark.parametrize("method", ["coral", "mmd", "dann", "normalise", "prior", "self-train"])
def test_adapting_never_reads_a_label_of_the_target(world: World, tmp_path: Path, method: str) -> None:
    """Other labels for everybody who does not test end in the same bytes; and it does change the ensemble."""
    source, target = world.source("voice"), world.target(folder=tmp_path)
    target = Target(target.recipe.model_copy(update={"members": source.recipe.members}), target.transfer)
    other = tmp_path / "data"
    shutil.copytree(world.data, other)
    testing = {clip.rsplit("-s", 1)[1] for clip in _test_speakers(world, target)}
    wrong = {
        (speaker, label, take): LABELS[(LABELS.index(label) + 1) % 5]
        for speaker, label, take in product(SPEAKERS, LABELS, range(2))
        if str(speaker) not in testing
    }
    assert len(wrong) == 6 * 5 * 2
    write_target(other / "mine", wrong)
    found, wronged = (
        adapted(source, target, method, hear(source, target, data, world.cache, silent), tmp_path / name, silent)
        for name, data in (("right", world.data), ("wrong", other))
    )
    before, after = source.members[0].state_dict(), found.ensemble.members[0].state_dict()
    for name, values in wronged.ensemble.members[0].state_dict().items():
        assert torch.equal(values, after[name]), name
    assert torch.equal(wronged.ensemble.soup.linear.bias, found.ensemble.soup.linear.bias)
    assert wronged.ensemble.temperature == found.ensemble.temperature
    moved = {name.split(".")[0] for name, values in after.items() if not torch.equal(values, before[name])}
    if method in ("normalise", "self-train"):
        assert "stacks" in moved
        assert method == "self-train" or moved == {"stacks"}
        assert source.checkpoint.adaptation is not None
        assert found.adaptation is not None
        assert wronged.adaptation is not None
        np.testing.assert_array_equal(found.adaptation.reference, wronged.adaptation.reference)
        assert not np.array_equal(found.adaptation.reference, source.checkpoint.adaptation.reference)
    else:
        assert (moved == set()) == (method == "prior")


def test_an_adapted_run_tells_what_it_learned_from(world: World, tmp_path: Path) -> None:
    """And what it is compared with, on the corpora of both; a second step adds to the first."""
    first = Lineage("before-0123456789ab", "medusa-train finetune", "elsewhere", 3, 2)
    source = world.source()
    source = replace(source, checkpoint=replace(source.checkpoint, lineage=(first,)))
    assert source.known is not None
    shutil.copytree(world.run, tmp_path / "out")
    adapt(source, world.target(folder=tmp_path), "normalise", world.data, world.cache, tmp_path / "out", silent)
    before, step = load_checkpoint(tmp_path / "out" / "checkpoint").lineage
    assert before == first
    base, audio = read_source(tmp_path / "out").acquaintances((), world.data)
    assert (base, audio.corpus, len(audio.learned), audio.selecting) == (source.known[0], "table", 6, ())
    assert (step.command, step.labelled, step.clips) == ("medusa-train adapt --method normalise", False, 6 * 5 * 2)
    assert str(step).endswith("of 6 speakers of table, without their labels.")
    results = json.loads((tmp_path / "out" / "report.json").read_text())
    assert results["learning_curves"] == [], "nothing was trained, whatever the folder holds"
    assert set(results["evaluations"]) == {"cremad (unseen speakers)", "table (unseen speakers)"}
    assert all(UNTOUCHED in evaluation["systems"] for evaluation in results["evaluations"].values())
    assert results["dropped"]["table"] == {"class that was not trained": 4, "clip that is not tested on": 6 * 5 * 2}
    assert results["lineage"][1]["source"] == world.source().id
    (kept,), (given,) = load_checkpoint(tmp_path / "out" / "checkpoint").fallbacks, world.source().fallbacks
    assert kept.spec == given.spec, "as it is served"
    assert world.source("voice").fallbacks == ()


def _test_speakers(world: World, target: Target, data: Path | None = None) -> set[str]:
    return set(prepare(target.recipe, data or world.data, world.cache, silent).test["table"].speakers)


def test_examples_are_no_unlabelled_audio() -> None:
    labels = {"targets", "attributes", "intended", "outvoted"}
    assert labels <= set(Examples.__slots__)
    assert not labels & set(Unlabelled.__slots__)


def test_adapting_is_to_another_corpus_by_a_method_that_there_is(world: World, tmp_path: Path) -> None:
    source, target = world.source(), world.target(folder=tmp_path)
    with pytest.raises(
        RecipeError, match="a method is one of coral, mmd, dann, normalise, prior, self-train, got 'magic'"
    ):
        adapt(source, target, "magic", world.data, world.cache, tmp_path / "out", silent)
    data = target.recipe.data.model_copy(update={"corpus": "cremad"})
    same = Target(target.recipe.model_copy(update={"data": data}), target.transfer)
    with pytest.raises(RecipeError, match="source and target are both 'cremad'"):
        adapt(source, same, "prior", world.data, world.cache, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def only_voice(world: World, target: Target) -> tuple[Source, Target]:
    source = world.source("voice")
    return source, Target(target.recipe.model_copy(update={"members": source.recipe.members}), target.transfer)


def test_audio_that_nobody_has_labelled_is_adapted_to(world: World, tmp_path: Path) -> None:
    """A table without a label column: all of it is heard, and the source's test sets are what there is to evaluate on."""
    data = Path(shutil.copytree(world.data, tmp_path / "data"))
    write_target(data / "mine", heard=False)
    source, target = only_voice(world, world.target(folder=tmp_path))
    words = source.recipe.encoders["text"].model_copy(update={"supervised_on": ("cremad",)})
    taught = source.recipe.model_copy(update={"encoders": {**source.recipe.encoders, "text": words}})
    source = replace(source, recipe=taught)
    adapt(source, target, "normalise", data, world.cache, tmp_path / "out", silent)
    (step,) = load_checkpoint(tmp_path / "out" / "checkpoint").lineage
    assert (step.clips, step.speakers, step.labelled) == (8 * 5 * 2, 8, False)
    results = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(results["evaluations"]) == {"cremad (unseen speakers)"}
    (evaluation,) = results["evaluations"].values()
    assert {UNTOUCHED, CHOSEN} <= set(evaluation["systems"]), "one of two members: they alone are compared with too"
    marks = {system: evaluation["systems"][system]["contaminated_by"] for system in (UNTOUCHED, CHOSEN)}
    assert marks == {UNTOUCHED: ["text"], CHOSEN: []}, "the member that was left out reads words"


def test_unlabelled_rows_are_heard_beside_labelled_ones(world: World, tmp_path: Path) -> None:
    """Who tests is decided among the labelled speakers, as for those who train on the labels."""
    data = Path(shutil.copytree(world.data, tmp_path / "data"))
    target = world.target(folder=tmp_path)
    write_target(data / "mine", {(s, label, take): "" for s in (0, 1) for label in LABELS for take in range(2)})
    found = divided(target.recipe, data)
    tested = {clip.id for clip in prepare_test(target, data, world.cache)}
    assert tested <= found.tested
    silent_ones = {clip.id for clip in found.clips if clip.label is None}
    assert len(silent_ones) == 2 * 5 * 2
    assert not {clip.id for clip in found.clips} & found.tested
    assert not {clip.speaker for clip in found.clips} & set(_test_speakers(world, target, data))


def prepare_test(target: Target, data: Path, cache: Path) -> list[Clip]:
    names = set(prepare(target.recipe, data, cache, silent).test["table"].ids)
    return [clip for clip in read_corpus("table", data, target.recipe.data.options).clips if clip.id in names]


def test_a_published_split_with_overlap_tests_none_of_the_clips_that_were_heard(world: World, tmp_path: Path) -> None:
    data = Path(shutil.copytree(world.data, tmp_path / "data"))
    rows = (data / "mine" / "labels.csv").read_text(encoding="utf-8").splitlines()
    parts = ["split"] + [("test" if n % 2 else "dev" if n % 4 else "train") for n in range(len(rows) - 1)]
    (data / "mine" / "labels.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(rows, parts, strict=True)))
    source, target = only_voice(world, with_data(world.target(folder=tmp_path), split="published", allow_overlap=True))
    heard = hear(source, target, data, world.cache, silent)
    assert set(heard.audio.speakers) & set(heard.prepared.test["table"].speakers), "the corpus shares them"
    assert not set(heard.audio.ids) & set(heard.prepared.test["table"].ids)
    assert len(heard.audio) == 40
    assert heard.prepared.dropped["table"]["clip that is not tested on"] == 40
