"""What bad lines cost: each condition is what it says, and the table says what was counted."""

from typing import Any

import numpy as np
import pytest

from model.audio import SAMPLE_RATE_HZ
from tests.train.guessed import guesses, reference
from train.augment import degrade
from train.augment_config import AugmentConfig
from train.metrics import unweighted_average_recall
from train.reference import ACTED
from train.robustness import CONDITIONS, robustness_rows
from train.robustness_report import CLEAN, markdown, page

SOUND = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ).astype(np.float32) * 0.5
ALONE = [name for name in CONDITIONS if name != "degraded copies"]
SWITCHES = {"colour_db", "echo", "room", "noise", "clipping", "telephone", "opus"}


def switches_of(name: str) -> set[str]:
    """What a condition turns on."""
    rules = CONDITIONS[name].augment
    on = {switch for switch in SWITCHES if getattr(rules, switch) > 0}
    on |= {"level"} if rules.level_db[0] < rules.level_db[1] else set()
    return on | {word for word in ("errors", "empty") if getattr(rules.words, word) > 0}


@pytest.mark.parametrize("name", ALONE)
def test_a_condition_is_one_switch_and_no_other(name: str) -> None:
    assert len(switches_of(name)) == (0 if name == "level" else 1)


@pytest.mark.parametrize("name", ALONE)  # chance may leave those as they are
def test_a_condition_changes_the_sound_unless_it_is_about_words(name: str) -> None:
    spoiled = degrade(SOUND, np.random.default_rng(0), CONDITIONS[name].augment)
    like = np.abs(np.corrcoef(spoiled, SOUND)[0, 1])
    only_louder = CONDITIONS[name].spoils_words or name in (
        "gain",
        "level",
        "microphone",
    )  # of a pure tone, a colour is a level
    assert (like > 1 - 1e-6) == only_louder


def test_every_switch_of_the_rules_has_its_condition() -> None:
    ranges = {"room_rt60_s", "noise_colours", "snr_db", "overdrive_db", "opus_kbit_s"}
    assert set(AugmentConfig.model_fields) - ranges == SWITCHES | {"level_db", "words"}
    covered = {switch for name in ALONE for switch in switches_of(name)}
    assert covered == SWITCHES | {"level", "errors", "empty"}


def results() -> dict[str, Any]:
    given = {
        CLEAN: {"plain": guesses(0.8), "taught": guesses(0.8)},
        "telephone": {"plain": guesses(0.4), "taught": guesses(0.7)},
        "opus": {"plain": guesses(0.95), "taught": guesses(0.95)},
        "gain": {"plain": guesses(0.8), "taught": guesses(0.8)},
    }
    return {
        "corpus": "cremad",
        "runs": {"plain": "0 degraded copies of a clip", "taught": "2 degraded copies of a clip"},
        "taught": {"plain": {"contaminated_by": []}, "taught": {"contaminated_by": []}},
        "clips": 230,
        "speakers": 8,
        "reference": ACTED,
        "conditions": {name: condition.told for name, condition in CONDITIONS.items()},
        "rows": robustness_rows(reference(), given),
    }


def test_changes_are_from_the_recordings_and_leads_over_the_first_run() -> None:
    known = reference().truth >= 0
    uar = {rate: unweighted_average_recall(reference().truth[known], guesses(rate)[known]) for rate in (0.4, 0.7, 0.8)}
    rows = results()["rows"]
    telephone = rows["telephone"]
    assert telephone["plain"]["uar"]["value"] == pytest.approx(uar[0.4])
    assert telephone["plain"]["change"]["value"] == pytest.approx(uar[0.4] - uar[0.8])
    assert telephone["taught"]["over_first"]["value"] == pytest.approx(uar[0.7] - uar[0.4])
    assert telephone["plain"]["over_first"] is None
    assert rows[CLEAN]["plain"]["change"] is None
    assert rows["gain"]["plain"]["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_table_and_the_page_say_the_same_and_what_follows() -> None:
    found = results()
    shown = f"{found['rows']['telephone']['plain']['uar']['value']:.3f}"
    for text in (markdown(found), page(found)):
        assert shown in text
        assert "300 to 3400 Hz and mu-law" in text
        assert (
            "plain: worse under telephone; better under opus; not distinguishable from the recordings under gain."
            in text
        )
        assert "taught against plain: better in telephone; worse in nothing." in text
        assert "taught was trained with 2 degraded copies of a clip" in text
        assert "†" not in text
    assert "<script" not in page(found)
