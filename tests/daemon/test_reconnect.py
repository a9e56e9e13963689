"""What a client keeps of its audio until the server needs it no more."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.reconnect import Tape
from tests.waiting import until


async def test_a_tape_that_is_full_lets_go_of_what_was_sent_and_of_nothing_else() -> None:
    """A server that settles nothing for minutes, because its Redis is away, must not stop who speaks."""
    given = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal given
        while given < 300:
            given += 1
            yield bytes(1000)  # a second

    tape = Tape(1000, 2)
    recording = asyncio.create_task(tape.record(source()))
    await until(lambda: tape.end == 120_000)
    await asyncio.sleep(0)
    assert (tape.start, given) == (0, 121), "what was not sent is not dropped: the source waits"
    for second in range(1, 301):
        await tape.sent(second * 1000)
        await asyncio.sleep(0)
    await asyncio.wait_for(recording, 10.0)
    assert (tape.start, tape.end) == (180_000, 300_000)
    with pytest.raises(ValueError, match="the tape begins at 180000, 100 is kept no more"):
        await tape.after(100)


@given(
    sizes=st.lists(st.integers(0, 50), max_size=30),
    steps=st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=20),
)
def test_a_tape_gives_what_it_was_given_from_anywhere_that_is_not_forgotten(
    sizes: list[int], steps: list[tuple[bool, float]]
) -> None:
    data = bytes(range(256)) * 8
    cuts = [0, *np.cumsum(sizes).tolist()]
    chunks = [data[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    whole = b"".join(chunks)

    async def source() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def scenario() -> None:
        tape = Tape(1000, 2)
        await tape.record(source())
        for forget, share in steps:
            position = tape.start + round(share * (tape.end - tape.start))
            if forget:
                await tape.forget(position)
                assert tape.start <= position
            else:
                heard = b""
                while piece := await tape.after(position + len(heard)):
                    heard += piece
                assert heard == whole[position:]

    asyncio.run(scenario())
