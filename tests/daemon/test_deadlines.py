"""Batching in the order of deadlines: what is not certain yet is done in time, and in nobody's way."""

import asyncio
import enum
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.batcher import Batcher, BatchSettings
from tests.daemon.batching import (
    AT_ONCE,
    NEVER_S,
    PATIENCE_S,
    Clock,
    Model,
    batcher_of,
    queued,
    serving,
    values,
)
from tests.waiting import until


async def test_what_is_wanted_first_goes_first() -> None:
    model = Model()
    async with batcher_of(model, BatchSettings(max_batch_size=1, max_queue_delay_s=0.0)) as batcher:
        later = await queued(batcher, "c", ahead_s=0.2)
        sooner = await queued(batcher, "b", ahead_s=0.1)
        now = await queued(batcher, "a")
        async with serving(batcher):
            await values([*later, *sooner, *now])
    assert model.batches == [["a"], ["b"], ["c"]]


async def test_uncertain_work_begins_at_once_on_an_idle_model() -> None:
    model = Model()
    async with batcher_of(model) as batcher, serving(batcher):
        assert (await batcher.submit("a", 0, final=True, ahead_s=NEVER_S)).value == "A"


async def test_uncertain_work_waits_for_its_turn_while_another_worker_is_busy() -> None:
    clock, model = Clock(), Model()
    rules = BatchSettings(max_batch_size=4, max_queue_delay_s=0.0, workers=2)
    model.gate.clear()
    async with batcher_of(model, rules, clock) as batcher, serving(batcher):
        running = await queued(batcher, "a")
        await until(lambda: model.batches == [["a"]])
        (ahead,) = await queued(batcher, "b", ahead_s=0.35)
        clock.now += 0.1
        certain = await queued(batcher, "c")
        await until(lambda: model.batches[1:] == [["c"]])
        model.gate.set()
        await values([*running, *certain])
        clock.now += 0.01  # 16 ms before its turn: it begins, for nobody else is there
        assert (await ahead).value == "B"
    assert model.batches == [["a"], ["c"], ["b"]], "it shares no batch either"


async def test_uncertain_work_gets_its_turn_on_a_busy_model_before_it_is_wanted() -> None:
    model = Model()
    model.gate.clear()
    rules = BatchSettings(max_batch_size=4, max_queue_delay_s=0.0, workers=2)
    async with batcher_of(model, rules) as batcher, serving(batcher):
        running = await queued(batcher, "a")
        await until(lambda: model.batches == [["a"]])
        begun = time.perf_counter()
        ahead = await queued(batcher, "b", ahead_s=0.3)
        await until(lambda: model.batches[1:] == [["b"]])
        assert 0.05 < time.perf_counter() - begun < 5.0, "76 ms, and what a busy machine adds"
        model.gate.set()
        await values([*running, *ahead])


async def test_nobody_waits_for_what_is_not_wanted_yet() -> None:
    clock, model = Clock(), Model()
    model.gate.clear()
    async with batcher_of(model, AT_ONCE, clock) as batcher, serving(batcher):
        running = await queued(batcher, "a")
        await until(model.entered.is_set)
        (ahead,) = await queued(batcher, "b", ahead_s=2.0)
        clock.now += 1.5
        assert batcher.wait_s == 0.0
        clock.now += 1.0
        assert batcher.wait_s == 0.5
        ahead.cancel()
        await asyncio.wait({ahead})
        assert (batcher.depth, batcher.wait_s) == (0, 0.0), "given up, it holds up nobody"
        model.gate.set()
        await values(running)


async def test_what_is_wanted_sooner_than_it_was_said_to_be_has_its_place_among_what_is_wanted_now() -> None:
    clock, model = Clock(), Model()
    rules = BatchSettings(max_batch_size=1, max_queue_delay_s=0.0)
    model.gate.clear()
    async with batcher_of(model, rules, clock) as batcher, serving(batcher):
        running = await queued(batcher, "a")
        await until(model.entered.is_set)
        ahead = await queued(batcher, "xyz", ahead_s=NEVER_S)
        certain = await queued(batcher, "b")
        clock.now += 1.0
        batcher.hasten(lambda item: item == "y")
        certain += await queued(batcher, "c")
        clock.now += 2.0
        assert batcher.wait_s == 3.0
        model.gate.set()
        assert await values([*running, *certain, ahead[1]]) == ["A", "B", "C", "Y"]
        assert model.batches == [["a"], ["b"], ["y"], ["c"]]
        assert batcher.depth == 2
        for task in (ahead[0], ahead[2]):
            task.cancel()
            await asyncio.wait({task})


async def test_a_worker_that_waits_for_a_turn_is_told_that_it_is_now() -> None:
    model = Model()
    model.gate.clear()
    rules = BatchSettings(max_batch_size=4, max_queue_delay_s=0.0, workers=2)
    async with batcher_of(model, rules) as batcher, serving(batcher):
        running = await queued(batcher, "a")
        await until(lambda: model.batches == [["a"]])
        ahead = await queued(batcher, "b", ahead_s=NEVER_S)
        await asyncio.sleep(0.01)  # the other worker has looked at it, and sleeps
        batcher.hasten(lambda item: True)
        await until(lambda: model.batches[1:] == [["b"]])
        model.gate.set()
        assert await values([*running, *ahead]) == ["A", "B"]


class Fate(enum.Enum):
    """What becomes of work that was begun ahead."""

    KEPT = enum.auto()
    HASTENED = enum.auto()
    GIVEN_UP = enum.auto()


AnyWork = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.2, 0.23, 0.25]), st.sampled_from(Fate)),
    min_size=1,
    max_size=25,
)
"""Bucket, time before it is wanted, and fate of items, in the order of their arrival."""


@given(work=AnyWork, size=st.integers(1, 6), workers=st.integers(1, 3), yields=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_whatever_is_wanted_later_or_sooner_or_no_more_the_rest_is_done_once(
    work: list[tuple[int, float, Fate]], size: int, workers: int, yields: int
) -> None:
    batches: list[list[int]] = []

    def model(items: Sequence[int]) -> list[str]:
        batches.append(list(items))
        return [f"result {number}" for number in items]

    async def scenario() -> tuple[list[str | BaseException], int]:
        rules = BatchSettings(max_batch_size=size, max_queue_delay_s=0.0, workers=workers)
        with ThreadPoolExecutor(workers) as executor:
            batcher: Batcher[int, str] = Batcher("asr", model, executor, rules)

            async def submitted(number: int) -> str:
                bucket, ahead_s, _ = work[number]
                return (await batcher.submit(number, bucket, final=True, ahead_s=ahead_s)).value

            running = asyncio.create_task(batcher.run())
            tasks = [asyncio.create_task(submitted(number)) for number in range(len(work))]
            for _ in range(yields):
                await asyncio.sleep(0)
            for number, (_, _, fate) in enumerate(work):
                if fate is Fate.GIVEN_UP:
                    tasks[number].cancel()
                elif fate is Fate.HASTENED:
                    batcher.hasten(number.__eq__)
            async with asyncio.timeout(PATIENCE_S):
                results = await asyncio.gather(*tasks, return_exceptions=True)
            running.cancel()
            await asyncio.wait({running})
            return results, batcher.depth

    results, depth = asyncio.run(scenario())
    run = [number for batch in batches for number in batch]
    assert len(run) == len(set(run)), "each once"
    assert max(map(len, batches), default=0) <= size
    assert all(len({work[number][0] for number in batch}) == 1 for batch in batches)
    assert depth == 0
    for number, (_, _, fate) in enumerate(work):
        if fate is not Fate.GIVEN_UP:
            assert results[number] == f"result {number}"
