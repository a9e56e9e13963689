"""Entries on their way to Redis: first in memory, then in a file; in order, bounded, and gone only once acknowledged.

The rules:
1. A new entry stays in memory while fewer than `memory_limit` do; else it is written to the file.
2. With `memory_limit + disk_limit` entries waiting, a new one costs the oldest interim entry that is not being
   delivered; if there is none, the new entry itself is lost. A final entry never goes for another one.
3. What was lost is counted in a `gap` entry at the place where its session's first loss was, one per session until
   that gap is delivered. Gaps take no room from other entries.
4. `peek` gives the oldest entries, `ack` removes them. What was peeked is being delivered: it is not dropped any more,
   because it may already be in Redis.
5. `close` writes what is in memory to the file; the next `Spool` of the directory goes on from there. A process that is
   killed loses what was only in memory (`memory_limit=0`: nothing), and gives again what was delivered but not
   acknowledged, which Redis recognises by `event_id`.

The file's lines, later ones over earlier ones with the same number:

    {"n": 7, "kind": "final", "fields": {...}}    entry 7 waits
    {"drop": 9}                                   entry 9 does not
    {"done": 7}                                   all entries up to 7 do not
"""

import logging
from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from daemon.errors import UpstreamError
from daemon.sinks.journal import Journal, Place, Record

_log = logging.getLogger(__name__)

Fields = dict[str, str]
"""A stream entry, as `daemon.wire.redis_fields` makes it."""

_Kind = Literal["final", "interim", "gap"]
_EVERYONE = ""
"""The session of the one gap that counts for all sessions beyond the number that get a gap of their own."""


@dataclass(slots=True)
class _Slot:
    """A waiting entry. `fields` is None where only the file holds it; `place` is None where the file does not."""

    kind: _Kind
    fields: Fields | None
    place: Place | None = None


class Spool:
    """A bounded queue of stream entries that outlives its process.

    Args:
        directory: where the file is; one process at a time.
        memory_limit: entries that wait in memory only.
        disk_limit: entries that wait in the file.

    Attributes:
        spooled: entries that went to the file.
        dropped_interims: interim entries lost because the spool was full.
        refused: final entries lost because the spool was full of finals.

    Raises:
        ConfigError: if the directory cannot be written, or another process uses it.
    """

    def __init__(self, directory: Path, *, memory_limit: int = 1_000, disk_limit: int = 50_000) -> None:
        self.spooled = 0
        self.dropped_interims = 0
        self.refused = 0
        self._memory_limit = memory_limit
        self._disk_limit = disk_limit
        self._slots: OrderedDict[int, _Slot] = OrderedDict()
        self._interims: deque[int] = deque()
        self._gaps: dict[str, int] = {}
        self._next = 0
        self._pinned = -1
        self._in_memory = 0
        self._on_disk = 0
        self._disk_problem: str | None = None
        self._journal = Journal(directory)
        self._restore()

    def __len__(self) -> int:
        """How many entries wait, gaps included."""
        return len(self._slots)

    def problem(self) -> str | None:
        """What is wrong with the spool itself, else None."""
        if self._kept >= self._limit:
            return f"the spool is full: {self._limit} events wait"
        return self._disk_problem

    def append(self, fields: Fields, *, interim: bool) -> bool:
        """Takes an entry; False if there was no room for it (rule 2)."""
        if self._kept >= self._limit and not self._drop_oldest_interim():
            self._lose(self._next, fields, interim=interim)
            self._next = max(self._next, next(reversed(self._slots), -1) + 1)
            return False
        slot = _Slot("interim" if interim else "final", fields)
        if self._in_memory >= self._memory_limit and self._file(self._next, slot):
            slot.fields = None
            self.spooled += 1
        self._insert(self._next, slot)
        self._next += 1
        return True

    def peek(self, count: int) -> list[Fields]:
        """The oldest entries, at most `count`, and nothing removed.

        Raises:
            OSError: if the file cannot be read.
        """
        entries = []
        for number, slot in islice(self._slots.items(), count):
            entries.append(self._fields(slot))
            self._pinned = max(self._pinned, number)
        return entries

    def ack(self, count: int) -> None:
        """Removes the oldest `count` entries: they are delivered."""
        filed = self._on_disk
        number = -1
        for _ in range(count):
            number, slot = next(iter(self._slots.items()))
            self._remove(number, slot)
        if self._on_disk < filed:
            self._note({"done": number})

    def close(self) -> None:
        """Writes what is only in memory to the file and frees it.

        Raises:
            UpstreamError: if the disk did not take everything.
        """
        lost = sum(not self._file(number, slot) for number, slot in self._slots.items() if slot.place is None)
        self._journal.close()
        if lost:
            raise UpstreamError(f"{lost} events could not be written to {self._journal.path}: {self._disk_problem}")

    @property
    def _limit(self) -> int:
        return self._memory_limit + self._disk_limit

    @property
    def _kept(self) -> int:
        return len(self._slots) - len(self._gaps)

    def _restore(self) -> None:
        slots: dict[int, _Slot] = {}
        done = -1
        for place, record in self._journal.load():
            match record:
                case {"n": int(number), "kind": "final" | "interim" as kind}:
                    slots[number] = _Slot(kind, None, place)
                case {"n": int(number), "kind": "gap", "fields": dict(fields)}:
                    slots[number] = _Slot("gap", fields, place)
                case {"drop": int(number)}:
                    slots.pop(number, None)
                case {"done": int(number)}:
                    done = max(done, number)
                case _:
                    _log.error("%s: the line at byte %d is not ours and was skipped", self._journal.path, place.offset)
        for number in sorted(number for number in slots if number > done):
            self._insert(number, slots[number])
        self._next = max(done, *slots, -1) + 1
        if self._slots:
            _log.info("%d events of an earlier run wait in %s", len(self._slots), self._journal.path)
        self._compact()

    def _fields(self, slot: _Slot) -> Fields:
        if slot.fields is not None:
            return slot.fields
        if slot.place is None:
            raise RuntimeError("an entry is neither in memory nor in the file")
        fields: Fields = self._journal.read(slot.place)["fields"]
        return fields

    def _insert(self, number: int, slot: _Slot) -> None:
        """Takes up a slot; where the number has one already, in its place."""
        if number in self._slots:
            self._uncount(self._slots[number])
        self._slots[number] = slot
        if slot.kind == "interim":
            self._interims.append(number)
        if slot.kind == "gap":
            self._gaps[_session(slot)] = number
        if slot.place is not None:
            self._on_disk += 1
        elif slot.kind != "gap":
            self._in_memory += 1

    def _remove(self, number: int, slot: _Slot) -> None:
        """Forgets the oldest slot."""
        del self._slots[number]
        self._uncount(slot)
        if slot.kind == "interim":
            self._interims.popleft()

    def _uncount(self, slot: _Slot) -> None:
        if slot.kind == "gap":
            del self._gaps[_session(slot)]
        if slot.place is not None:
            self._on_disk -= 1
        elif slot.kind != "gap":
            self._in_memory -= 1

    def _drop_oldest_interim(self) -> bool:
        for index, number in enumerate(self._interims):
            if number > self._pinned:
                del self._interims[index]
                self._lose(number, self._fields(self._slots[number]), interim=True)
                return True
        return False

    def _lose(self, number: int, fields: Fields, *, interim: bool) -> None:
        """Counts a lost entry in a gap: in its session's open one, else in a new one at its own number."""
        self.dropped_interims += interim
        self.refused += not interim
