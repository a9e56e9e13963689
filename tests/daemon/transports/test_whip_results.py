"""Who reads a session's messages late, slowly or again misses none that is kept, and sees what is not."""

import asyncio
import json

import pytest

from daemon.transports.whip.results import ResultLog, next_after


def filled(count: int, limit: int = 256) -> ResultLog:
    log = ResultLog(limit)
    for seq in range(count):
        log.append({"type": "warning", "seq": seq})
    return log


async def seqs(log: ResultLog, first: int = 0) -> list[int]:
    found = [message async for message in log.read(first) if message is not None]
    assert [json.loads(text)["seq"] for _, text in found] == [seq for seq, _ in found]
    return [seq for seq, _ in found]


@pytest.mark.parametrize(("first", "wanted"), [(0, [0, 1, 2, 3, 4]), (3, [3, 4]), (5, []), (9, [])])
async def test_a_reader_begins_where_it_says(first: int, wanted: list[int]) -> None:
    log = filled(5)
    log.close()
    assert await seqs(log, first) == wanted


async def test_what_is_no_longer_kept_is_left_out() -> None:
    log = filled(10, limit=4)
    log.close()
    assert await seqs(log) == [6, 7, 8, 9]


async def test_readers_wait_for_what_comes() -> None:
    log = filled(1)
    readers = [asyncio.create_task(seqs(log)), asyncio.create_task(seqs(log, 1))]
    await asyncio.sleep(0)
    for seq in (1, 2):
        log.append({"seq": seq})
        await asyncio.sleep(0)
    log.close()
    assert [await reader for reader in readers] == [[0, 1, 2], [1, 2]]


async def test_a_quiet_log_has_a_heartbeat() -> None:
    log = filled(1)
    reader = log.read(heartbeat_s=0.01)
    assert await anext(reader) == (0, '{"type":"warning","seq":0}')
    assert await anext(reader) is None
    log.append({"seq": 1})
    assert await anext(reader) == (1, '{"seq":1}')
    await reader.aclose()


async def test_events_carry_seq_as_id() -> None:
    log = filled(2)
    log.close()
    assert [text async for text in log.server_sent_events(1)] == [
        "retry: 1000\n\n",
        'id: 1\ndata: {"type":"warning","seq":1}\n\n',
    ]


async def test_a_text_of_many_lines_stays_one_event() -> None:
    log = ResultLog(4)
    log.append({"text": "one\ntwo\r\n\n\u2028three"})
    log.close()
    _, event = [text async for text in log.server_sent_events(0)]
    assert event.count("\n") == 3
    assert "\r" not in event


@pytest.mark.parametrize(
    ("said", "first"), [(None, 0), ("", 0), ("4", 5), ("0", 1), ("-1", 0), ("x", 0), ("٣", 0), ("9" * 5000, 0)]
)
def test_a_last_event_id_is_where_to_go_on(said: str | None, first: int) -> None:
    assert next_after(said) == first
