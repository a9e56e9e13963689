"""The seams of the daemon, as Protocols. `daemon.server` is the only place that fills them in."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from daemon.messages import CallInfo, Event, Scores, Utterance
from model.adaptation import NO_HISTORY, History

Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result", covariant=True)


class Sink(Protocol):
    """Where events go. An accepted event is delivered once, in order, or kept until it can be."""

    @property
    def waiting(self) -> int:
        """Accepted events that the other side does not have yet."""

    async def start(self) -> None:
        """Begins delivery; returns at once even where the other side is away."""

    def publish(self, event: Event) -> None:
        """Accepts an event; never blocks."""

    def healthy(self) -> str | None:
        """None where the other side takes events, else what is wrong."""

    async def drain(self, timeout_s: float) -> int:
        """Waits until everything accepted is delivered; returns how many events were still waiting at the end."""

    async def close(self) -> None:
        """Stops delivery and frees everything. What was not delivered stays on disk."""


class Scorer(Protocol):
    """The engine: utterances in, scores out, batched across all streams."""

    def accept(self, info: CallInfo, utterance: Utterance) -> None:
        """Tells of a final utterance once it is certain: what is scored of it ahead is wanted from now on. Never blocks."""

    async def score(
        self, info: CallInfo, utterance: Utterance, history: History = NO_HISTORY, *, ahead_s: float = 0.0
    ) -> Scores:
        """Scores one utterance.

        Args:
            info: the stream.
            utterance: what to score.
            history: of its channel, up to this utterance.
            ahead_s: how long before it can be certain that it is complete, so how long before anybody wants it; 0 if it is.

        Raises:
            CapacityError: if the utterance is interim or not certain, and there is no room.
            UpstreamError: if a model failed on this utterance.
        """


class Batched(Protocol[Item, Result]):
    """A model that takes several items of one shape at once; runs off the event loop."""

    def __call__(self, items: Sequence[Item]) -> Sequence[Result]:
        """One result per item, in order; a result never depends on its neighbours."""
