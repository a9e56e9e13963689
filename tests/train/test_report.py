import json
from pathlib import Path
from typing import Any

import pytest

from train.report import model_card, verdict, write_report


def gain(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


def evaluation(**gains: dict[str, float]) -> dict[str, Any]:
    score = {name: gain(0.5, 0.7) for name in ("uar", "macro_f1", "accuracy")} | {"voted_uar": None}
    return {
        "clips": 12,
        "speakers": 3,
        "systems": dict.fromkeys([*gains, "soup"], score),
        "uar_gain_of_soup": gains,
        "class_f1": {"angry": 0.5, "sad": 0.25},
        "confusion": [[3, 1, 0, 0, 0, 0, 0, 0], [2, 6, 0, 0, 0, 0, 0, 0], *[[0] * 8] * 6],
        "soft_cross_entropy": 1.2,
        "jensen_shannon": 0.3,
        "ece_intended": 0.05,
    }


RESULTS = {
    "name": "medusa-rt <tiny>",
    "summary": "Two members & a soup.",
    "data": ["Trained on nothing."],
    "evaluations": {"a corpus": evaluation(probe=gain(0.01, 0.05), vote=gain(-0.02, 0.03))},
    "words": [{"text": "", "top": "neutral", "shown": "neutral 0.90"}],
    "words_note": "What words do.",
    "limits": ["English only."],
}


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ({"probe": gain(0.01, 0.05)}, "The soup is better than probe."),
        ({"vote": gain(-0.05, -0.01)}, "The soup is worse than vote."),
        ({"vote": gain(0.0, 0.02)}, "The soup is not distinguishable from vote."),
        (
            {"a": gain(0.1, 0.2), "b": gain(-0.1, 0.2), "c": gain(-0.1, 0.2)},
            "The soup is better than a; not distinguishable from b, c.",
        ),
    ],
)
def test_only_an_interval_without_zero_is_a_gain(gains: dict[str, dict[str, float]], words: str) -> None:
    assert verdict(evaluation(**gains)) == words


def test_the_report_is_one_page_and_its_json(tmp_path: Path) -> None:
    page = write_report(tmp_path / "run", RESULTS).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8")) == RESULTS
    assert "medusa-rt &lt;tiny&gt;" in page
    assert "Two members &amp; a soup." in page
    assert "0.600 [0.500, 0.700]" in page
    assert "not distinguishable from vote" in page
    assert "http" not in page.replace("http-equiv", ""), "nothing is loaded from elsewhere"


def test_the_model_card_states_results_words_and_limits() -> None:
    card = model_card(RESULTS)
    assert "| probe | 0.600 [0.500, 0.700] |" in card
    assert "The soup is better than probe; not distinguishable from vote." in card
    assert "| (none) | neutral | neutral 0.90 |" in card
    assert card.endswith("- English only.\n")
