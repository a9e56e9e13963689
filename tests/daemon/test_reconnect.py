"""What a client keeps of its audio until the server needs it no more."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from daemon.reconnect import Tape


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
