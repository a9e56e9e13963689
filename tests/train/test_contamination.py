"""A figure on a corpus that an encoder was taught is marked, in every table and in its very row."""

import ast
import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from model.features import functionals
from tests.train.results import SOUP, make_results
from tests.train.synthetic import make_recipe
from train.cli import app
from train.config import EncoderConfig, Recipe
from train.contamination import KEY, contaminating, contaminating_members, marked, note, taught_test_corpora
from train.dataset import READ_BY_FUNCTIONALS
from train.report import model_card, render, scores_of

OTHER = "<guess> & go"
TRAIN = Path(__file__).parents[2] / "train"


def recipe_with(**supervised_on: tuple[str, ...]) -> Recipe:
    recipe = make_recipe()
    encoders = {
        name: EncoderConfig(kind="prosody", dim=4, stack=1, supervised_on=supervised_on.get(name, ()))
        for name in ("whisper", "prosody", "functionals", "text")
    }
    members = tuple(
        recipe.members[0].model_copy(update={"name": name, "modalities": read})
        for name, read in (("a", ("prosody", "text")), ("b", ("functionals",)), ("c", ("whisper",)))
    )
    return recipe.model_copy(update={"encoders": encoders, "members": members})


def test_what_reads_an_encoder_that_was_taught_the_corpus_is_contaminated() -> None:
    recipe = recipe_with(text=("cremad", "meld"), whisper=("meld",))
    assert contaminating(recipe, "cremad", ("whisper", "text")) == ["text"]
    assert contaminating(recipe, "cremad, degraded", ("text",)) == ["text"], "other microphones, the same clips"
    assert contaminating(recipe, "cremad", ("whisper", "prosody")) == []
    assert contaminating(recipe, "ravdess", ("whisper", "text")) == []
    assert contaminating(recipe, "meld", ("functionals",)) == ["whisper"], "functionals are made of its frames"
    assert contaminating_members(recipe, "cremad") == {"a": ["text"]}
    assert contaminating_members(recipe, "meld") == {"a": ["text"], "b": ["whisper"], "c": ["whisper"]}


@pytest.mark.parametrize("read", signature(functionals).parameters)
def test_functionals_are_contaminated_by_each_of_what_they_are_made_of(read: str) -> None:
    recipe = recipe_with(**{read: ("meld",)})
    assert contaminating(recipe, "meld", ("functionals",)) == [read]
    assert contaminating(recipe, "meld", ("text",)) == []


def test_what_functionals_read_is_decided_in_one_place() -> None:
    assert tuple(signature(functionals).parameters) == READ_BY_FUNCTIONALS
    retyped = [
        path.name
        for path in sorted(TRAIN.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Tuple)
        and tuple(item.value for item in node.elts if isinstance(item, ast.Constant)) == READ_BY_FUNCTIONALS
    ]
    assert retyped == ["dataset.py"]


def test_an_ensemble_tells_the_encoders_that_were_taught_what_evaluates_it() -> None:
    recipe = recipe_with(text=("cremad", "meld", "ravdess"), whisper=("meld",), prosody=("ravdess",))
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"corpus": "cremad", "evaluate": ("ravdess",)})}
    )
    assert taught_test_corpora(recipe) == {"prosody": ["ravdess"], "text": ["cremad", "ravdess"]}


def test_results_of_before_marks_have_none() -> None:
    assert marked("soup", {}) == marked("soup", {KEY: []}) == "soup"
    assert note([{}, {KEY: []}]) == ""


@pytest.fixture
def results() -> dict[str, Any]:
    """Of two sets; the soup alone reads encoders that were taught the first one."""
    results = make_results()
    for number, evaluation in enumerate(results["evaluations"].values()):
        for system, score in evaluation["systems"].items():
            score[KEY] = ["voice", "words"] if number == 0 and system == SOUP else []
    return results


def test_the_row_is_marked_in_card_page_and_console(results: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(results), encoding="utf-8")
    page, card = render(tmp_path).read_text(), (tmp_path / "MODEL_CARD.md").read_text()
    console = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["report", "--out", str(tmp_path)]).stdout
    sentence = "† Reads an encoder that was trained on the labels of this corpus (voice, words): the figure flatters"
    for found in (page, card, console):
        assert found.count(sentence) == 1, "only below the table that it is true of"
    for text in (card, console):
        first, second = text.split("there")[:2]
        assert f"{SOUP} †" in first
        assert f"{SOUP} †" not in second
        assert f"{OTHER} †" not in text
    row = f'<tr class="chosen"><th scope="row">{SOUP}'
    assert page.count(f"{row} †</th>") == 1
    assert page.count(f"{row}</th>") == 1
    assert page.count("soup, prior corrected (reported, not used) †</th>") == 1
    assert '<span class="small">here †</span>' in page
    assert '<span class="small">there</span>' in page
    assert "go †" not in page


def test_what_a_checkpoint_carries_is_marked_too(results: dict[str, Any]) -> None:
    here, there = scores_of(results["evaluations"]).values()
    assert here["systems"][SOUP][KEY] == ["voice", "words"]
    assert there["systems"][SOUP][KEY] == []
    assert model_card(results).count("†") == 2
