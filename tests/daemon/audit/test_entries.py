"""What is written down, and how often: no Redis, no clock but the test's."""

from hypothesis import given
from hypothesis import strategies as st

from daemon.audit import entries as entries_module
from daemon.audit.entries import AUDIT_VERSION, UNAUDITED, AuditSettings, Entries

NOW_MS = 1_700_000_000_000


def new_entries() -> Entries:
    return Entries(AuditSettings("host-1"), lambda: NOW_MS)


def test_an_entry_is_flat_and_says_when_and_where() -> None:
    entries = new_entries()
    entries.note("call.deleted", {"who": "desk", "call": "c-1"}.items())
    common = {"v": AUDIT_VERSION, "type": "call.deleted", "ts": str(NOW_MS), "node": "host-1", "count": "1"}
    assert entries.next(9) == [common | {"who": "desk", "call": "c-1"}]


def counts(entries: Entries) -> list[tuple[str, str]]:
    return [(entry["who"], entry["count"]) for entry in entries.next(1000)]


def test_what_is_repeated_is_told_at_once_and_then_counted() -> None:
    entries = new_entries()
    for who in ("desk", "desk", "boss", "desk"):
        entries.tally("calls.listed", {"who": who}.items())
    assert counts(entries) == [("desk", "1"), ("boss", "1")]
    entries.settle()
    assert counts(entries)[2:] == [("desk", "2")]
    entries.tally("calls.listed", {"who": "desk"}.items())
    entries.tally("calls.listed", {"who": "boss"}.items())
    assert counts(entries)[3:] == [("boss", "1")], "he had stopped; the desk goes on, and is counted"
    entries.settle()
    assert counts(entries)[4:] == [("desk", "1")]


@given(st.lists(st.one_of(st.none(), st.sampled_from("abc")), max_size=60))
def test_every_time_is_counted_once_however_windows_lie(happened: list[str | None]) -> None:
    """None is the end of a window."""
    entries = new_entries()
    for who in happened:
        if who is None:
            entries.settle()
        else:
            entries.tally("call.read", {"who": who}.items())
    entries.settle()
    for who in "abc":
        assert sum(int(count) for name, count in counts(entries) if name == who) == happened.count(who)


def test_more_things_than_are_remembered_are_written_all_the_same() -> None:
    entries, most = new_entries(), entries_module._MOST_REPEATED
    for n in range(most + 2):
        entries.tally("call.read", {"who": "desk", "call": str(n)}.items())
        entries.tally("call.read", {"who": "desk", "call": "0"}.items())
    entries.settle()
    calls = [(entry["call"], int(entry["count"])) for entry in entries.next(10 * most)]
    assert {call for call, _ in calls} == {str(n) for n in range(most + 2)}
    assert sum(count for call, count in calls if call == "0") == most + 3
    assert len(entries._repeated) <= most


def test_without_room_entries_are_lost_and_counted() -> None:
    entries = new_entries()
    for _ in range(entries_module._OUTBOX + 3):
        entries.note("refused", {"code": "expired"}.items())
    assert (len(entries), entries.lost) == (entries_module._OUTBOX, 3)
    entries.written(4)
    assert len(entries) == entries_module._OUTBOX - 4
    assert entries.give_up() == entries_module._OUTBOX - 4
    assert (len(entries), entries.lost) == (0, entries_module._OUTBOX - 1)


def test_nobody_writes_nothing_down() -> None:
    UNAUDITED.note("call.deleted", who="desk")
    UNAUDITED.tally("call.read", who="desk")
