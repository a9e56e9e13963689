"""What is written down of who saw what, and what waits to be written. Sans-IO.

What happens over and over (a dashboard that reads, a peer that knocks) is one entry at once, and then one a minute with a
count.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, Protocol

AUDIT_VERSION: Final = "1"
_OUTBOX: Final = 10_000
_MOST_REPEATED: Final = 4_096
"""Different things that are remembered as having happened lately; of more, some are written once more than need be."""

Fields = dict[str, str]
Kind = Literal[
    "daemon.started",
    "stream.opened",
    "calls.listed",
    "calls.watched",
    "calls.left",
    "call.read",
    "call.deleted",
    "bundle.changed",
    "refused",
]


class Auditor(Protocol):
    """Writes down what happened; never blocks."""

    def note(self, kind: Kind, /, **fields: str) -> None:
        """An entry."""

    def tally(self, kind: Kind, /, **fields: str) -> None:
        """An entry at once, and from then on one a minute, for as long as the same goes on."""


class _Nobody:
    def note(self, kind: Kind, /, **fields: str) -> None:
        pass

    def tally(self, kind: Kind, /, **fields: str) -> None:
        pass


UNAUDITED: Final[Auditor] = _Nobody()
"""Where nothing is to be written down."""


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """How entries are written.

    Attributes:
        node: which machine they are of.
        maxlen: entries that the stream keeps, approximately.
        window_s: between two entries of what is repeated.
    """

    node: str
    maxlen: int = 100_000
    window_s: float = 60.0


class Entries:
    """Entries that wait to be written. Sans-IO.

    Args:
        settings: how entries are written.
        now_ms: wall-clock milliseconds since the epoch.

    Attributes:
        lost: entries for which there was no room, or that were given up.
    """

    def __init__(self, settings: AuditSettings, now_ms: Callable[[], int]) -> None:
        self.lost = 0
        self._node = settings.node
        self._now_ms = now_ms
        self._waiting: deque[Fields] = deque()
        self._repeated: dict[tuple[Kind, tuple[tuple[str, str], ...]], int] = {}
        """What was written lately, and how often it happened since."""

    def __len__(self) -> int:
        return len(self._waiting)

    def note(self, kind: Kind, fields: Iterable[tuple[str, str]], count: int = 1) -> None:
        """Adds an entry; where there is no room for it, it is lost: older ones say how it began."""
        if len(self._waiting) >= _OUTBOX:
            self.lost += 1
            return
        common = {"v": AUDIT_VERSION, "type": kind, "ts": str(self._now_ms()), "node": self._node, "count": str(count)}
        self._waiting.append(common | dict(fields))

    def tally(self, kind: Kind, fields: Iterable[tuple[str, str]]) -> None:
        """Adds an entry if the same did not happen lately, else counts it."""
        happened = kind, tuple(fields)
        if happened in self._repeated:
            self._repeated[happened] += 1
            return
        if len(self._repeated) >= _MOST_REPEATED:
            self.settle()
            self._repeated.clear()
        self._repeated[happened] = 0
        self.note(*happened)

    def settle(self) -> None:
        """Writes what was counted since the last time; what did not happen again since then is forgotten."""
        again = {happened: count for happened, count in self._repeated.items() if count}
        for happened, count in again.items():
            self.note(*happened, count)
        self._repeated = dict.fromkeys(again, 0)

    def next(self, most: int) -> list[Fields]:
        """The oldest entries, which wait until they are `written`."""
        return list(islice(self._waiting, most))

    def written(self, count: int) -> None:
        """The oldest `count` entries are in Redis."""
        for _ in range(count):
            self._waiting.popleft()

    def give_up(self) -> int:
        """What still waits is lost; how many entries that are."""
        count = len(self._waiting)
        self.lost += count
        self._waiting.clear()
        return count
