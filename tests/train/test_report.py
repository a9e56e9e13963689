import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from model.labels import CLASSES
from tests.train.results import SOUP, make_evaluation, make_outputs, make_reference, make_results
from tests.train.synthetic import TRAINED
from train.cost import META, STAGE_1, STAGE_2, Cost
from train.errors import ReportError
from train.evaluate import compare
from train.html_report import page
from train.phrases import abstaining, calibration, estimate, prior, telling_errors, verdict, weakest
from train.report import model_card, read_results, render, scores_of, write_report

_VOID = {"meta", "br"}
RESULTS = make_results()


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def gain(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


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
    assert verdict({"uar_gain_of_soup": gains}) == words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (gain(-0.3, -0.1), "improves the log loss (-0.200 nats [-0.300, -0.100])"),
        (gain(0.1, 0.3), "worsens the log loss (+0.200 nats [+0.100, +0.300])"),
        (gain(-0.1, 0.3), "makes no clear difference to the log loss (+0.100 nats [-0.100, +0.300])"),
    ],
)
def test_only_an_interval_without_zero_is_a_better_calibration(change: dict[str, float], words: str) -> None:
    loss = {"change": {"after": change, "prior_corrected": change}}
    found = {"ece": {"before": 0.1, "after": 0.05, "prior_corrected": 0.04}, "log_loss": loss, "vote_loss": None}
    evaluation: dict[str, Any] = {"calibration": found, "reference": "acted emotion"}
    assert (
        calibration(evaluation) == f"The temperature {words} against the acted emotion; ECE 0.100 before, 0.050 after."
    )
    assert words in prior(evaluation)
    assert "targets, reported and not used" in prior(evaluation)
    assert "annotators" not in prior(evaluation)
    assert prior({**evaluation, "calibration": {**found, "vote_loss": loss}}).endswith("against the annotators' votes.")


def test_the_weakest_class_is_measured() -> None:
    matrix = [[0] * 8 for _ in CLASSES]
    matrix[CLASSES.index("sad")] = [1, 4, 0, 0, 5, 0, 0, 2]
    evaluation = {"class_f1": {"angry": gain(0.5, 0.7), "sad": gain(0.0, 0.1)}, "confusion": matrix}
    assert weakest(evaluation) == ("Weakest class: sad, F1 0.050 [0.000, 0.100]; 5 of its 12 clips are taken for fear.")


def test_a_class_that_is_never_mistaken_is_taken_for_nothing() -> None:
    matrix = [[5 * (row == column) for column in range(8)] for row in range(8)]
    assert weakest({"class_f1": {"sad": gain(0.9, 1.0)}, "confusion": matrix}) == (
        "Weakest class: sad, F1 0.950 [0.900, 1.000]."
    )


def test_a_threshold_that_leaves_nothing_out_says_so() -> None:
    reference = make_reference()
    perfect = compare(reference, {SOUP: reference.truth}, SOUP, make_outputs(80))
    perfect["selection"] |= {
        "abstain_below": 0.1,
        "coverage": 1.0,
        "risk_of_abstained": None,
        "risk_without_abstaining": 0.2,
    }
    assert abstaining(perfect).endswith("it keeps 100% of the clips, and errs on 20% of all.")
    perfect["selection"]["orders"] = {"confidence": {"error_auroc": None}}
    assert telling_errors(perfect) == ""


def test_the_report_is_one_page_and_its_json(tmp_path: Path) -> None:
    path = write_report(tmp_path / "run", RESULTS)
    text = path.read_text(encoding="utf-8")
    assert read_results(tmp_path / "run") == json.loads(json.dumps(RESULTS)) == RESULTS
    assert "medusa-rt &lt;tiny&gt;" in text
    assert "Two members &amp; a soup." in text
    assert "&lt;guess&gt; &amp; go" in text
    assert "<guess>" not in text
    for evaluation in RESULTS["evaluations"].values():
        assert verdict(evaluation).replace("<", "&lt;").replace(">", "&gt;").replace("& ", "&amp; ") in text


def test_the_page_loads_nothing() -> None:
    text = page(RESULTS, {})
    found = Page(text)
    assert found.open == []
    assert not {"script", "link", "img", "iframe", "object", "use", "image"} & {tag for tag, _ in found.tags}
    assert all("src" not in attributes for _, attributes in found.tags)
    for forbidden in ("http:", "https:", "@import", "url("):
        assert forbidden not in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_every_plot_says_what_it_shows_and_every_table_names_its_cells() -> None:
    found = Page(page(RESULTS, {STAGE_1: {"voice": 1.0}}))
    plots = found.of("svg")
    assert len([plot for plot in plots if plot.get("role") == "img"]) >= 10
    for plot in plots:
        spoken = plot.get("role") == "img" and len(plot.get("aria-label") or "") > 20
        assert spoken or plot.get("aria-hidden") == "true"
    assert all(cell.get("scope") in ("row", "col") for cell in found.of("th"))
    assert found.of("html") == [{"lang": "en"}]


def test_links_lead_to_one_place_each() -> None:
    found = Page(page(RESULTS, {}))
    places = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(places) == len(set(places))
    assert {f"#{place}" for place in places} == {link["href"] for link in found.of("a")}
    assert {section["aria-labelledby"] for section in found.of("section")} == set(places)


def test_a_set_without_raters_has_no_columns_about_votes() -> None:
    text = page(RESULTS, {})
    here, there = text[text.index('id="set-0"') : text.index('id="set-1"')], text[text.index('id="set-1"') :]
    there = there[: there.index('id="calibration"')]
    for words in ("UAR against votes", "soft cross-entropy", "annotators' votes"):
        assert words.replace("'", "&#x27;") in here
        assert words.replace("'", "&#x27;") not in there
    assert "does not tell the gender" in there
    assert ">female<" in here
    card = model_card(RESULTS)
    here, there = (
        card[card.index("## Results on here") : card.index("## Results on there")],
        card[card.index("on there") :],
    )
    for words in ("UAR against votes", "Jensen-Shannon"):
        assert words in here
        assert words not in there
    rows = [line for line in there.splitlines() if line.startswith("|") and "0." in line]
    assert {row.count("|") for row in rows if "neutral" not in row} == {6}


def test_every_count_of_the_confusion_is_shown() -> None:
    text = page(RESULTS, {})
    matrix = RESULTS["evaluations"]["here"]["confusion"]
    table = re.search(r'<table class="confusion">.*?</table>', text)
    assert table is not None
    counts = [int(count) for count in re.findall(r"<i>(\d+)</i>", table.group())]
    columns = [CLASSES.index(name) for name in CLASSES if name in TRAINED]
    assert counts == [matrix[i][j] for i in columns for j in columns]


def test_cost_is_shown_per_stage_and_member(tmp_path: Path) -> None:
    assert "noted no seconds" in page(RESULTS, {})
    cost = Cost(tmp_path)
    for stage, job, seconds in (
        (STAGE_1, "voice", 10.0),
        (STAGE_1, "voice-without-fold-1", 2.5),
        (STAGE_2, "voice", 4.0),
    ):
        cost.add(stage, job, seconds)
    cost.add(META, "", 1.0)
    write_report(tmp_path, RESULTS)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">voice</th><td>12.5</td><td>4.0</td>' in text
    assert "stage 1 12.5, stage 2 4.0, stages 3, 4 1.0" in text
    assert "cost" not in json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def test_rows_left_out_are_told_with_their_reason() -> None:
    text = page(RESULTS, {})
    assert '<th scope="row">here</th><td class="words">votes without clip</td><td>3</td>' in text
    assert '<th scope="row">there</th><td class="words">nothing</td><td>0</td>' in text
    assert "predictions/here.csv" in text


def test_a_report_is_made_again_from_what_is_stored(tmp_path: Path) -> None:
    write_report(tmp_path, RESULTS)
    kept = {name: (tmp_path / name).read_bytes() for name in ("report.html", "MODEL_CARD.md", "report.json")}
    (tmp_path / "report.html").unlink()
    (tmp_path / "MODEL_CARD.md").write_text("old")
    assert render(tmp_path) == tmp_path / "report.html"
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"report\.json does not exist: finish a run first"):
        render(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"evaluations": {}}), encoding="utf-8")
    with pytest.raises(ReportError, match=r"has the format None, this program reads \d"):
        render(tmp_path)


def test_results_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, RESULTS | {"limits": [float("nan")]})


def test_the_model_card_states_results_words_licences_and_limits() -> None:
    card = model_card(RESULTS)
    evaluation = RESULTS["evaluations"]["here"]
    for system, score in evaluation["systems"].items():
        assert f"| {system} | {estimate(score['uar'])} | {estimate(score['macro_f1'])} |" in card
    assert verdict(evaluation) in card
    assert weakest(evaluation) in card
    assert "CCC of the attributes: arousal " in card
    assert "UAR of the soup by gender: female " in card
    assert "- Built on tiny: MIT." in card
    assert "| (none) | neutral | neutral 0.90 |" in card
    assert "temperature 1.250; abstains below a confidence of 0.400; log prior ratio angry +0.12" in card
    assert card.endswith("- English only.\n")
    assert estimate(None) == "-"
    assert "licence not stated" in model_card(RESULTS | {"builds_on": [{"name": "x", "revision": "", "licence": ""}]})


def test_a_checkpoint_carries_scores_and_no_curves() -> None:
    short = scores_of(RESULTS["evaluations"])
    assert list(short) == ["here", "there"]
    here, whole = short["here"], RESULTS["evaluations"]["here"]
    assert here["systems"] == whole["systems"]
    assert here["calibration"]["ece"] == whole["calibration"]["ece"]
    assert "reliability" in whole["calibration"]
    assert "by_speaker" in whole
    text = json.dumps(short)
    for name in ("reliability", "by_speaker", '"coverage": ['):
        assert name not in text


def test_a_page_stands_without_words_attributes_and_learning_curves() -> None:
    evaluation = make_evaluation(make_reference(rated=False))
    bare = RESULTS | {"words": [], "learning_curves": [], "evaluations": {"one": evaluation | {"attributes": {}}}}
    found = page(bare, {})
    assert Page(found).open == []
    assert "No learning curves were kept." in found
    assert "What words do" not in found
    assert "CCC" not in found
