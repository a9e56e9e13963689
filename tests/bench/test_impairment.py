"""The impaired networks themselves, and how what became of calls is counted."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from bench.entries import Entry
from bench.impairment import (
    IMPAIRMENTS,
    Cast,
    Speaker,
    arguments_of,
    found_of,
    impaired_row,
    lines_of,
    neighbours_row,
    status_of,
    wrong_of,
)
from bench.relay import Relay, relay
from bench.senders import Heard
from bench.whip import Network
from model.labels import CLASSES
from tests.bench.test_entries import WANTED, final

RTP = b"\x80\x60" + b"\x00" * 20
RTCP = b"\x80\xc8" + b"\x00" * 20
EVEN = dict.fromkeys(CLASSES, 0.125)
NOTHING = np.zeros((1, 0), np.float32)
CAST = Cast(
    [Speaker(0, NOTHING, dict.fromkeys(WANTED, EVEN))], [Speaker(1000, NOTHING, dict.fromkeys(WANTED, EVEN))], 10.0
)


def scored(index: int, call: str, shift: float = 0.0) -> Entry:
    return final(index, call) | {f"p_{name}": f"{p + shift:.6f}" for name, p in EVEN.items()}


def over(call: str, reason: str = "client_closed", received_ms: float = 10_000.0) -> Entry:
    totals = {"total_utterances": "3", "total_received_ms": f"{received_ms:g}"}
    return {"type": "call.ended", "call": call, "event_id": f"{call}:end", "reason": reason} | totals


def told(call: str, failed: str = "") -> Heard:
    return Heard(call, failed, times=[(20.0, 30.0)] * 3, ids=[f"{call}:{index}" for index in range(3)])


def test_neighbours_are_right_only_if_every_result_is() -> None:
    right = [*(scored(index, "n", 0.9e-4) for index in range(3)), over("n")]
    row = neighbours_row(right, [told("n")], CAST)
    assert (row["right"], row["wrong"], row["lost"], row["utterances"]) == (True, 0, 0, 3)
    wrong = [scored(0, "n", 1.2e-4), *right[1:]]
    assert [neighbours_row(wrong, [told("n")], CAST)[key] for key in ("right", "wrong")] == [False, 1]
    assert not neighbours_row(right[1:], [told("n")], CAST)["right"], "one is lost"
    failed = told("n")
    failed.failed = "closed early"
    assert not neighbours_row(right, [failed], CAST)["right"]


def test_a_call_that_went_silent_owes_what_had_arrived() -> None:
    found = [scored(0, "half-open-1000"), over("half-open-1000", "idle", 3000.0)]
    row = impaired_row("half-open", found, [Heard("half-open-1000", "the network went silent")], CAST)
    assert (row["utterances"], row["found"], row["wrong"], row["ends"]) == (2, 1, 0, {"idle": 1})
    assert (row["received_s"], row["sent_s"]) == (3.0, 10.0)


def test_probabilities_behind_a_lossy_codec_are_not_compared() -> None:
    found = [*(scored(index, "x", 0.1) for index in range(3)), over("x")]
    assert impaired_row("delay", found, [Heard("x")], CAST)["wrong"] == 3
    assert impaired_row("loss", found, [Heard("x", gaps=2, missing_ms={"lost": 80.0})], CAST)["wrong"] == 0
    assert impaired_row("loss", found, [Heard("x", gaps=2, missing_ms={"lost": 80.0})], CAST)["gaps"] == 2


def test_a_wrong_result_of_any_call_is_the_exit_status() -> None:
    found = [*(scored(index, "n") for index in range(3)), over("n")]
    right = impaired_row("delay", found, [Heard("n")], CAST) | {"neighbours": neighbours_row(found, [told("n")], CAST)}
    assert status_of([right]) == 0
    assert status_of([right, right | {"wrong": 1}]) == 1
    assert status_of([right, right | {"neighbours": right["neighbours"] | {"right": False}}]) == 1


def test_a_call_without_an_end_is_said() -> None:
    assert impaired_row("delay", [], [Heard("x")], CAST)["ends"] == {"no end": 1}


def test_an_utterance_is_found_where_a_result_overlaps_it() -> None:
    beside = final(0, bounds=(0, 900.0, 1500.0))
    assert found_of([beside], WANTED) == 0
    assert found_of([final(0, bounds=(0, 850.0, 1510.0))], WANTED) == 2
    assert found_of([final(0, bounds=(1, 0.0, 9000.0))], WANTED) == 0
    assert wrong_of([beside], CAST.neighbours[0].offline) == 0, "there is nothing to compare it with"


def test_rows_are_said_beside_what_it_was_alone() -> None:
    found = [*(scored(index, "n") for index in range(3)), over("n")]
    row = impaired_row("loss", found, [Heard("n")], CAST) | {"neighbours": neighbours_row(found, [told("n")], CAST)}
    first, second = lines_of(row, 10.0)
    assert "3 of 3 utterances found" in first
    assert second.endswith("= 2.00 of that alone")
    alone = row | {"calls": 0, "impairment": "alone"}
    (line,) = lines_of(alone, 10.0)
    assert line.startswith("alone ")


def test_only_names_impairments() -> None:
    assert arguments_of(["--only", "loss", "delay"]).only == ["loss", "delay"]
    with pytest.raises(SystemExit):
        arguments_of(["--only", "sunshine"])
    assert len(IMPAIRMENTS) == 9


async def test_a_network_that_loses_packets_loses_no_rtcp() -> None:
    sent: list[bytes] = []

    async def send(data: bytes) -> None:
        sent.append(data)

    network = Network(send, 0.25, 0.0, 7)
    for _ in range(1000):
        await network.carry(RTP)
        await network.carry(RTCP)
    assert sent.count(RTCP) == 1000
    assert sent.count(RTP) == 1000 - network.lost
    assert 150 < network.lost < 350


async def test_late_packets_overtake_each_other_and_all_arrive() -> None:
    sent: list[int] = []
    everything = asyncio.Event()

    async def send(data: bytes) -> None:
        sent.append(data[-1])
        if len(sent) == 50:
            everything.set()

    network = Network(send, 0.0, 0.05, 7)
    for number in range(50):
        await network.carry(RTP + bytes([number]))
    await asyncio.wait_for(everything.wait(), 10)
    assert sent != sorted(sent)
    assert sorted(sent) == list(range(50))


@asynccontextmanager
async def echoing() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def connected(network: Relay) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", network.port)


async def test_a_relay_that_delays_changes_nothing() -> None:
    data = random.Random(0).randbytes(200_000)
    async with echoing() as port, relay(port, 0.01, 0.02, seed=3) as network:
        reader, writer = await connected(network)
        begun = asyncio.get_running_loop().time()
        writer.write(data)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(-1), 20) == data
        assert asyncio.get_running_loop().time() - begun >= 0.02, "both directions are far"
        writer.close()


async def test_a_relay_that_goes_silent_stays_open() -> None:
    async with echoing() as port, relay(port) as network:
        reader, writer = await connected(network)
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), 10) == b"hello"
        network.go_silent()
        writer.write(b"are you there?")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        writer.write(b"hello?")
        await writer.drain()
        network.hang_up()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(reader.readexactly(1), 10)
        writer.close()


async def test_a_relay_to_nobody_hangs_up() -> None:
    async with echoing() as port:
        pass
    async with relay(port) as network:
        reader, writer = await connected(network)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 10)
        writer.close()
