"""The one queue type: what a full one does, what a closed one does, and that it counts."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.channel import Channel, Closed, Overflow
from daemon.errors import CapacityError

LIMIT = 3


def filled(overflow: Overflow) -> Channel[int]:
    channel: Channel[int] = Channel(LIMIT, overflow)
    assert [channel.offer(item) for item in range(LIMIT)] == [True] * LIMIT
    return channel


async def taken(channel: Channel[int]) -> list[int]:
    """Everything that is in it; closes it."""
    await channel.close()
    items: list[int] = []
    while True:
        try:
            items.append(await channel.get())
        except Closed:
            return items


async def settle() -> None:
    """Lets every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_items_come_out_in_order() -> None:
    assert await taken(filled(Overflow.BLOCK)) == [0, 1, 2]


async def test_drop_oldest_drops_the_oldest_and_counts() -> None:
    channel = filled(Overflow.DROP_OLDEST)
    assert channel.offer(3)
    await channel.put(4)
    assert (len(channel), channel.dropped, channel.rejected) == (LIMIT, 2, 0)
    assert await taken(channel) == [2, 3, 4]


async def test_reject_refuses_the_newest_and_counts() -> None:
    channel = filled(Overflow.REJECT)
    assert not channel.offer(3)
    with pytest.raises(CapacityError, match="holds 3 items"):
        await channel.put(4)
    assert (len(channel), channel.dropped, channel.rejected) == (LIMIT, 0, 2)
    assert await channel.get() == 0
    assert channel.offer(5)
    assert await taken(channel) == [1, 2, 5]


async def test_block_waits_for_room() -> None:
    channel = filled(Overflow.BLOCK)
    putting = asyncio.create_task(channel.put(3))
    await settle()
    assert not putting.done()
    assert await channel.get() == 0
    await putting
    assert (channel.dropped, channel.rejected) == (0, 0)
    assert await taken(channel) == [1, 2, 3]


async def test_one_place_lets_one_of_several_waiting_in() -> None:
    channel = filled(Overflow.BLOCK)
    putting = [asyncio.create_task(channel.put(item)) for item in (3, 4)]
    await settle()
    await channel.get()
    await settle()
    assert len(channel) == LIMIT
    assert sum(task.done() for task in putting) == 1
    await channel.get()
    await asyncio.gather(*putting)
    assert await taken(channel) == [2, 3, 4]


async def test_an_offer_never_waits_even_where_the_channel_blocks() -> None:
    channel = filled(Overflow.BLOCK)
    assert not channel.offer(3)
    assert channel.rejected == 1
    assert await taken(channel) == [0, 1, 2]


async def test_get_waits_for_an_item() -> None:
    channel: Channel[int] = Channel(LIMIT, Overflow.BLOCK)
    getting = asyncio.create_task(channel.get())
    await settle()
    assert not getting.done()
    await channel.put(7)
    assert await getting == 7


async def test_a_cancelled_get_takes_nothing() -> None:
    channel: Channel[int] = Channel(LIMIT, Overflow.BLOCK)
    getting = asyncio.create_task(channel.get())
    await settle()
    channel.offer(1)
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    assert await channel.get() == 1


@pytest.mark.parametrize("overflow", Overflow)
async def test_a_closed_channel_takes_nothing_and_gives_what_it_holds(overflow: Overflow) -> None:
    channel = filled(overflow)
    await channel.close()
    assert not channel.offer(3)
    with pytest.raises(Closed):
        await channel.put(4)
    assert (channel.dropped, channel.rejected) == (0, 0), "closing is no overflow"
    assert await taken(channel) == [0, 1, 2]
    with pytest.raises(Closed):
        await channel.get()


async def test_close_wakes_who_waits_for_an_item() -> None:
    channel: Channel[int] = Channel(LIMIT, Overflow.BLOCK)
    getting = [asyncio.create_task(channel.get()) for _ in range(2)]
    await settle()
    await channel.close()
    assert [type(end) for end in await asyncio.gather(*getting, return_exceptions=True)] == [Closed, Closed]


async def test_close_wakes_who_waits_for_room() -> None:
    channel = filled(Overflow.BLOCK)
    putting = asyncio.create_task(channel.put(3))
    await settle()
    await channel.close()
    with pytest.raises(Closed):
        await putting
    assert await taken(channel) == [0, 1, 2]


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    limit=st.integers(1, 5),
    pauses=st.lists(st.booleans(), max_size=40),
)
def test_a_blocking_channel_loses_nothing_and_keeps_every_producers_order(
    counts: list[int], limit: int, pauses: list[bool]
) -> None:
    async def scenario() -> list[tuple[int, int]]:
        channel: Channel[tuple[int, int]] = Channel(limit, Overflow.BLOCK)

        async def produce(producer: int, count: int) -> None:
            for number in range(count):
                await channel.put((producer, number))

        async with asyncio.TaskGroup() as group:
            for producer, count in enumerate(counts):
                group.create_task(produce(producer, count))
            got = []
            for step in range(sum(counts)):
                if step < len(pauses) and pauses[step]:
                    await settle()
                assert len(channel) <= limit
                got.append(await channel.get())
        assert (len(channel), channel.dropped, channel.rejected) == (0, 0, 0)
        return got

    got = asyncio.run(scenario())
    for producer, count in enumerate(counts):
        assert [number for of, number in got if of == producer] == list(range(count))
