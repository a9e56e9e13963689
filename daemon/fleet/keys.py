"""How the keys of the work between gateways and workers are named.

All keys of one bundle's work lie in one Cluster slot, because every step on them is one Lua call: the name of the stream,
in braces, begins all others. The version of the wire form and the bundle are part of that name, so a worker never sees work
that it cannot read or has no models for, and several bundles live side by side.
"""

from dataclasses import dataclass
from typing import Final

from daemon.fleet.wire import WIRE_VERSION

PREFIX: Final = "medusa:work"
GROUP: Final = "workers"
"""The consumer group that all workers of a bundle are in."""


@dataclass(frozen=True, slots=True)
class FleetKeys:
    """The keys of one bundle's work."""

    bundle: str

    @property
    def work(self) -> str:
        """Stream of channels whose next utterance is to be scored; a channel is in it at most once."""
        # A brace would choose another slot.
        return f"{PREFIX}:v{WIRE_VERSION}:{self.bundle.replace('{', '%7B').replace('}', '%7D')}"

    def channel(self, channel: str) -> str:
        """Hash of one channel (`channel_name`): its utterances that wait, and what it sounded like so far."""
        return self._tagged(f"channel:{channel}")

    def result(self, event_id: str) -> str:
        """What became of an utterance, until its gateway has read it."""
        return self._tagged(f"result:{event_id}")

    def notices(self, gateway: str) -> str:
        """Stream that tells a gateway which results are there."""
        return self._tagged(f"notices:{gateway}")

    @property
    def interims(self) -> str:
        """List of interim utterances that wait, the newest first."""
        return self._tagged("interims")

    def interim(self, event_id: str) -> str:
        """One interim utterance; goes by itself."""
        return self._tagged(f"interim:{event_id}")

    @property
    def dead(self) -> str:
        """Stream of utterances that no worker could score, without their audio."""
        return self._tagged("dead")

    @property
    def workers(self) -> str:
        """Sorted set of workers and when each was last heard of."""
        return self._tagged("workers")

    @property
    def card(self) -> str:
        """What workers say about their models."""
        return self._tagged("card")

    def _tagged(self, name: str) -> str:
        return f"{{{self.work}}}:{name}"


def channel_name(session: str, channel: int) -> str:
    """A channel of a stream, in keys and in the stream of work."""
    return f"{session}:{channel}"
