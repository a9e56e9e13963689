"""Reads the events of all calls from Redis as one of a group of consumers, each event by one of them, none lost.

    pip install redis
    python consumer.py [redis://127.0.0.1:6390/0] [group] [consumer]

What was read but not acknowledged before a crash comes again: first our own, then that of consumers that are gone for a
minute. So an event may come twice, with the same `event_id`. A Redis that goes away is waited for.
"""

import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import redis

STREAM = "medusa:events"
COUNT = 64
BLOCK_MS = 2_000
ABANDONED_MS = 60_000
PAUSE_S = 0.5

Entry = tuple[str, dict[str, str]]


def handle(event: dict[str, str]) -> None:
    """Yours. What raises is not acknowledged, and comes again after a restart."""
    shown = ("call", "role", "top", "confidence", "text") if event["type"] == "emotion" else ("call", "type")
    sys.stdout.write(" ".join(event[name] for name in shown) + "\n")
    sys.stdout.flush()


def entries(server: "redis.Redis", group: str, consumer: str) -> Iterator[Entry]:
    """Everything that is ours to handle: what was left over, then what comes."""
    try:
        server.xgroup_create(STREAM, group, id="0", mkstream=True)
    except redis.ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):  # the group exists: it goes on where it was
            raise
    after = "0"  # our own that we did not acknowledge; ">" is what nobody has had
    while True:
        batch: Any = server.xreadgroup(group, consumer, {STREAM: after}, count=COUNT, block=BLOCK_MS)
        found = batch[0][1] if batch else []
        yield from found
        if after != ">":
            after = found[-1][0] if found else ">"
        elif not found:
            claimed: Any = server.xautoclaim(STREAM, group, consumer, ABANDONED_MS, "0", count=COUNT)
            yield from claimed[1]


def main(url: str = "redis://127.0.0.1:6390/0", group: str = "example", consumer: str = "python-1") -> None:
    """Until SIGTERM or Ctrl-C."""
    while True:
        try:
            with redis.Redis.from_url(url, decode_responses=True, socket_timeout=BLOCK_MS / 1000 + 5) as server:
                for entry, event in entries(server, group, consumer):
                    if event:  # an entry that Redis has dropped since has no fields
                        handle(event)
                    server.xack(STREAM, group, entry)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            sys.stderr.write(f"Redis is away: {error}\n")
            time.sleep(PAUSE_S)


def stop(number: int, frame: FrameType | None) -> None:
    """Between two events or within one: it does not matter, what is not acknowledged comes again."""
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    main(*sys.argv[1:])
