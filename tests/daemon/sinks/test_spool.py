"""The spool's rules, against a plain list that follows them too."""

import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.errors import ConfigError, UpstreamError
from daemon.sinks.spool import Fields, Spool
from daemon.wire import redis_fields
from tests.factories import make_emotion_event, make_info

SESSIONS = ("a", "b", "c")
EVERYTHING = 1_000_000


@contextmanager
def folder() -> Iterator[Path]:
    """A new directory; for tests that need one per example."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def entry(number: int, session: str = "a") -> Fields:
    """Entry `number` of a session, with text that is hard to store."""
    info = make_info(call=f"call-{session}", session=session)
    return redis_fields(make_emotion_event(number, text='a "line"\nand\u2028é\x00\ud800', info=info))


def number_of(fields: Fields) -> int:
    """The number that `entry` was given; for a gap, that of the first entry it counts."""
    return int(fields["event_id"].split(":")[2])


def numbers(entries: list[Fields]) -> list[int]:
    """The numbers of the entries that are no gaps."""
    return [number_of(fields) for fields in entries if fields["type"] != "gap"]


def lost(entries: list[Fields]) -> int:
    """How many entries the gaps among `entries` count."""
    gaps = [fields for fields in entries if fields["type"] == "gap"]
    return sum(int(gap["dropped_interims"]) + int(gap["dropped_finals"]) for gap in gaps)


def take(spool: Spool, count: int = EVERYTHING) -> list[Fields]:
    """Delivers the oldest entries."""
    entries = spool.peek(count)
    spool.ack(len(entries))
    return entries


@dataclass
class Reference:
    """What the spool should hold, gaps left out."""

    limit: int
    waiting: list[tuple[int, bool]] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    interims_lost: int = 0
    finals_lost: int = 0

    def append(self, number: int, interim: bool) -> bool:
        if len(self.waiting) >= self.limit:
            droppable = [item for item in self.waiting if item[1] and item[0] not in self.pinned]
            if not droppable:
                self.interims_lost += interim
                self.finals_lost += not interim
                return False
            self.waiting.remove(droppable[0])
            self.interims_lost += 1
        self.waiting.append((number, interim))
        return True

    def deliver(self, delivered: list[int]) -> None:
        self.waiting = [item for item in self.waiting if item[0] not in delivered]


@dataclass(frozen=True)
class Step:
    """One thing to do; what the action has no use for is ignored."""

    action: str
    session: str
    interim: bool
    count: int


ACTIONS = (*["append"] * 9, "peek", "take", "reopen")
"""Mostly appending, so that spools get full."""

STEPS = st.lists(
    st.builds(Step, st.sampled_from(ACTIONS), st.sampled_from(SESSIONS), st.booleans(), st.integers(1, 4)), max_size=60
)


@given(STEPS, st.integers(0, 4), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_follows_its_rules_for_any_steps(steps: list[Step], memory_limit: int, disk_limit: int) -> None:
    """Entries, order, losses and gaps are those of the reference, whatever happens and across restarts."""
    with folder() as directory:
        spool = Spool(directory, memory_limit=memory_limit, disk_limit=disk_limit)
        reference = Reference(memory_limit + disk_limit)
        delivered: list[Fields] = []
        interims_lost_before = finals_lost_before = 0
        for number, step in enumerate(steps):
            match step.action:
                case "append":
                    taken = spool.append(entry(number, step.session), interim=step.interim)
                    assert taken == reference.append(number, step.interim)
                case "peek":
                    reference.pinned |= set(numbers(spool.peek(step.count)))
                case "take":
                    some = take(spool, step.count)
                    reference.deliver(numbers(some))
                    delivered += some
                case "reopen":
                    interims_lost_before += spool.dropped_interims
                    finals_lost_before += spool.refused
                    spool.close()
                    spool = Spool(directory, memory_limit=memory_limit, disk_limit=disk_limit)
                    reference.pinned.clear()
            assert len(spool) >= len(reference.waiting)
        rest = take(spool)
        spool.close()

        assert numbers(rest) == [number for number, _ in reference.waiting]
        everything = [number_of(fields) for fields in delivered + rest]
        assert everything == sorted(set(everything)), "order, and each gap stands where its first entry was"
        assert lost(delivered + rest) == reference.interims_lost + reference.finals_lost
        assert interims_lost_before + spool.dropped_interims == reference.interims_lost
        assert finals_lost_before + spool.refused == reference.finals_lost


@given(STEPS, st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_a_kill_at_any_moment_loses_nothing_that_is_in_the_file(steps: list[Step], disk_limit: int) -> None:
    """A copy of the directory, taken while the spool is open, gives the same entries."""
    with folder() as directory:
        spool = Spool(directory / "alive", memory_limit=0, disk_limit=disk_limit)
        for number, step in enumerate(steps):
            if step.action == "append":
                spool.append(entry(number, step.session), interim=step.interim)
            if step.action == "take":
                take(spool, step.count)
        shutil.copytree(directory / "alive", directory / "killed")
        survivor = Spool(directory / "killed", memory_limit=0, disk_limit=disk_limit)
        assert survivor.peek(EVERYTHING) == spool.peek(EVERYTHING)
        survivor.close()
        spool.close()


@given(st.integers(1, 5), st.data())
@settings(max_examples=40, deadline=None)
def test_a_last_line_cut_anywhere_was_never_written(count: int, data: st.DataObject) -> None:
    """Half a line is no entry and no error, and the spool goes on behind the whole ones."""
    with folder() as directory:
        spool = Spool(directory, memory_limit=0)
        for number in range(count):
            spool.append(entry(number), interim=False)
        spool.close()
        path = directory / "spool.jsonl"
        content = path.read_bytes()
        start_of_last = content.rindex(b"\n", 0, -1) + 1 if count > 1 else 0
        path.write_bytes(content[: data.draw(st.integers(start_of_last, len(content) - 1))])

        spool = Spool(directory, memory_limit=0)
        spool.append(entry(count), interim=False)
        spool.close()
        spool = Spool(directory)
        assert numbers(take(spool)) == [*range(count - 1), count]
        spool.close()


def test_a_line_that_is_no_entry_is_reported_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damage costs the damaged line only, and somebody is told."""
    spool = Spool(tmp_path)
    for number in range(3):
        spool.append(entry(number), interim=False)
    spool.close()
    path = tmp_path / "spool.jsonl"
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\xff\xfe\n" + b'{"unknown": 1}\n' + third)

    spool = Spool(tmp_path)
    assert numbers(take(spool)) == [0, 2]
    spool.close()
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_memory_comes_before_the_disk(tmp_path: Path) -> None:
    """Nothing is written while there is room in memory, and a delivered backlog leaves no file behind."""
    spool = Spool(tmp_path, memory_limit=2, disk_limit=5)
    path = tmp_path / "spool.jsonl"
    for number in range(2):
        spool.append(entry(number), interim=False)
    assert (path.stat().st_size, spool.spooled) == (0, 0)
    for number in range(2, 4):
        spool.append(entry(number), interim=False)
    assert spool.spooled == 2
    assert path.read_bytes().count(b"\n") == 2
    assert numbers(take(spool)) == [0, 1, 2, 3]
    assert path.stat().st_size == 0
    spool.close()


def test_a_gap_says_whose_events_are_missing_and_where(tmp_path: Path) -> None:
    """One gap per session, in the place of the first loss, counting all of them."""
    spool = Spool(tmp_path, memory_limit=2, disk_limit=2)
    for number, (session, interim) in enumerate([("a", False), ("a", True), ("b", True), ("a", True)]):
        spool.append(entry(number, session), interim=interim)
    for number in range(4, 7):
        spool.append(entry(number, "b"), interim=False)
    entries = take(spool)
    spool.close()
    found = [(fields["type"], fields["call"], fields.get("dropped_interims")) for fields in entries]
    final = ("emotion", "call-b", None)
    assert found == [("emotion", "call-a", None), ("gap", "call-a", "2"), ("gap", "call-b", "1"), final, final, final]
    assert len({fields["event_id"] for fields in entries}) == len(entries)
    assert spool.dropped_interims == 3


def test_a_final_is_refused_only_among_finals_and_that_is_said(tmp_path: Path) -> None:
    """Past the bound the newest is lost: told, counted, and marked by a gap at the end."""
    spool = Spool(tmp_path, memory_limit=1, disk_limit=1)
    assert spool.problem() is None
    assert [spool.append(entry(number), interim=False) for number in range(4)] == [True, True, False, False]
    assert spool.refused == 2
    assert spool.problem() == "the spool is full: 2 events wait"
    *kept, gap = take(spool)
    assert numbers(kept) == [0, 1]
    assert (gap["type"], gap["dropped_finals"], gap["dropped_interims"]) == ("gap", "2", "0")
    assert spool.problem() is None
    spool.close()


def test_gaps_are_bounded_too(tmp_path: Path) -> None:
    """Sessions beyond the limit share one gap, which belongs to no call."""
    spool = Spool(tmp_path, memory_limit=2, disk_limit=0)
    for first in (0, 8):
        for number in range(first, first + 8):
            spool.append(entry(number, f"session-{number}"), interim=False)
        gaps = [fields for fields in take(spool) if fields["type"] == "gap"]
        assert [gap["call"] for gap in gaps] == [f"call-session-{first + 2}", f"call-session-{first + 3}", ""]
        assert lost(gaps) == 6
    spool.close()


def test_what_is_being_delivered_is_not_dropped(tmp_path: Path) -> None:
    """An interim that was peeked may already be in Redis: the next one goes, and a gap under way keeps its count."""
    spool = Spool(tmp_path, memory_limit=3, disk_limit=0)
    for number in range(3):
        spool.append(entry(number), interim=True)
    assert numbers(spool.peek(1)) == [0]
    spool.append(entry(3), interim=False)
    under_way = spool.peek(2)
    spool.append(entry(4), interim=False)
    assert take(spool, 2) == under_way
    assert lost(under_way) == 1
    assert lost(take(spool)) == 1
    spool.close()


def test_the_file_stays_within_a_multiple_of_the_bound(tmp_path: Path) -> None:
    """A spool that is never empty does not grow: what no longer matters is removed."""
    spool = Spool(tmp_path, memory_limit=0, disk_limit=10)
    sizes = []
    for number in range(400):
        spool.append(entry(number), interim=number % 3 > 0)
        if number > 5:
            take(spool, 1)
        sizes.append((tmp_path / "spool.jsonl").stat().st_size)
    assert max(sizes[50:]) < 1.5 * max(sizes[:50])
    waiting = numbers(spool.peek(EVERYTHING))
    spool.close()
    spool = Spool(tmp_path)
    assert numbers(spool.peek(EVERYTHING)) == waiting
    spool.close()


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the same error to a writer as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_entries_in_memory_and_says_so(tmp_path: Path) -> None:
    """Nothing is lost while the process lives, and half a written line harms nothing."""
    spool = Spool(tmp_path, memory_limit=1, disk_limit=10)
    with full_disk(1_000):
        for number in range(5):
            assert spool.append(entry(number), interim=False)
        assert "cannot write" in (spool.problem() or "")
    assert spool.append(entry(5), interim=False)
    assert spool.problem() is None
    spool.close()
    spool = Spool(tmp_path)
    assert numbers(take(spool)) == [0, 1, 2, 3, 4, 5]
    spool.close()


def test_a_close_that_loses_events_says_how_many(tmp_path: Path) -> None:
    """The disk is the last place: if it fails there, that is an error."""
    spool = Spool(tmp_path, memory_limit=3)
    for number in range(3):
        spool.append(entry(number), interim=False)
    with full_disk(1_000), pytest.raises(UpstreamError, match="2 events could not be written"):
        spool.close()


def test_a_directory_belongs_to_one_process(tmp_path: Path) -> None:
    """Two writers would damage the file: the second is a configuration error."""
    spool = Spool(tmp_path)
    with pytest.raises(ConfigError, match="another process uses the spool directory"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_a_directory_that_cannot_be_is_a_configuration_error(tmp_path: Path) -> None:
    """Told at the start, not at the first outage."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write the spool directory"):
        Spool(tmp_path / "file" / "spool")


def test_transcripts_on_disk_are_for_the_owner_only(tmp_path: Path) -> None:
    """The file holds what people said."""
    Spool(tmp_path).close()
    assert (tmp_path / "spool.jsonl").stat().st_mode & 0o077 == 0


def test_what_is_secured_outlives_a_kill(tmp_path: Path) -> None:
    """What waited in memory, gaps too, and what comes afterwards; the order stays, nothing is there twice."""
    spool = Spool(tmp_path / "killed", memory_limit=4, disk_limit=2)
    for number in range(4):
        spool.append(entry(number), interim=False)
    spool.append(entry(4), interim=False)
    assert take(spool, 1) == [entry(0)]
    spool.secure()
    spool.append(entry(5), interim=False)
    shutil.copytree(tmp_path / "killed", tmp_path / "copy")  # what a kill at this moment leaves
    assert numbers(take(spool)) == [1, 2, 3, 4, 5]
    spool.close()
    after = Spool(tmp_path / "copy", memory_limit=4, disk_limit=2)
    assert take(after) == [entry(number) for number in range(1, 6)]
    after.close()


def test_a_full_disk_leaves_secured_entries_in_memory(tmp_path: Path) -> None:
    """And says so; nothing is lost as long as the process lives."""
    spool = Spool(tmp_path, memory_limit=100)
    for number in range(20):
        spool.append(entry(number), interim=False)
    with full_disk(2_000):
        spool.secure()
        assert "cannot write" in str(spool.problem())
        spool.append(entry(20), interim=False)
    assert numbers(take(spool)) == list(range(21))
    spool.close()
