"""What each principal takes: streams at a time, streams that begin, seconds of audio.

A stream counts from its begin to its end, also while it waits for a client that lost its connection. Connections are limited
by themselves: there may be one more than streams, the one over which a client comes back whose old one hangs.

Counted in this process alone, and from its start: several processes give several times as much.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from daemon.access.principal import ANYONE, Limits, Principal
from daemon.errors import CapacityError
from model.audio import SAMPLE_RATE_HZ

_MINUTE_S: Final = 60.0
_DAY_S: Final = 86_400
_LEAST_LEFT: Final = SAMPLE_RATE_HZ
"""With less audio than this left of its day, a principal gets no connection: it would be refused with its first message."""
_MANY: Final = 1024
"""Accounts above which idle ones are forgotten: every subject of a token has one."""


class QuotaError(CapacityError):
    """A principal has what it may have: it may come back later, others may come now."""


class Account:
    """Of one principal.

    Args:
        name: of the principal.
        limits: that hold for it.
        clock: seconds since the epoch.

    Attributes:
        name: of the principal.
        limits: that hold for it.
        day: on which it last streamed, since the epoch.
    """

    def __init__(self, name: str, limits: Limits, clock: Callable[[], float]) -> None:
        self.name = name
        self.limits = limits
        self._clock = clock
        self._connections = 0
        self._streams = 0
        self._parked = 0
        self._starts: deque[float] = deque(maxlen=limits.starts_per_minute or 1)
        self.day = -1
        self._heard = 0
        """Samples at 16 kHz that were counted on that day."""

    @property
    def idle(self) -> bool:
        """Whether forgetting it gives nobody anything."""
        last = self._starts[-1] if self._starts else 0.0
        return (
            not (self._connections or self._streams) and self._clock() - last > _MINUTE_S and self.day != self._today()
        )

    @contextmanager
    def connection(self) -> Iterator[None]:
        """A place for one connection, on which a stream may begin or go on.

        Raises:
            QuotaError: if the principal has as many as it may have.
        """
        most = self.limits.streams
        if most is not None and self._connections > most:
            raise QuotaError(self._full(most))
        if self._heard_today and self._left < _LEAST_LEFT:
            raise QuotaError(self._used_up())
        self._connections += 1
        try:
            yield
        finally:
            self._connections -= 1

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A place for one stream that begins, on whichever connections it goes on.

        Raises:
            QuotaError: if the principal has as many as it may have, or began as many as it may within a minute.
        """
        limits, now = self.limits, self._clock()
        if limits.streams is not None and self._streams >= limits.streams:
            raise QuotaError(self._full(limits.streams))
        if limits.starts_per_minute is not None and len(self._starts) == limits.starts_per_minute:
            wait_s = self._starts[0] + _MINUTE_S - now
            if wait_s > 0:
                raise QuotaError(
                    f"{self.name} began {len(self._starts)} streams within a minute, its limit: "
                    f"come back in {wait_s:.0f} s"
                )
        self._starts.append(now)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    @contextmanager
    def parked(self) -> Iterator[None]:
        """One of its streams lost its connection, and is kept; it still has its place."""
        self._parked += 1
        try:
            yield
        finally:
            self._parked -= 1

    def _full(self, most: int) -> str:
        waiting = f", {self._parked} of them waiting for their clients" if self._parked else ""
        return f"{self.name} has {most} streams open, its limit{waiting}: come back later"

    def meter(self) -> "Meter":
        """Counts the audio of one stream."""
        return Meter(self)

    def hear(self, samples: int) -> str | None:
        """Counts audio at 16 kHz; says what is used up if that is more than is left, and counts nothing; else None."""
        if samples > self._left:
            return self._used_up()
        today = self._today()
        if today != self.day:
            self.day, self._heard = today, 0
        self._heard += samples
        return None

    def give_back(self, samples: int, day: int) -> None:
        """Counts audio no longer that was not taken after all.

        Args:
            samples: of it, at 16 kHz.
            day: on which it was counted; what was counted on another is forgotten already.
        """
        if day == self.day:
            self._heard -= samples

    @property
    def _left(self) -> float:
        """Samples at 16 kHz that may still be streamed today."""
        most = self.limits.day_s
        return math.inf if most is None else most * SAMPLE_RATE_HZ - self._heard_today

    @property
    def _heard_today(self) -> int:
        return self._heard if self.day == self._today() else 0

    def _used_up(self) -> str:
        return (
            f"{self.name} has streamed {self.limits.day_s:g} s of audio today, its limit: come back after midnight UTC"
        )

    def _today(self) -> int:
        return int(self._clock() // _DAY_S)


class Meter:
    """Of one stream."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._heard = 0
        self._day = -1
        """On which the last samples were counted."""

    def problem(self, samples: int) -> str | None:
        """Counts the next samples at 16 kHz of a channel, unless they are over a limit; says which, None for none."""
        most = self._account.limits.stream_s
        if most is not None and self._heard + samples > most * SAMPLE_RATE_HZ:
            return f"the stream is over {most:g} s of audio, the limit of its key: begin another"
        if (problem := self._account.hear(samples)) is not None:
            return problem
        self._heard += samples
        self._day = self._account.day
        return None

    def give_back(self, samples: int) -> None:
        """Counts the last samples no longer: they were not taken."""
        self._heard -= samples
        self._account.give_back(samples, self._day)


class Ledger:
    """The accounts of all principals.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def account(self, principal: Principal) -> Account:
        """The account of a principal; its streams share it, however each was recognised."""
        found = self._accounts.get(principal.name)
        if found is None:
            if len(self._accounts) >= _MANY:
                self._accounts = {name: account for name, account in self._accounts.items() if not account.idle}
            found = self._accounts[principal.name] = Account(principal.name, principal.limits, self._clock)
        return found


UNLIMITED: Final = Account(ANYONE.name, ANYONE.limits, lambda: 0.0)
"""Of everybody, where no access is configured: it counts nothing that could run out."""


def account_of(scope: Mapping[str, Any]) -> Account:
    """Whose streams an ASGI request's are; nobody's where no gate stands in front."""
    account: Account = scope.get("state", {}).get("account", UNLIMITED)
    return account
