"""How a fleet works together; docs/scale-out.md."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """Limits and times of gateways and workers.

    Attributes:
        capacity: utterances that a worker holds at the same time.
        visibility_s: a worker that was not heard of for this long has its utterances taken by another.
        attempts: how often an utterance is given to a worker before it is given up.
        score_timeout_s: how long a worker may score one utterance.
        expiry_s: how long audio, results and what a channel sounded like stay without anybody asking.
        interim_s: how long an interim utterance is worth something.
        interims_per_worker: interim utterances that may wait, for every worker.
        poll_s: how often a gateway looks how much there is to do, and, without word from a worker, for its results.
        notices: of results that are there, kept for a gateway.
        dead_letters: kept, approximately.
    """

    capacity: int = 16
    visibility_s: float = 10.0
    attempts: int = 3
    score_timeout_s: float = 60.0
    expiry_s: int = 3_600
    interim_s: float = 2.0
    interims_per_worker: int = 4
    poll_s: float = 2.0
    notices: int = 4_096
    dead_letters: int = 10_000

    @property
    def alive_s(self) -> float:
        """How long a worker counts as there after it was last heard of."""
        return 1.5 * self.visibility_s
