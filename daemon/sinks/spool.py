"""Entries on their way to Redis: first in memory, then in a file; in order, bounded, and gone only once acknowledged.

The rules:
1. A new entry stays in memory while fewer than `memory_limit` do; else, and always after `secure`, it is written to the file.
2. With `memory_limit + disk_limit` entries waiting, a new one costs the oldest interim entry that is not being
   delivered; if there is none, the new entry itself is lost. A final entry never goes for another one.
3. What was lost is counted in a `gap` entry at the place where its session's first loss was, one per session until
   that gap is delivered. Gaps take no room from other entries.
4. `peek` gives the oldest entries, `ack` removes them. What was peeked is being delivered: it is not dropped any more,
   because it may already be in Redis.
5. `close` writes what is in memory to the file; the next `Spool` of the directory goes on from there. A process that is
   killed loses what was only in memory (`memory_limit=0`, or after `secure`: nothing), and gives again what was delivered
   but not acknowledged, which Redis recognises by `event_id`.

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
        self._gap_of: dict[str, int] = {}
        self._secured = False
        self._closed = False
        self._next = 0
        self._pinned = -1
        self._gaps = 0
        self._in_memory = 0
        self._on_disk = 0
        self._futile_below = 0
        self._disk_problem: str | None = None
        self._journal = Journal(directory)
        self._restore()

    def __len__(self) -> int:
        """How many entries wait, gaps included."""
        return len(self._slots)

    def problem(self) -> str | None:
        """What is wrong with the spool itself, else None."""
        if self._kept >= self._limit:
            return f"the spool is full: {self._kept} events wait"
        return self._disk_problem

    def append(self, fields: Fields, *, interim: bool) -> bool:
        """Takes an entry; False if there was no room for it (rule 2), or the spool is closed."""
        if self._closed:
            return False
        number = self._next
        self._next += 1
        if self._kept >= self._limit and not self._drop_oldest_interim():
            self._lose(number, fields, interim=interim)
            self._compact()
            return False
        slot = _Slot("interim" if interim else "final", fields)
        if (self._secured or self._in_memory >= self._memory_limit) and self._file(number, slot):
            slot.fields = None
        self._set(number, slot)
        if interim:
            self._interims.append(number)
        self._compact()
        return True

    def peek(self, count: int) -> list[Fields]:
        """The oldest entries, at most `count`; they stay until `ack`.

        Raises:
            UpstreamError: if the file cannot be read.
        """
        entries = []
        for number, slot in islice(self._slots.items(), count):
            entries.append(self._fields(slot))
            self._pinned = max(self._pinned, number)
        return entries

    def ack(self, count: int) -> None:
        """Removes the oldest `count` entries: they are delivered. At most as many as `peek` gave."""
        filed = self._on_disk
        for _ in range(count):
            number, slot = self._slots.popitem(last=False)
            self._count(slot, -1)
            if slot.kind == "interim":
                self._interims.popleft()
            if slot.kind == "gap" and self._gap_of.get(self._fields(slot)["session"]) == number:
                del self._gap_of[self._fields(slot)["session"]]
        if self._on_disk < filed:
            self._note({"done": number})
            self._compact()

    def secure(self) -> None:
        """Writes what is only in memory to the file, and from now on every new entry: nothing is lost by being killed.

        What the disk does not take stays in memory; `problem` says why.
        """
        self._secured = True
        for number, slot in self._slots.items():
            if slot.place is not None:
                continue
            self._count(slot, -1)
            if self._file(number, slot) and slot.kind != "gap":
                slot.fields = None
            self._count(slot, +1)

    def close(self) -> None:
        """Writes what is only in memory to the file, and frees it.

        Raises:
            UpstreamError: if the disk did not take everything.
        """
        lost = sum(not self._file(number, slot) for number, slot in self._slots.items() if slot.place is None)
        self._journal.close()
        self._closed = True
        if lost:
            raise UpstreamError(f"{lost} events could not be written to {self._journal.path}: {self._disk_problem}")

    @property
    def _limit(self) -> int:
        return self._memory_limit + self._disk_limit

    @property
    def _kept(self) -> int:
        return len(self._slots) - self._gaps

    def _restore(self) -> None:
        slots: dict[int, _Slot] = {}
        done = -1
        for place, record in self._journal.load():
            match record:
                case {"n": int(number), "kind": "final" | "interim" as kind, "fields": dict()}:
                    slots[number] = _Slot(kind, None, place)
                case {"n": int(number), "kind": "gap", "fields": dict(fields)}:
                    # It keeps its count: that may have been delivered already, under the same event id.
                    slots[number] = _Slot("gap", fields, place)
                case {"drop": int(number)}:
                    slots.pop(number, None)
                case {"done": int(number)}:
                    done = max(done, number)
                case _:
                    _log.error("%s: the line at byte %d is no spool entry: skipped", self._journal.path, place.offset)
        for number in sorted(number for number in slots if number > done):
            self._set(number, slots[number])
            if slots[number].kind == "interim":
                self._interims.append(number)
        self._next = max([done, *slots]) + 1
        if self._slots:
            _log.info("%d events of an earlier run wait in %s", len(self._slots), self._journal.path)

    def _fields(self, slot: _Slot) -> Fields:
        if slot.fields is not None:
            return slot.fields
        if slot.place is None:
            raise RuntimeError("an entry is neither in memory nor in the file")
        try:
            fields: Fields = self._journal.read(slot.place)["fields"]
        except (OSError, ValueError) as error:
            raise UpstreamError(f"cannot read {self._journal.path}: {error}") from error
        return fields

    def _set(self, number: int, slot: _Slot) -> None:
        """Puts a slot at the end, or in the place of the one with its number."""
        if number in self._slots:
            self._count(self._slots[number], -1)
        self._slots[number] = slot
        self._count(slot, +1)

    def _count(self, slot: _Slot, sign: int) -> None:
        if slot.kind == "gap":
            self._gaps += sign
        elif slot.place is None:
            self._in_memory += sign
        if slot.place is not None:
            self._on_disk += sign

    def _drop_oldest_interim(self) -> bool:
        for index, number in enumerate(self._interims):
            if number > self._pinned:
                try:
                    fields = self._fields(self._slots[number])
                except UpstreamError as error:
                    self._disk_problem = str(error)
                    return False
                del self._interims[index]
                self._lose(number, fields, interim=True)
                return True
        return False

    def _lose(self, number: int, fields: Fields, *, interim: bool) -> None:
        """Counts a lost entry in its session's open gap, or in a new one that takes the entry's place."""
        self.dropped_interims += interim
        self.refused += not interim
        session = fields["session"]
        if session not in self._gap_of and len(self._gap_of) >= self._limit:
            session = _EVERYONE
        at = self._gap_of.get(session, -1)
        if at > self._pinned:
            gap = dict(self._fields(self._slots[at]))
            if number in self._slots:
                self._forget(number)
        else:
            at = self._gap_of[session] = number
            gap = _new_gap(fields, session)
        lost = "dropped_interims" if interim else "dropped_finals"
        slot = _Slot("gap", gap | {lost: str(int(gap[lost]) + 1)})
        self._file(at, slot)
        self._set(at, slot)

    def _forget(self, number: int) -> None:
        slot = self._slots.pop(number)
        self._count(slot, -1)
        if slot.place is not None:
            self._note({"drop": number})

    def _file(self, number: int, slot: _Slot) -> bool:
        """Writes a slot to the file; where the disk fails, the entry waits in memory, under the same bound."""
        try:
            slot.place = self._journal.append({"n": number, "kind": slot.kind, "fields": self._fields(slot)})
        except OSError as error:
            self._disk_problem = f"cannot write {self._journal.path}: {error}"
            return False
        self._disk_problem = None
        self.spooled += slot.kind != "gap"
        return True

    def _note(self, record: Record) -> None:
        """Writes that entries went. A note that is lost costs a repetition after a crash, never an entry."""
        try:
            if self._on_disk:
                self._journal.append(record)
            else:
                self._journal.clear()
        except OSError as error:
            self._disk_problem = f"cannot write {self._journal.path}: {error}"

    def _compact(self) -> None:
        """Rewrites the file once most of it no longer matters: its length stays within a multiple of the bound."""
        lines = self._journal.lines
        if lines <= 2 * self._on_disk + self._disk_limit or lines < self._futile_below:
            return
        filed = [slot for slot in self._slots.values() if slot.place is not None]
        try:
            places = self._journal.rewrite(slot.place for slot in filed if slot.place is not None)
        except OSError as error:
            self._disk_problem = f"cannot rewrite {self._journal.path}: {error}"
            self._futile_below = 2 * lines
            return
        self._futile_below = 0
        for slot, place in zip(filed, places, strict=True):
            slot.place = place


def _new_gap(lost: Fields, session: str) -> Fields:
    """A gap entry that counts nothing yet, named after the first entry it will count."""
    return {
        "v": lost["v"],
        "type": "gap",
        "event_id": f"{lost['event_id']}:gap",
        "call": "" if session == _EVERYONE else lost["call"],
        "session": session,
        "model": lost["model"],
        "ts": lost["ts"],
        "dropped_interims": "0",
        "dropped_finals": "0",
    }
