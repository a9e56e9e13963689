"""Batching: who shares a batch with whom, who is refused, and who gets which result.

The models here are threads that a test holds back with events, so that nothing depends on how long anything takes.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.batcher import Batcher, BatchSettings, Timed
from daemon.errors import CapacityError, UpstreamError
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


@pytest.mark.parametrize("final", [True, False])
async def test_a_batch_of_one_takes_the_same_path(final: bool) -> None:
    model = Model()
    async with batcher_of(model) as batcher, serving(batcher):
        result = await batcher.submit("a", 0, final=final)
    assert result.value == "A"
    assert result.queue_s >= 0 < result.run_s
    assert model.batches == [["a"]]
    assert (batcher.counts.batches, batcher.counts.items, batcher.counts.largest) == (1, 1, 1)


async def test_what_waits_together_runs_together_up_to_the_largest_batch() -> None:
    model = Model()
    async with batcher_of(model) as batcher:
        tasks = await queued(batcher, "abcdefghij")
        async with serving(batcher):
            assert await values(tasks) == list("ABCDEFGHIJ")
    assert model.batches == [list("abcd"), list("efgh"), list("ij")]
    assert (batcher.counts.batches, batcher.counts.items, batcher.counts.largest) == (3, 10, 4)
    assert batcher.depth == 0


async def test_a_full_batch_waits_for_nobody() -> None:
    model = Model()
    async with batcher_of(model, BatchSettings(max_batch_size=2, max_queue_delay_s=NEVER_S)) as batcher:
        tasks = await queued(batcher, "ab")
        async with serving(batcher):
            assert await values(tasks) == ["A", "B"]


async def test_what_comes_while_the_model_is_busy_is_the_next_batch() -> None:
    model = Model()
    model.gate.clear()
    async with batcher_of(model) as batcher, serving(batcher):
        first = await queued(batcher, "a")
        await until(model.entered.is_set)
        rest = await queued(batcher, "bcd")
        assert model.batches == [["a"]]
        model.gate.set()
        assert await values([*first, *rest]) == list("ABCD")
    assert model.batches == [["a"], ["b", "c", "d"]]


async def test_is_idle_while_nothing_waits_and_nothing_runs() -> None:
    model = Model()
    model.gate.clear()
    async with batcher_of(model) as batcher:
        seen = [batcher.idle]
        tasks = await queued(batcher, ["a"])
        seen.append(batcher.idle)  # it waits
        async with serving(batcher):
            await until(model.entered.is_set)
            assert batcher.depth == 0
            seen.append(batcher.idle)  # it runs
            assert seen == [True, False, False]
            model.gate.set()
            assert await values(tasks) == ["A"]
            await until(lambda: batcher.idle)


async def test_finals_go_before_interims() -> None:
    model = Model()
    async with batcher_of(model) as batcher:
        interims = await queued(batcher, "ab", final=False)
        finals = await queued(batcher, "xy")
        async with serving(batcher):
            await values([*interims, *finals])
    assert model.batches == [["x", "y"], ["a", "b"]]


async def test_a_full_queue_refuses_interims_and_lets_finals_wait() -> None:
    rules = BatchSettings(max_batch_size=16, max_queue_delay_s=0.0, max_queue_size=2)
    model = Model()
    async with batcher_of(model, rules) as batcher:
        waiting = await queued(batcher, "ab", final=False)
        with pytest.raises(CapacityError, match="2 items wait for the asr model"):
            await batcher.submit("c", 0, final=False)
        finals = await queued(batcher, "xyz")
        with pytest.raises(CapacityError, match="5 items wait for the asr model"):
            await batcher.submit("d", 0, final=False)
        async with serving(batcher):
            assert await values([*finals, *waiting]) == ["X", "Y", "Z", "A", "B"]
    assert batcher.counts.refused == 2


async def test_interims_are_refused_while_the_model_is_busy_most_of_the_time_and_finals_never() -> None:
    clock, model = Clock(), Model()

    def slow(items: Sequence[str]) -> Sequence[str]:
        clock.now += 0.7
        return model(items)

    async with batcher_of(slow, AT_ONCE, clock) as batcher, serving(batcher):
        assert (await batcher.submit("a", 0, final=False)).value == "A"
        for _ in range(10):
            clock.now += 0.3  # busy for seven tenths of the time
            assert (await batcher.submit("b", 0, final=True)).value == "B"
        assert batcher.load == pytest.approx(0.7, abs=0.15)
        with pytest.raises(CapacityError, match=r"0 items wait for the asr model, load [56789]\d%"):
            await batcher.submit("c", 0, final=False)
        clock.now += 5.0
        assert (await batcher.submit("d", 0, final=False)).value == "D"
    assert batcher.counts.refused == 1


async def test_tells_how_long_a_batch_has_been_running() -> None:
    clock, model = Clock(), Model()
    model.gate.clear()
    async with batcher_of(model, AT_ONCE, clock) as batcher, serving(batcher):
        assert batcher.running_s == 0.0
        tasks = await queued(batcher, "a")
        await until(model.entered.is_set)
        clock.now += 61.0
        assert batcher.running_s == 61.0
        model.gate.set()
        await values(tasks)
        await until(lambda: batcher.running_s == 0.0)


async def test_tells_how_long_finals_wait_and_forgets_it() -> None:
    clock, model = Clock(), Model()
    model.gate.clear()
    async with batcher_of(model, AT_ONCE, clock) as batcher, serving(batcher):
        first = await queued(batcher, "a")
        await until(model.entered.is_set)
        assert batcher.wait_s == 0.0
        second = await queued(batcher, "b")
        clock.now += 3.0
        assert batcher.wait_s == 3.0, "what waits now counts before it is over"
        model.gate.set()
        await values([*first, *second])
        assert 0.0 < batcher.wait_s < 3.0
        clock.now += 60.0
        assert batcher.wait_s < 1e-3


async def test_an_interim_leaves_a_worker_free() -> None:
    rules = BatchSettings(max_batch_size=1, max_queue_delay_s=0.0, workers=2)
    model = Model()
    model.gate.clear()
    async with batcher_of(model, rules) as batcher, serving(batcher):
        interims = await queued(batcher, "ab", final=False)
        await until(lambda: model.batches == [["a"]])
        finals = await queued(batcher, "x")
        await until(lambda: model.batches == [["a"], ["x"]])
        model.gate.set()
        assert await values([*interims, *finals]) == ["A", "B", "X"]


async def test_an_interim_that_waited_too_long_is_refused() -> None:
    clock, model = Clock(), Model()
    model.gate.clear()
    async with batcher_of(model, AT_ONCE, clock) as batcher, serving(batcher):
        final = await queued(batcher, "x")
        await until(model.entered.is_set)
        (old,) = await queued(batcher, "a", final=False)
        clock.now += 0.4
        (young,) = await queued(batcher, "b", final=False)
        clock.now += 0.2
        model.gate.set()
        assert await values([*final, young]) == ["X", "B"]
        with pytest.raises(CapacityError, match="the asr model has certain work to do"):
            await old
    assert model.batches == [["x"], ["b"]]


async def test_a_failing_item_fails_alone() -> None:
    model = Model(frozenset("c"))
    async with batcher_of(model) as batcher:
        tasks = await queued(batcher, "abcd")
        async with serving(batcher):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert (await batcher.submit("e", 0, final=True)).value == "E"
    assert [end.value for end in ends if isinstance(end, Timed)] == ["A", "B", "D"]
    failure = ends[2]
    assert isinstance(failure, UpstreamError)
    assert str(failure) == "the asr model failed: out of memory"
    assert isinstance(failure.__cause__, RuntimeError)
    assert model.batches == [list("abcd"), ["a"], ["b"], ["c"], ["d"], ["e"]], "each is tried alone, once"


async def test_a_model_that_gives_too_few_results_gives_nobody_anothers() -> None:
    def forgetful(items: Sequence[str]) -> list[str]:
        return [item.upper() for item in items[1:]]

    async with batcher_of(forgetful) as batcher:
        tasks = await queued(batcher, "ab")
        async with serving(batcher):
            for end in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(end, UpstreamError)
                assert "it gave 0 results for 1 items" in str(end)


async def test_an_item_that_was_given_up_while_it_waited_is_not_run() -> None:
    model = Model()
    async with batcher_of(model) as batcher:
        tasks = await queued(batcher, "abc")
        tasks[1].cancel()
        await asyncio.wait({tasks[1]})
        async with serving(batcher):
            assert await values([tasks[0], tasks[2]]) == ["A", "C"]
    assert model.batches == [["a", "c"]]


async def test_an_item_that_was_given_up_while_it_ran_disturbs_nobody() -> None:
    model = Model()
    model.gate.clear()
    async with batcher_of(model) as batcher:
        tasks = await queued(batcher, "abc")
        async with serving(batcher):
            await until(model.entered.is_set)
            tasks[0].cancel()
            await asyncio.wait({tasks[0]})
            model.gate.set()
            assert await values(tasks[1:]) == ["B", "C"]
            assert (await batcher.submit("d", 0, final=True)).value == "D"
    assert tasks[0].cancelled()


async def test_a_failure_of_an_item_that_was_given_up_reaches_nobody() -> None:
    model = Model(frozenset("a"))
    model.gate.clear()
    async with batcher_of(model) as batcher, serving(batcher):
        (task,) = await queued(batcher, "a")
        await until(model.entered.is_set)
        task.cancel()
        await asyncio.wait({task})
        model.gate.set()
        assert (await batcher.submit("b", 0, final=True)).value == "B"


async def test_an_item_of_a_failed_batch_that_was_given_up_is_not_tried_again() -> None:
    model = Model(frozenset("c"))
    model.gate.clear()
    async with batcher_of(model) as batcher:
        tasks = await queued(batcher, "abc")
        async with serving(batcher):
            await until(model.entered.is_set)
            tasks[0].cancel()
            await asyncio.wait({tasks[0]})
            model.gate.set()
            assert await values(tasks[1:2]) == ["B"]
            with pytest.raises(UpstreamError, match="out of memory"):
                await tasks[2]
    assert model.batches == [["a", "b", "c"], ["b"], ["c"]]


async def test_workers_run_batches_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def meeting(items: Sequence[str]) -> Sequence[str]:
        both.wait(PATIENCE_S)
        return items

    rules = BatchSettings(max_batch_size=1, max_queue_delay_s=0.0, workers=2)
    async with batcher_of(meeting, rules) as batcher:
        tasks = await queued(batcher, "ab")
        async with serving(batcher):
            assert await values(tasks) == ["a", "b"]


async def test_who_waits_for_a_batcher_that_stops_is_told() -> None:
    model = Model()
    model.gate.clear()
    async with batcher_of(model) as batcher:
        async with serving(batcher):
            running = await queued(batcher, "a")
            await until(model.entered.is_set)
            waiting = await queued(batcher, "b")
        model.gate.set()
        for task in [*running, *waiting, asyncio.create_task(batcher.submit("c", 0, final=True))]:
            with pytest.raises(UpstreamError, match="the asr model was stopped"):
                await task


Work = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=40)
"""Bucket and finality of items, in the order of their arrival."""


@given(work=Work, size=st.integers(1, 6), workers=st.integers(1, 3), before=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_any_work_is_batched_by_bucket_and_everybody_gets_their_own(
    work: list[tuple[int, bool]], size: int, workers: int, before: float
) -> None:
    """Some items wait before the batcher runs, the others come while it does."""
    batches: list[list[tuple[int, int, bool]]] = []

    def model(items: Sequence[tuple[int, int, bool]]) -> list[str]:
        batches.append(list(items))
        return [f"result {number}" for number, _, _ in items]

    async def scenario() -> list[str]:
        rules = BatchSettings(max_batch_size=size, max_queue_delay_s=0.0, max_queue_size=len(work), workers=workers)
        with ThreadPoolExecutor(workers) as executor:
            batcher: Batcher[tuple[int, int, bool], str] = Batcher("asr", model, executor, rules)

            async def submitted(number: int) -> str:
                bucket, final = work[number]
                return (await batcher.submit((number, bucket, final), bucket, final=final)).value

            early = round(before * len(work))
            tasks = [asyncio.create_task(submitted(number)) for number in range(early)]
            await asyncio.sleep(0)
            running = asyncio.create_task(batcher.run())
            await asyncio.sleep(0)
            tasks += [asyncio.create_task(submitted(number)) for number in range(early, len(work))]
            results = await asyncio.gather(*tasks)
            running.cancel()
            await asyncio.wait({running})
            return results

    assert asyncio.run(scenario()) == [f"result {number}" for number in range(len(work))]
    assert max(map(len, batches)) <= size
    assert all(len({(bucket, final) for _, bucket, final in batch}) == 1 for batch in batches)
    for batch in batches:
        assert batch == sorted(batch), "arrival order"
    assert sorted(item[0] for batch in batches for item in batch) == list(range(len(work))), "each once"
