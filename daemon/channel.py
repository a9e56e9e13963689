"""The one queue type: bounded, with an explicit policy for when it is full, and counters."""

import asyncio
import enum
from collections import deque
from typing import Generic, TypeVar

from daemon.errors import CapacityError

T = TypeVar("T")


class Overflow(enum.Enum):
    """What a full channel does with one more item."""

    BLOCK = enum.auto()
    DROP_OLDEST = enum.auto()
    REJECT = enum.auto()


class Closed(Exception):
    """The channel was closed and everything in it was taken."""


class Channel(Generic[T]):
    """A bounded queue between two tasks of one event loop: one puts, one gets.

    Attributes:
        dropped: items lost to DROP_OLDEST.
        rejected: items refused by REJECT.
    """

    def __init__(self, limit: int, overflow: Overflow) -> None:
        self.dropped = 0
        self.rejected = 0
        self._limit = limit
        self._overflow = overflow
        self._items: deque[T] = deque()
        self._closed = False
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, item: T) -> bool:
        """Adds an item at once, or not at all; returns whether it is in. After `close` nothing gets in."""
        if self._closed:
            return False
        if len(self._items) >= self._limit:
            if self._overflow is not Overflow.DROP_OLDEST:
                self.rejected += 1
                return False
            self._items.popleft()
            self.dropped += 1
        self._items.append(item)
        self._arrived.set()
        return True

    async def put(self, item: T) -> None:
        """Adds an item; a channel that blocks waits for room.

        Raises:
            CapacityError: if the channel is full and rejects.
            Closed: if it was closed.
        """
        while self._overflow is Overflow.BLOCK and len(self._items) >= self._limit and not self._closed:
            self._taken.clear()
            await self._taken.wait()
        if self._closed:
            raise Closed
        if not self.offer(item):
            raise CapacityError(f"the queue holds {len(self._items)} items, its limit")

    async def get(self) -> T:
        """Takes the oldest item, waiting for one.

        Raises:
            Closed: if the channel is closed and empty.
        """
        while not self._items:
            if self._closed:
                raise Closed
            self._arrived.clear()
            await self._arrived.wait()
        item = self._items.popleft()
        self._taken.set()
        return item

    def rest(self) -> list[T]:
        """Takes everything at once."""
        items = list(self._items)
        self._items.clear()
        self._taken.set()
        return items

    async def close(self) -> None:
        """No more items; what is in it can still be taken."""
        self._closed = True
        self._arrived.set()
        self._taken.set()
