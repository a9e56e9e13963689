"""What a WebSocket protocol is to us: a translation between its messages and commands to one stream.

A dialect is sans-IO: it is handed what arrived, gives commands back, and puts our messages into its own words. It holds the
state of one connection; `daemon.transports.websocket` runs it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon import wire
from daemon.access import credentials
from daemon.request import StreamRequest
from daemon.stream import Ending
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

    @property
    def credentials(self) -> str | None:
        """The key or token that the client shows; None if it shows none."""
        return credentials.explicit(self.headers, self.subprotocols)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection is not accepted, as HTTP says it.

    Attributes:
        status: HTTP status code.
        message: what was wrong, and what would be right; no secret.
        delay_s: from the handshake to the answer, so that its time does not tell what was wrong.
    """

    status: int
    message: str
    delay_s: float = 0.0


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
    """The next samples of every channel, `float32 [T]` at 16 kHz.

    Attributes:
        channels: a row each.
        received: samples per channel as the client counts them, where a client may resume.
    """

    channels: Sequence[Samples]
    received: int = 0


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on with a stream that lost its connection, instead of beginning one.

    Attributes:
        token: of the stream.
        after: `seq` of the last message that the client has, -1 for none.
    """

    token: str
    after: int


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


Command = Start | Resume | Audio | Finalize | Reply | Close


class Dialect(Protocol):
    """One connection of a WebSocket protocol.

    Attributes:
        subprotocol: which of the client's offers is taken, None for none.
        idle_timeout_s: how long a client may say nothing, None for the server's own limit.
        client_closes: whether the connection is the client's to close, behind our last message.
    """

    subprotocol: str | None
    idle_timeout_s: float | None
    client_closes: bool

    def refusal(self) -> Refusal | None:
        """What forbids the connection before it is accepted, None if nothing does."""

    def opening(self) -> Iterable[Command]:
        """What the handshake alone asks for.

        Raises:
            PeerError: if it asks for what cannot be.
        """

    def receive(self, frame: Frame) -> Iterable[Command]:
        """What a message asks for. A generator's commands are carried out one by one, as it gives them.

        Raises:
            PeerError: if it breaks the protocol.
        """

    def flush(self) -> Iterable[Command]:
        """What is left of the audio when nothing more comes."""

    def render(self, message: wire.Message) -> Iterable[Frame]:
        """One of our messages in the protocol's words, in the order in which they are sent; raises nothing."""

    def closing(self, ending: Ending) -> tuple[int, str]:
        """The WebSocket close code for an end, and its reason of at most 123 bytes."""
