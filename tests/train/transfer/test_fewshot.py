"""The curve over budgets: what its figures are, and how they are shown."""

from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest

from model.labels import CLASSES
from tests.train.guessed import guesses, reference
from tests.train.synthetic import make_recipe
from train.metrics import unweighted_average_recall
from train.prepare import ALONE
from train.reference import ACTED, Guesses
from train.transfer.budgets import Budget
from train.transfer.curve import Levels, Size, Spent, Tried, closed, compare_budgets, of_turn, put_together
from train.transfer.fewshot import _from_scratch
from train.transfer.fewshot_report import BEGUN, FINETUNED, SCRATCH, markdown, page
from train.transfer.source import UNTOUCHED
from train.transfer.target import Target, TransferConfig


def tried(full: float = 0.9, last: float = 1.0) -> Tried:
    rates = {0.1: (0.75, 0.4), last: (full, 0.8)}
    spent = [
        Spent(
            Budget(share, draw),
            (Size(50, 10, 2),),
            {FINETUNED: guesses(tuned, draw), SCRATCH: guesses(fresh, draw)},
            {ALONE: {FINETUNED: guesses(tuned - 0.1, draw), SCRATCH: guesses(fresh - 0.1, draw)}},
        )
        for draw in range(2)
        for share, (tuned, fresh) in rates.items()
    ]
    levels, alone = Levels(guesses(0.5, 0), guesses(0.6, 0)), Levels(guesses(0.35, 0), guesses(0.5, 0))
    return Tried(reference(), levels, {ALONE: alone}, tuple(spent))


def results(full: float = 0.9, last: float = 1.0) -> dict[str, Any]:
    found, shares = tried(full, last), (0.1, last)
    otherwise = {ALONE: compare_budgets(found.heard(ALONE), shares)}
    return compare_budgets(found, shares) | {"otherwise": otherwise, "turns": []}


def test_from_scratch_is_fitted_as_the_source_was() -> None:
    """What holds members to a source would hold fresh ones to nothing."""
    source, kept = make_recipe(linear={"l2": [0.25]}), make_recipe(linear={"l2": [500.0]})
    assert _from_scratch(source, Target(kept, TransferConfig())).linear == source.linear


def uar(found: Guesses) -> float:
    known = reference().truth >= 0
    return unweighted_average_recall(reference().truth[known], found[known])


def test_figures_are_means_over_draws_and_the_gap_is_between_them() -> None:
    found = results()
    few, everything = found["budgets"]
    tuned = [uar(guesses(0.75, draw)) for draw in range(2)]
    assert few["systems"][FINETUNED]["by_draw"] == pytest.approx(tuned)
    assert few["systems"][FINETUNED]["uar"]["value"] == pytest.approx(np.mean(tuned))
    assert found[UNTOUCHED]["uar"]["value"] == pytest.approx(uar(guesses(0.5, 0)))
    assert found[BEGUN]["uar"]["value"] == pytest.approx(uar(guesses(0.6, 0)))
    above = uar(guesses(0.6, 0)) - uar(guesses(0.5, 0))
    assert found[BEGUN]["gain_over_untouched"]["value"] == pytest.approx(above)
    gain = np.mean(tuned) - uar(guesses(0.6, 0))
    assert few["systems"][FINETUNED]["gain_over_begun"]["value"] == pytest.approx(gain)
    assert few["finetuned_over_scratch"]["low"] > 0
    for system, rate in ((FINETUNED, 0.9), (SCRATCH, 0.8)):
        full = np.mean([uar(guesses(rate, draw)) for draw in range(2)])
        closing = few["gap_closed"][system]
        assert closing["value"] == pytest.approx(gain / (full - uar(guesses(0.6, 0))))
        assert closing["low"] < closing["value"] < closing["high"]
    assert everything["gap_closed"][FINETUNED]["value"] == pytest.approx(1.0)
    full = np.mean([uar(guesses(0.9, draw)) for draw in range(2)])
    from_untouched = (np.mean(tuned) - uar(guesses(0.5, 0))) / (full - uar(guesses(0.5, 0)))
    assert few["gap_closed_from_untouched"]["value"] == pytest.approx(from_untouched)
    assert from_untouched > few["gap_closed"][FINETUNED]["value"], "normalising, which needs no label, is in it"


def test_where_full_training_is_no_better_there_is_no_gap() -> None:
    assert np.isnan(closed(0.6, 0.7, 0.6))
    assert np.isnan(closed(0.6, 0.7, 0.5))
    assert closed(0.5, 0.6, 0.7) == pytest.approx(0.5)
    assert results(full=0.3)["budgets"][0]["gap_closed"][FINETUNED] is None


def test_a_gap_that_may_be_none_is_not_divided_by() -> None:
    """Full training is better here, but not by an interval above 0: resamples without a gap would only be dropped."""
    found = results(full=0.62)["budgets"]
    gain = found[-1]["systems"][FINETUNED]["gain_over_begun"]
    assert gain["value"] > 0 > gain["low"]
    assert [row["gap_closed"][FINETUNED] for row in found] == [None, None]
    assert found[0]["gap_closed"][SCRATCH] is not None


def test_without_full_training_there_is_no_gap() -> None:
    for row in results(last=0.5)["budgets"]:
        assert row["gap_closed"] == {FINETUNED: None, SCRATCH: None}


ABOUT: Final[dict[str, Any]] = {
    "name": "medusa-rt <mine>",
    "source": "default-0123456789ab",
    "source_corpus": "cremad",
    "corpus": "table",
    "members": ["a"],
    "unit": "speakers",
    "draws": 2,
    "clips": 230,
    "speakers": 8,
    "reference": ACTED,
    "classes": list(CLASSES[:3]),
}


def test_the_table_and_the_page_say_the_same() -> None:
    found = ABOUT | results()
    shown = f"{found['budgets'][0]['systems'][FINETUNED]['uar']['value']:.3f}"
    for text in (markdown(found), page(found)):
        assert shown in text
        assert "50 + 10 of 2 speakers" in text
        assert f"{found[BEGUN]['uar']['value']:.3f}" in text
    assert f"10% {shown}" in page(found), "the plot in words"
    few_alone = found["otherwise"][ALONE]["budgets"][0]["systems"][FINETUNED]
    assert few_alone["by_draw"] == pytest.approx([uar(guesses(0.65, draw)) for draw in range(2)])
    closed_alone = found["otherwise"][ALONE]["budgets"][0]["gap_closed_from_untouched"]["value"]
    assert closed_alone > found["budgets"][0]["gap_closed_from_untouched"]["value"]
    for text in (markdown(found), page(found)):
        assert text.count("The same, each utterance alone") == 1
        assert f"{closed_alone:.0%}" in text
    assert "<mine>" not in page(found)
    assert "no gap" in markdown(ABOUT | results(full=0.3))
    assert "†" not in markdown(found) + page(found)
    of_source = {UNTOUCHED: found[UNTOUCHED] | {"contaminated_by": ["voice"]}}
    taught = found | of_source | {"contaminated_by": ["voice"]}
    for text in (markdown(taught), page(taught)):
        assert text.count("† Reads an encoder that was trained on the labels of this corpus (voice)") == 1
    assert markdown(taught).count("| 0 % † |") == 2 * 2
    assert "| 10% † |" in markdown(taught)
    assert '<th scope="row">100% †</th>' in page(taught)
    left_out = markdown(found | of_source)
    assert left_out.count(f"| 0 % † | 0 | {UNTOUCHED}") == left_out.count("† |") == 2, (
        "a member that no budget begins with"
    )
    assert left_out.count("† Reads an encoder") == 1
    assert f"<p>{UNTOUCHED} †: " in page(found | of_source)


def test_divisions_put_together_are_one_with_all_their_clips() -> None:
    """Speakers of both are resampled, and a draw is the same draw of both."""
    first, second = tried(0.9), tried(0.7)
    renamed = replace(second.reference, speakers=tuple(f"other-{name}" for name in second.reference.speakers))
    second = replace(second, reference=renamed)
    shares = (0.1, 1.0)
    whole = put_together([first, second])
    found = compare_budgets(whole, shares)
    truth = np.tile(reference().truth, 2)
    known = truth >= 0
    for row, rates in zip(found["budgets"], ((0.75, 0.75), (0.9, 0.7)), strict=True):
        by_draw = [
            unweighted_average_recall(truth[known], np.concatenate([guesses(rate, draw) for rate in rates])[known])
            for draw in range(2)
        ]
        assert row["systems"][FINETUNED]["by_draw"] == pytest.approx(by_draw)
        assert (row["clips"], row["speakers"]) == ([50] * 4, [2] * 4)
    assert len(set(whole.reference.speakers)) == 16
    alone = compare_budgets(whole.heard(ALONE), shares)
    assert alone[UNTOUCHED]["uar"]["value"] == pytest.approx(uar(guesses(0.35, 0)))
    lines = [of_turn(name, one, shares) for name, one in (("fold <0>", first), ("fold 1", second))]
    assert lines[1][FINETUNED] == pytest.approx(
        [np.mean([uar(guesses(rate, draw)) for draw in range(2)]) for rate in (0.75, 0.7)]
    )
    about = ABOUT | found | {"otherwise": {}, "turns": lines}
    shown = f"{lines[1][FINETUNED][1]:.3f}"
    assert "| fold 1 | 230 | 8 | 0." in markdown(about)
    for text in (markdown(about), page(about)):
        assert text.count("Turn by turn") == 1
        assert shown in text
        assert "every speaker is tested on once" in text
    assert "fold &lt;0&gt;" in page(about)


def test_shares_that_are_near_are_told_apart() -> None:
    """As their folders are."""
    about = ABOUT | results(last=0.125)
    for text in (markdown(about), page(about)):
        assert "12.5%" in text
    assert "| 10% |" in markdown(about)
    names = {Budget(share, 0).name for share in (0.125, 0.129, 0.1)}
    assert len(names) == 3
    assert "12.5-percent-of-speakers-draw-0" in names


def test_one_division_put_together_is_itself() -> None:
    assert compare_budgets(put_together([tried()]), (0.1, 1.0)) == compare_budgets(tried(), (0.1, 1.0))
