"""What two bundles said of the same utterance, as the stream `medusa:shadow` keeps it. Sans-IO; docs/operations.md."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from daemon.messages import EmotionEvent
from model.labels import CLASSES
from model.posteriors import EPSILON, Posteriors

SHADOW_KEY: Final = "medusa:shadow"
SHADOW_VERSION: Final = "1"
_DECIMALS: Final = 6


@dataclass(frozen=True, slots=True)
class Compared:
    """One final utterance, scored twice.

    Attributes:
        event: what clients and `medusa:events` got.
        model: id of the shadow bundle.
        posteriors: what that bundle says.
        complete: whether it heard every utterance of the channel before this one; else its history lacks some.
    """

    event: EmotionEvent
    model: str
    posteriors: Posteriors
    complete: bool

    @property
    def agree(self) -> bool:
        """Whether both have the same class on top."""
        return self.event.scores.posteriors.top == self.posteriors.top

    @property
    def distance(self) -> float:
        """How far the posteriors lie apart."""
        return js_distance(self.event.scores.posteriors, self.posteriors)


def js_distance(one: Posteriors, other: Posteriors) -> float:
    """Jensen-Shannon distance of two posteriors, 0 (the same) to 1 (nothing in common): a metric, symmetric.

    Source: Endres and Schindelin (2003), "A new metric for probability distributions": the root of the divergence, in bits.
    """
    p = np.array([one.probabilities, other.probabilities]) + EPSILON
    p /= p.sum(axis=1, keepdims=True)
    divergence = (p * np.log2(p / p.mean(axis=0))).sum(axis=1).mean()
    return float(np.sqrt(np.clip(divergence, 0.0, 1.0)))


def shadow_fields(compared: Compared, created_ms: int) -> dict[str, str]:
    """The flat fields of an entry."""
    event = compared.event
    both = (("", event.scores.posteriors), ("shadow_", compared.posteriors))
    return {
        "v": SHADOW_VERSION,
        "type": "shadow",
        "event_id": event.event_id,
        "call": event.info.call,
        "session": event.info.session,
        "channel": str(event.utterance.channel),
        "role": event.info.roles[event.utterance.channel],
        "utterance": str(event.utterance.index),
        "model": event.info.model,
        "shadow_model": compared.model,
        "ts": str(created_ms),
        "js_distance": _number(compared.distance),
        "complete": str(int(compared.complete)),
        **{f"{prefix}top": posteriors.top for prefix, posteriors in both},
        **{
            f"{prefix}p_{name}": _number(p)
            for prefix, posteriors in both
            for name, p in zip(CLASSES, posteriors.probabilities, strict=True)
        },
    }


def _number(value: float) -> str:
    return f"{value:.{_DECIMALS}f}"
