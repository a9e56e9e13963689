"""A run for each fold: everybody is tested once, and what is put together is what the tables of the runs say."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.fakes import voice
from tests.train.guessed import CLIPS, guesses, reference
from tests.train.synthetic import RECIPES, write_actors, write_votes, write_wav
from train.acquaintance import of_corpus, read_speakers
from train.cli import app
from train.config import Recipe, load_recipe
from train.corpora import read_corpus
from train.crossvalidate import Outcome, crossvalidate, put_together
from train.crossvalidate_report import FIGURES, markdown, page
from train.errors import RecipeError, RunError
from train.reference import Reference
from train.results import SOUP
from train.turns import Turn

ACTORS = range(1001, 1010)
FOLDS = 3
TURNS = [f"fold {number}" for number in range(FOLDS)]
VOTES = {"ANG": (8, 0, 0, 0, 1, 0), "NEU": (0, 0, 0, 0, 9, 0), "SAD": (0, 0, 0, 0, 2, 7)}
Rows = list[dict[str, str]]


def recipe_of(**division: Any) -> Recipe:
    """One linear member on prosody alone, whose encoder is said to know the corpus."""
    shipped = load_recipe(RECIPES / "default.toml").model_dump(exclude_unset=True)
    encoders = {name: shipped["encoders"][name] for name in ("whisper", "prosody")}
    return Recipe.model_validate(
        shipped
        | {
            "name": "turns",
            "fallbacks": (),
            "text": None,
            "adaptation": None,
            "encoders": encoders | {"prosody": encoders["prosody"] | {"supervised_on": ["cremad"]}},
            "members": [{"name": "tone", "modalities": ["prosody"], "seed": 1, "family": "linear"}],
            "meta": {"folds": 2, "epochs": 60, "learning_rate": 0.3, "seeds": [1]},
            "data": {"corpus": "cremad", "licence": "none", "intended_votes": 0.0, **division},
        }
    )


@dataclass(frozen=True, slots=True)
class Finished:
    """Runs of all folds; read them, never change them."""

    recipe: Recipe
    data: Path
    out: Path

    def again(self) -> set[str]:
        """What is told to have been done."""
        told: set[str] = set()
        cache = self.data.parent / "cache"
        crossvalidate(self.recipe, self.data, cache, self.out, 1, lambda what, done, total: told.add(what))
        return told

    @property
    def results(self) -> dict[str, Any]:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        text = (self.out / "crossvalidation.json").read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(text, parse_constant=refuse)
        return found

    @property
    def tables(self) -> dict[str, Rows]:
        """Turn -> its table, as any program would read it."""
        found = {}
        for turn in TURNS:
            (path,) = self.out.glob(f"*-{turn.replace(' ', '-')}/predictions/cremad.csv")
            with path.open(newline="", encoding="utf-8") as file:
                found[turn] = list(csv.DictReader(file))
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("turns")
    cremad = folder / "data" / "cremad"
    write_votes(cremad, {f"{actor}_DFA_{code}_XX": votes for actor in ACTORS for code, votes in VOTES.items()})
    write_actors(cremad, {str(actor): "Female" if actor % 2 else "Male" for actor in ACTORS})
    for actor in ACTORS:
        for number, code in enumerate(VOTES):
            write_wav(cremad / f"{actor}_DFA_{code}_XX.wav", voice(0.3, 90.0 + 8.0 * (actor - 1001) + 20.0 * number))
    found = Finished(recipe_of(split="folds", folds=FOLDS, test_fold=1), folder / "data", folder / "out")
    assert {"turns", "members, stages 1 and 2", "cross-validation"} <= found.again()
    return found


def figures(rows: Rows, column: str) -> dict[str, float]:
    """UAR, macro-F1 and accuracy, counted."""
    recalls, scores = [], []
    for name in {row["intended"] for row in rows}:
        hits = sum(row["intended"] == row[column] == name for row in rows)
        true, said = (sum(row[key] == name for row in rows) for key in ("intended", column))
        recalls.append(hits / true)
        scores.append(2 * hits / (true + said))
    right = sum(row["intended"] == row[column] for row in rows)
    return {"uar": mean(recalls), "macro_f1": mean(scores), "accuracy": right / len(rows)}


def test_every_clip_is_tested_once_by_a_run_that_left_its_speaker_out(finished: Finished) -> None:
    tables = finished.tables
    seen = Counter(row["id"] for rows in tables.values() for row in rows)
    assert seen == dict.fromkeys((clip.id for clip in read_corpus("cremad", finished.data).clips), 1)
    speakers = [{row["speaker"] for row in rows} for rows in tables.values()]
    assert sum(map(len, speakers)) == len(set().union(*speakers)) == len(ACTORS)
    found = finished.results
    assert (found["clips"], found["speakers"], found["reference"]) == (27, 9, "acted emotion")
    assert [turn["name"] for turn in found["turns"]] == TURNS
    for turn, mine in zip(found["turns"], speakers, strict=True):
        heard = of_corpus(read_speakers(finished.out / turn["folder"]) or (), "cremad")
        assert heard == set().union(*speakers) - mine


def test_what_is_put_together_is_what_the_tables_say(finished: Finished) -> None:
    tables, found = finished.tables, finished.results
    rows = [row for table in tables.values() for row in table]
    systems = [column.removeprefix("guess: ") for column in rows[0] if column.startswith("guess: ")]
    assert set(systems) == found["systems"].keys() > {SOUP, "soft vote", "linear probe", "member tone"}
    assert [row[f"guess: {SOUP}"] for row in rows] == [row["top"] for row in rows]
    soup = figures(rows, "top")
    for system in systems:
        expected, scored = figures(rows, f"guess: {system}"), found["systems"][system]
        for name in FIGURES:
            assert scored[name]["value"] == pytest.approx(expected[name])
            assert scored[name]["low"] <= scored[name]["value"] <= scored[name]["high"]
        if system != SOUP:
            for name in ("uar", "macro_f1"):
                gain = found[f"{name}_gain_of_soup"][system]["value"]
                assert gain == pytest.approx(soup[name] - expected[name])
    assert sum(map(sum, found["confusion"])) == len(rows)
    assert sum(row[index] for index, row in enumerate(found["confusion"])) == sum(
        row["top"] == row["intended"] for row in rows
    )


def test_turns_stand_beside_each_other_with_their_mean_and_spread(finished: Finished) -> None:
    found = finished.results
    expected = [figures(rows, "top") for rows in finished.tables.values()]
    for turn, values in zip(found["turns"], expected, strict=True):
        assert (turn["clips"], turn["speakers"]) == (9, 3)
        assert {name: turn[name] for name in FIGURES} == pytest.approx(values)
    assert len({turn["uar"] for turn in found["turns"]}) > 1, "else nothing is told apart"
    for name in FIGURES:
        column = [values[name] for values in expected]
        assert found["over_turns"][name] == pytest.approx({"mean": mean(column), "deviation": stdev(column)})


def test_a_second_call_does_nothing_anew(finished: Finished) -> None:
    def times() -> dict[Path, int]:
        """Of all that runs leave; what they say together is written again."""
        kept = (path for path in finished.out.rglob("*/*") if path.is_file() and path.name != "cost.json")
        return {path: path.stat().st_mtime_ns for path in kept}

    before, written = times(), (finished.out / "crossvalidation.json").read_bytes()
    assert "cross-validation" not in finished.again()
    assert times() == before
    assert (finished.out / "crossvalidation.json").read_bytes() == written


def test_the_page_and_the_table_tell_every_turn_and_what_flatters(finished: Finished) -> None:
    found = finished.results
    assert (finished.out / "crossvalidation.html").read_text(encoding="utf-8") == page(found)
    assert (finished.out / "CROSSVALIDATION.md").read_text(encoding="utf-8") == markdown(found)
    for text in (page(found), markdown(found)):
        for turn in found["turns"]:
            assert turn["name"] in text
            assert f"{turn['uar']:.3f}" in text
        assert f"{found['over_turns']['uar']['deviation']:.3f}" in text
        assert "medusa-rt turns: a run for each fold of speakers" in text
        assert f"{SOUP} †" in text
        assert "trained on the labels of this corpus (prosody)" in text
        assert "UAR against votes" in text
    assert "<script" not in page(found)


def test_a_corpus_that_is_divided_once_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match='split = "speakers" divides cremad once'):
        crossvalidate(recipe_of(), tmp_path, tmp_path / "cache", tmp_path / "out", 1, lambda *call: None)
    given = ["--config", RECIPES / "default.toml", "--data", tmp_path, "--out", tmp_path / "out"]
    refused = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["crossvalidate", *map(str, given)])
    assert (refused.exit_code, 'split = "speakers" divides cremad once' in refused.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_torchrun_is_refused_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = recipe_of(split="folds", folds=FOLDS, test_fold=0)
    with pytest.raises(RunError, match="torchrun has started 2"):
        crossvalidate(recipe, tmp_path, tmp_path / "cache", tmp_path / "out", 1, lambda *call: None)
    assert list(tmp_path.iterdir()) == []


def part(number: int, rows: Sequence[int], right: float = 0.8) -> Outcome:
    """A turn on some of the made-up clips."""
    whole, kept = reference(), np.array(rows)
    truth = Reference(
        ids=tuple(whole.ids[row] for row in rows),
        speakers=tuple(whole.speakers[row] for row in rows),
        genders=("",) * len(rows),
        truth=whole.truth[kept],
        kind=whole.kind,
        votes=None,
        attributes=whole.attributes[kept],
    )
    mine = guesses(right)[kept]
    return Outcome(
        turn=Turn(f"fold {number}", f"{number}-fold-{number}", recipe_of()),
        reference=truth,
        systems={SOUP: mine, "soft vote": guesses(0.5)[kept]},
        posterior=np.eye(8)[mine],
        taught={SOUP: [], "soft vote": []},
    )


def test_clips_without_a_truth_are_counted_and_not_scored() -> None:
    """A posterior that is always certain is wrong as often as it errs."""
    found = put_together([part(0, range(100), right=0.9), part(1, range(100, CLIPS), right=0.6)])
    assert (found["clips"], found["without_reference"]) == (CLIPS, 10)
    assert [turn["without_reference"] for turn in found["turns"]] == [10, 0]
    assert found["ece"] == pytest.approx(1 - found["systems"][SOUP]["accuracy"]["value"])
    assert found["turns"][0]["accuracy"] > 0.8 > found["turns"][1]["accuracy"]


def test_a_clip_that_two_turns_test_is_refused() -> None:
    with pytest.raises(RunError, match="2 clips are tested in more than one turn, such as 100"):
        put_together([part(0, range(102)), part(1, range(100, CLIPS))])


def test_turns_that_compare_other_systems_are_refused() -> None:
    first, second = part(0, range(100)), part(1, range(100, CLIPS))
    more = replace(second, systems={**second.systems, "linear probe": second.systems[SOUP]})
    with pytest.raises(
        RunError,
        match="fold 0 and fold 1 compare other systems, one of them alone has linear probe: medusa-train evaluate",
    ):
        put_together([first, more])
