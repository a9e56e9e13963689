"""Prometheus metrics of one daemon, in a registry of their own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.messages import AlertEvent, EmotionEvent

_LATENCY_S = (0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
STAGES = ("endpoint", "queue", "asr", "encoders", "fusion", "total")


@dataclass(frozen=True, slots=True)
class _Kept(Collector):
    name: str
    help_text: str
    value: Callable[[], float]

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self.name, self.help_text, value=self.value())


class Metrics:
    """What the daemon counts.

    Attributes:
        streams: open streams.
        accepted: streams accepted so far.
        refused: streams refused because the server was full.
        peer_errors: streams ended by a client's mistake, and requests refused, by code.
        dashboard_dropped: dashboards that did not read what they were sent.
        lost: streams that were ended for a daemon that was killed.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.streams = Gauge("medusa_streams", "Open streams", registry=self.registry)
        self.accepted = Counter("medusa_streams_accepted", "Streams accepted", registry=self.registry)
        self.refused = Counter("medusa_streams_refused", "Streams refused for lack of room", registry=self.registry)
        self.peer_errors = Counter(
            "medusa_peer_errors",
            "Streams ended by a client's mistake, requests refused",
            ["code"],
            registry=self.registry,
        )
        self._webhook = Counter(
            "medusa_webhook", "Alerts on their way to the webhook, by outcome", ["outcome"], registry=self.registry
        )
        self.dashboard_dropped = Counter(
            "medusa_dashboard_dropped", "Dashboards dropped because they did not read", registry=self.registry
        )
        self.lost = Counter("medusa_streams_lost", "Streams ended for a daemon that was killed", registry=self.registry)
        self._alerts = Counter("medusa_alerts", "Alerts raised", ["rule"], registry=self.registry)
        self._utterances = Counter("medusa_utterances", "Utterances scored", ["kind"], registry=self.registry)
        self._reduced = Counter(
            "medusa_fallback_results",
            "Results of fewer members than all, by members",
            ["members"],
            registry=self.registry,
        )
        self._latency = Histogram(
            "medusa_stage_seconds",
            "Time of a final utterance in each stage",
            ["stage"],
            buckets=_LATENCY_S,
            registry=self.registry,
        )

    def scored(self, event: EmotionEvent) -> None:
        """Counts one result. Bundles declare few fallbacks, so there are few labels."""
        if used := event.scores.posteriors.members_used:
            self._reduced.labels(",".join(used)).inc()
        self._utterances.labels("final" if event.utterance.final else "interim").inc()
        if event.utterance.final:
            for stage in STAGES:
                self._latency.labels(stage).observe(getattr(event.scores.latency, stage) / 1000.0)

    def alerted(self, event: AlertEvent) -> None:
        """Counts one alert. Rules are named by the configuration, so there are few."""
        self._alerts.labels(event.rule).inc()

    def webhooked(self, outcome: str) -> None:
        """Counts what became of an alert, or of an attempt to deliver one, on its way to the webhook."""
        self._webhook.labels(outcome).inc()

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, help_text, registry=self.registry).set_function(value)

    def count(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """A counter that is kept elsewhere and read when it is asked for; its name gets `_total` behind it."""
        self.registry.register(_Kept(name, help_text, value))

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
