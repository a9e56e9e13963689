"""Prometheus metrics of the shadow."""

from collections.abc import Callable
from typing import Final

from prometheus_client import Counter, Histogram

from daemon.metrics import Metrics

_DISTANCES: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_REASONS: Final = ("full", "failed", "unpublished")


class ShadowCounts:
    """What the shadow counts.

    Args:
        metrics: where.
        waiting: utterances that wait for it.

    Attributes:
        scored: utterances that it scored.
        lost: those that it did not score (no room, or it failed), or whose comparison Redis did not take, by reason.
        disagreed: those of which both bundles have another top class.
        distance: of both posteriors.
    """

    def __init__(self, metrics: Metrics, waiting: Callable[[], int]) -> None:
        registry = metrics.registry
        metrics.watch("medusa_shadow_waiting", "Utterances that wait for the shadow", waiting)
        self.scored = Counter("medusa_shadow_scored", "Utterances that the shadow scored", registry=registry)
        self.lost = Counter(
            "medusa_shadow_lost", "Utterances that the shadow did not score or tell of", ["reason"], registry=registry
        )
        self.disagreed = Counter("medusa_shadow_disagreed", "Utterances with another top class", registry=registry)
        self.distance = Histogram(
            "medusa_shadow_js_distance",
            "Jensen-Shannon distance of both posteriors",
            buckets=_DISTANCES,
            registry=registry,
        )
        for reason in _REASONS:
            self.lost.labels(reason)
