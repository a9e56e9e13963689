"""The messages of one session, for whoever reads them: over a data channel, or as server-sent events, late or again."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator
from itertools import islice
from typing import Final

from daemon import wire

HEARTBEAT_S: Final = 15.0
"""A proxy drops a silent response after about a minute."""
_RETRY_MS: Final = 1000


class ResultLog:
    """The last messages, by `seq`, to be read by any number of readers from any place.

    Args:
        limit: messages kept; a reader further behind sees by `seq` what it missed.
    """

    def __init__(self, limit: int) -> None:
        self._messages: deque[str] = deque(maxlen=limit)
        self._count = 0
        self._closed = False
        self._changed = asyncio.Event()

    def append(self, message: wire.Message) -> None:
        """Takes the next message; their `seq` counts from 0."""
        self._messages.append(json.dumps(message, separators=(",", ":"), ensure_ascii=False))
        self._count += 1
        self._wake()

    def close(self) -> None:
        """No more messages."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self, first: int = 0, heartbeat_s: float | None = None) -> AsyncGenerator[tuple[int, str] | None]:
        """Every message from `seq` `first` on, as JSON, until the log is closed.

        Args:
            first: where to begin; what is no longer kept is left out.
            heartbeat_s: a None is given after every such time without a message.
        """
        while True:
            changed = self._changed
            kept_from = self._count - len(self._messages)
            first = max(first, kept_from)
            waiting = list(islice(self._messages, first - kept_from, None))
            for text in waiting:
                yield first, text
                first += 1
            if waiting:
                continue
            if self._closed:
                return
            try:
                await asyncio.wait_for(changed.wait(), heartbeat_s)
            except TimeoutError:
                yield None

    async def server_sent_events(self, first: int) -> AsyncGenerator[str]:
        """The same as `text/event-stream`."""
        yield f"retry: {_RETRY_MS}\n\n"
        async for message in self.read(first, HEARTBEAT_S):
            yield ": still here\n\n" if message is None else f"id: {message[0]}\ndata: {message[1]}\n\n"


def next_after(last_event_id: str | None) -> int:
    """Where a reader goes on that says what it saw last; one that says nothing, or nonsense, begins at the begin."""
    known = (
        last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 16
    )
    return int(last_event_id or 0) + 1 if known else 0
