"""The page that all comparisons share."""

import re
from types import ModuleType

import pytest

from train import ablation_report, baselines_report, parts_report
from train.html_parts import sectioned

NAMES = ("cremad (unseen <speakers>)", "cremad, degraded & all")


def test_every_section_and_the_notes_are_listed_and_there_once() -> None:
    shown = sectioned(
        "a < b", "so & so", {NAMES[0]: "<p>one</p>", NAMES[1]: "<p>two</p>"}, ["n < 3", "last"], "how <to>"
    )
    listed = re.findall(r'<li><a href="#([^"]+)">([^<]+)</a></li>', shown)
    headings = re.findall(r'<section aria-labelledby="([^"]+)"><h2 id="([^"]+)">([^<]+)</h2>', shown)
    assert [name for _, name in listed] == [
        "cremad (unseen &lt;speakers&gt;)",
        "cremad, degraded &amp; all",
        "Notes",
    ]
    assert headings == [(anchor, anchor, name) for anchor, name in listed]
    assert len({anchor for anchor, _ in listed}) == 3
    assert shown.index("<p>one</p>") < shown.index("<p>two</p>") < shown.index("<li>n &lt; 3</li><li>last</li>")
    assert "<h1>a &lt; b</h1><p>so &amp; so</p>" in shown
    assert shown.endswith("<footer>how &lt;to&gt;</footer></body></html>\n")


@pytest.mark.parametrize("report", [ablation_report, baselines_report, parts_report])
def test_reports_by_set_of_clips_put_no_page_together_themselves(report: ModuleType) -> None:
    assert vars(report)["sectioned"] is sectioned
    assert not vars(report).keys() & {"document", "section"}
