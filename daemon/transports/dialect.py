"""What a WebSocket protocol is to us: a translation between its messages and commands to one stream.

A dialect is sans-IO: it is handed what arrived, gives commands back, and puts our messages into its own words. It holds the
state of one connection; `daemon.transports.websocket` runs it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon import wire
from daemon.request import StreamRequest
from daemon.streams import Ending
from model.audio import Samples
from model.segmenter import Endpointing

Frame = str | bytes
"""A text or a binary WebSocket message."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a client said before its first message.

    Attributes:
        url: that it asked for, with the query.
        query: parameters; of several with one name the last.
        headers: names in lower case.
        subprotocols: offered, in its order.
    """

    url: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    subprotocols: Sequence[str]


@dataclass(frozen=True, slots=True)
class Start:
    """Begin the stream; before any audio, once.

    Attributes:
        request: what the client asks for.
        endpointing: when its speech begins and ends, None for the server's own rules.
    """

    request: StreamRequest
    endpointing: Endpointing | None = None


@dataclass(frozen=True, slots=True)
class Audio:
    """The next samples of every channel, `float32 [T]` at 16 kHz."""

    channels: Sequence[Samples]


@dataclass(frozen=True, slots=True)
class Finalize:
    """End open utterances; the stream goes on."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Say something of the protocol's own, behind what was said before."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Close:
    """The client is done."""

    reason: str = "client_closed"


Command = Start | Audio | Finalize | Reply | Close


class Dialect(Protocol):
    """One connection of a WebSocket protocol.

    Attributes:
        subprotocol: which of the client's offers is taken, None for none.
        idle_timeout_s: how long a client may say nothing, None for the server's own limit.
    """

    subprotocol: str | None
    idle_timeout_s: float | None

    def opening(self) -> Iterable[Command]:
        """What the handshake alone asks for; its credentials are checked here.

        Raises:
            PeerError: if it asks for what cannot be.
        """

    def receive(self, frame: Frame) -> Iterable[Command]:
        """What a message asks for.

        Raises:
            PeerError: if it breaks the protocol.
        """

    def flush(self) -> Iterable[Command]:
        """What is left of the audio when nothing more comes."""

    def render(self, message: wire.Message) -> Iterable[Frame]:
        """One of our messages in the protocol's words; none where it has no word for it."""

    def close_code(self, ending: Ending) -> int:
        """The WebSocket close code for an end."""
