"""Drift metrics: what Prometheus computes from them is what was heard, and what nobody knows is not there."""

from dataclasses import replace
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from daemon.drift import Drift
from daemon.messages import CallEvent, EmotionEvent, Totals
from daemon.metrics import Metrics
from model.adaptation import NO_HISTORY, Adaptation, History
from model.audio import SAMPLE_RATE_HZ
from model.labels import CLASSES
from model.posteriors import Posteriors
from tests.factories import CREATED_MS, make_emotion_event, make_info, make_scores, make_utterance

WIDTH: Final = 12
REFERENCE: Final = Adaptation(np.full((3, WIDTH), 2.0, np.float32), strength=10.0)


def result(
    probabilities: tuple[float, ...] = (0.125,) * 8, *, abstained: bool = False, model: str = "bundle-1"
) -> EmotionEvent:
    posteriors = Posteriors(probabilities, (None, None, None), 0.0, abstained=abstained)
    scores = replace(make_scores(), posteriors=posteriors)
    return EmotionEvent(replace(make_info(), model=model), make_utterance(), scores, CREATED_MS)


def values(drift: Drift) -> dict[tuple[str, ...], float]:
    """Samples as Prometheus reads them, by name and labels but for the model."""
    metrics = Metrics()
    metrics.registry.register(drift)
    families = text_string_to_metric_families(metrics.page().decode())
    return {
        (
            sample.name.removeprefix("medusa_drift_"),
            *(v for k, v in sample.labels.items() if k != "model"),
        ): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("medusa_drift_")
    }


def test_posteriors_add_up_to_means_entropy_and_abstention() -> None:
    drift = Drift()
    certain = tuple(float(name == "sad") for name in CLASSES)
    for event in (result(), result(certain), result(certain, abstained=True), make_emotion_event(0, interim=1)):
        drift.observe(event)
    found = values(drift)
    assert (found["utterances_total",], found["abstained_total",]) == (3, 1)
    means = {name: found["probability_total", name] / 3 for name in CLASSES}
    assert means["sad"] == pytest.approx((0.125 + 2) / 3)
    assert sum(means.values()) == pytest.approx(1.0)
    assert found["entropy_sum",] == pytest.approx(3.0)
    assert found["entropy_count",] == 3
    assert found["entropy_bucket", "0.25"] == found["entropy_bucket", "2.5"] == 2
    assert found["entropy_bucket", "3.0"] == 3


def test_bundles_are_counted_apart() -> None:
    drift = Drift()
    for model in ("one", "two", "two"):
        drift.observe(result(model=model))
    metrics = Metrics()
    metrics.registry.register(drift)
    page = metrics.page().decode()
    assert 'medusa_drift_utterances_total{model="one"} 1.0' in page
    assert 'medusa_drift_utterances_total{model="two"} 2.0' in page


def heard(drift: Drift, functionals: np.ndarray, *, calls: int = 1, seconds: float = 3.0) -> None:
    """Utterances with functionals `[N, WIDTH]` of the whole utterance, in as many calls one after the other."""
    for call, rows in enumerate(np.array_split(functionals, calls)):
        info = make_info(session=f"session-{call}")
        history: History = NO_HISTORY
        for row in rows:
            history = REFERENCE.heard(history, np.tile(row, (3, 1)).astype(np.float32), int(seconds * SAMPLE_RATE_HZ))
            scores = replace(make_scores(), history=history)
            drift.observe(EmotionEvent(info, make_utterance(), scores, CREATED_MS))
        drift.observe(CallEvent("call.ended", info, Totals(), "client_closed", CREATED_MS))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10), st.integers(1, 9), st.sampled_from([0.5, 3.0]))
def test_the_distance_is_that_of_the_mean_in_standard_deviations(seed: int, calls: int, seconds: float) -> None:
    """However utterances are spread over calls, and whatever their length, as long as all have one."""
    noise = np.random.default_rng(seed).normal(2.5, 0.25, (300, WIDTH))
    drift = Drift()
    heard(drift, noise, calls=calls, seconds=seconds)
    expected = (np.abs(noise.mean(axis=0) - 2.0) / noise.std(axis=0)).mean()
    assert values(drift)["functionals_distance",] == pytest.approx(expected, rel=1e-3)


def test_what_was_long_ago_is_forgotten() -> None:
    drift = Drift()
    noise = np.random.default_rng(0).normal(0, 0.25, (4000, WIDTH))
    heard(drift, noise[:1000] + 4.0)
    before = values(drift)["functionals_distance",]
    heard(drift, noise + 2.0)
    assert before > 5
    assert values(drift)["functionals_distance",] < 0.2


def test_what_nobody_knows_is_absent() -> None:
    drift = Drift()
    assert values(drift) == {}
    drift.observe(result())
    assert ("functionals_distance",) not in values(drift), "the bundle has no reference"
    heard(drift, np.full((49, WIDTH), 3.0))
    assert ("functionals_distance",) not in values(drift), "too little was heard"
    heard(drift, np.full((1, WIDTH), 3.0))
    assert ("functionals_distance",) in values(drift)
