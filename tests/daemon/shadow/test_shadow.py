"""A second bundle beside the first: what it says is told to the operator alone, and it is in nobody's way."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.batcher import BatchSettings
from daemon.config import DEFAULT_BUNDLE, load_config
from daemon.embedded import EmbeddedRedis
from daemon.emotion import EmotionItem, Scored
from daemon.engine import Engine, EngineSettings, Models, load_models, running_engine
from daemon.errors import ConfigError
from daemon.events import read_events
from daemon.messages import CallEvent, EmotionEvent, Totals, Utterance
from daemon.metrics import Metrics
from daemon.shadow.assembled import forgetting
from daemon.shadow.comparing import Shadow, running_shadow, same_ears
from daemon.shadow.entry import SHADOW_KEY, Compared, js_distance, shadow_fields
from model.adaptation import NO_HISTORY
from model.bundle import read_bundle
from model.labels import CLASSES
from model.posteriors import Posteriors
from model.recording import read_mono
from tests.daemon.conftest import ASSETS, finals, linear16_of, pieces, serving
from tests.daemon.other_bundle import id_of, write_cheerful, write_other
from tests.factories import CREATED_MS, make_emotion_event, make_info, make_scores, make_utterance
from tests.waiting import until

EVENTS: Final = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
SETTINGS: Final = EngineSettings(batch=BatchSettings(workers=1))
INFO: Final = make_info()


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models(DEFAULT_BUNDLE, SETTINGS)


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis.start() as running:
        yield running


async def entries(url: str) -> list[dict[str, str]]:
    async with Redis.from_url(url, decode_responses=True, protocol=2) as client:
        found: Any = await client.xrange(SHADOW_KEY)
        return [fields for _, fields in found]


async def first_entries(url: str, count: int) -> list[dict[str, str]]:
    """The first entries, waiting for them."""
    found: list[dict[str, str]] = []
    async with asyncio.timeout(30), aclosing(read_events(url, key=SHADOW_KEY, start="0")) as coming:
        async for _, fields in coming:
            found.append(fields)
            if len(found) == count:
                break
    return found


def samples(page: bytes | str) -> dict[str, float]:
    """Values of the shadow's metrics by name and label."""
    text = page.decode() if isinstance(page, bytes) else page
    found = [each for family in text_string_to_metric_families(text) for each in family.samples]
    return {
        f"{each.name}{''.join(each.labels.values())}".removeprefix("medusa_shadow_"): each.value
        for each in found
        if each.name.startswith("medusa_shadow_")
    }


async def test_clients_get_the_first_bundle_and_the_operator_both(tmp_path: Path) -> None:
    shadow = write_cheerful(tmp_path, "cheerful")
    async with serving(tmp_path / "spool", models={"shadow": tmp_path / "cheerful"}) as served:
        messages = await served.stream(pieces(linear16_of(ASSETS / "two_sentences.flac")), call_id="two", interim_ms=0)
        assert not any("shadow" in str(message) for message in messages)
        got = finals(messages)
        assert {message["model"] for message in got} == {id_of(DEFAULT_BUNDLE)}
        url = served.daemon.redis_url
        compared = await first_entries(url, len(got))
        assert [fields["event_id"] for fields in compared] == [message["event_id"] for message in got]
        for fields, message in zip(compared, got, strict=True):
            assert (fields["model"], fields["shadow_model"]) == (message["model"], shadow)
            assert (fields["top"], fields["complete"], fields["call"]) == (message["top"], "1", "two")
            assert {name: float(fields[f"p_{name}"]) for name in CLASSES} == message["probabilities"]
            others = [float(fields[f"shadow_p_{name}"]) for name in CLASSES]
            assert sum(others) == pytest.approx(1.0, abs=1e-5)
            assert fields["shadow_top"] == "happy" != fields["top"]
            assert others[CLASSES.index("happy")] > 0.99
            apart = js_distance(made(list(message["probabilities"].values())), made(others))
            assert float(fields["js_distance"]) == pytest.approx(apart, abs=1e-3)
        counted = samples((await served.get("/metrics"))[1])
        assert counted["scored_total"] == counted["js_distance_count"] == counted["disagreed_total"] == 2
        assert counted["lost_totalfull"] == counted["lost_totalfailed"] == counted["waiting"] == 0
        assert all(event["type"] != "shadow" for event in await served.events("two"))

        async with httpx2.AsyncClient() as client:
            deleted = await client.delete(f"http://127.0.0.1:{served.port}/api/calls/two")
        assert deleted.status_code == 200
        assert await entries(url) == []


@asynccontextmanager
async def shadowing(
    models: Models, url: str, room: Callable[[], bool] = lambda: True
) -> AsyncIterator[tuple[Shadow, Metrics, Engine]]:
    metrics = Metrics()
    async with running_engine(models, SETTINGS) as engine:
        shadow = Shadow(engine, room, url, metrics, maxlen=1000)
        async with running_shadow(shadow, url, retain_s=None):
            yield shadow, metrics, engine


async def test_it_hears_a_channel_as_the_first_does_and_whisper_only_once(
    models: Models, server: EmbeddedRedis, tmp_path: Path
) -> None:
    """The same models under another id say the same, although each result depends on those before."""
    write_other(tmp_path, "twin")
    twin = replace(models, bundle=read_bundle(tmp_path / "twin"))
    assert same_ears(models.bundle, twin.bundle)
    speech = read_mono(ASSETS / "two_sentences.flac")
    half = len(speech) // 2
    async with shadowing(twin, server.url) as (shadow, metrics, engine), running_engine(models, SETTINGS) as first:
        first.listener = shadow.hears
        history = NO_HISTORY
        for index, audio in enumerate((speech[:half], speech[half:], speech[:half])):
            utterance = Utterance(0, index, 0, len(audio), audio, interim=0, decided=len(audio))
            scores = await first.score(INFO, utterance, history)
            history = scores.history
            shadow.observe(EmotionEvent(INFO, utterance, scores, CREATED_MS))
        await until(lambda: samples(metrics.page())["scored_total"] == 3)
        assert engine.asr.counts.items == 0
        assert engine.emotion.counts.items == 3
    found = await entries(server.url)
    assert [fields["complete"] for fields in found] == ["1", "1", "1"]
    assert all(float(fields["js_distance"]) < 1e-3 for fields in found)
    assert scores.adaptation > 0


class Deaf:
    """An ensemble that fails on utterances that a test names by length."""

    def __init__(self, inner: Any, failing: int) -> None:
        self._inner, self._failing = inner, failing

    def __call__(self, items: Sequence[EmotionItem]) -> list[Scored]:
        if any(len(item.audio) == self._failing for item in items):
            raise RuntimeError("out of memory")
        scored: list[Scored] = self._inner(items)
        return scored


def said(index: int, length: int = 16_000) -> EmotionEvent:
    audio = np.zeros(length, np.float32)
    utterance = replace(make_utterance(index), audio=audio, start=0, end=length)
    return EmotionEvent(INFO, utterance, make_scores(), CREATED_MS)


async def test_what_there_is_no_room_for_is_left_out_and_counted(models: Models, server: EmbeddedRedis) -> None:
    busy = asyncio.Event()
    busy.set()
    async with shadowing(models, server.url, lambda: not busy.is_set()) as (shadow, metrics, engine):
        for index in range(20):
            shadow.observe(said(index))
        shadow.observe(make_emotion_event(20, interim=1))
        await asyncio.sleep(0.05)
        counted = samples(metrics.page())
        assert (counted["waiting"], counted["lost_totalfull"], counted["scored_total"]) == (16, 4, 0)
        assert engine.asr.idle
        busy.clear()
        await until(lambda: samples(metrics.page())["scored_total"] == 16)
        shadow.observe(said(20))
        await until(lambda: samples(metrics.page())["scored_total"] == 17)
        assert [fields["complete"] for fields in await entries(server.url)] == [*["1"] * 16, "0"]

        busy.set()
        shadow.observe(said(21))
        await shadow.forget(INFO.call)
        assert samples(metrics.page())["waiting"] == 0
        assert await entries(server.url) == []


@pytest.mark.parametrize(("status", "left"), [(200, 0), (404, 0), (409, 1), (400, 1), (503, 1)])
async def test_only_what_is_deleted_is_forgotten(models: Models, server: EmbeddedRedis, status: int, left: int) -> None:
    """A call that still lasts is refused, and keeps what the shadow said of it."""

    async def answer(_: Request) -> Response:
        return Response(status_code=status)

    async with shadowing(models, server.url) as (shadow, _, _):
        shadow.observe(said(0))
        await first_entries(server.url, 1)
        (route,) = forgetting([Route("/calls/{call}", answer, methods=["DELETE"])], shadow)
        transport = httpx2.ASGITransport(app=Starlette(routes=[route]))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.delete(f"/calls/{INFO.call}")).status_code == status
        assert len(await entries(server.url)) == left


@pytest.fixture
def polite_threads() -> Iterator[None]:
    """A test that looks at every tick hardly lets the models' threads run."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("polite_threads")
async def test_it_ends_where_redis_says_nothing(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it is told to: redis-py swallows a cancellation that meets it while it connects."""
    monkeypatch.setattr("daemon.shadow.comparing._REPLY_S", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
        url = f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
        for ticks in range(3, 10):
            async with asyncio.timeout(20), shadowing(models, url) as (shadow, metrics, _):
                shadow.observe(said(0))
                while not samples(metrics.page())["scored_total"]:  # noqa: ASYNC110  # to the very tick
                    await asyncio.sleep(0)
                for _ in range(ticks):
                    await asyncio.sleep(0)


async def test_its_failures_are_its_own(models: Models, server: EmbeddedRedis) -> None:
    """And what follows on that channel is said to lack something, until the stream is over."""
    failing = replace(models, emotion=Deaf(models.emotion, failing=8_000))  # type: ignore[arg-type]  # a model all the same
    async with shadowing(failing, server.url) as (shadow, metrics, _):
        for index, length in enumerate((16_000, 8_000, 16_000)):
            shadow.observe(said(index, length))
        shadow.observe(CallEvent("call.ended", INFO, Totals(), "client_closed", CREATED_MS))
        shadow.observe(said(0))
        await until(lambda: samples(metrics.page())["scored_total"] == 3)
        counted = samples(metrics.page())
        assert (counted["lost_totalfailed"], counted["lost_totalfull"]) == (1, 0)
        found = await entries(server.url)
    assert [(fields["utterance"], fields["complete"]) for fields in found] == [("0", "1"), ("2", "0"), ("0", "1")]


async def test_a_redis_that_is_away_costs_comparisons_alone(models: Models) -> None:
    async with shadowing(models, "redis://127.0.0.1:1/0") as (shadow, metrics, _):
        shadow.observe(said(0))
        await until(lambda: samples(metrics.page())["lost_totalunpublished"] == 1)
        assert samples(metrics.page())["scored_total"] == 1


posteriors = st.lists(st.floats(0, 1), min_size=8, max_size=8).filter(lambda p: sum(p) > 1e-3)


def made(p: list[float]) -> Posteriors:
    return Posteriors(tuple(value / sum(p) for value in p), (None, None, None), 0.0, abstained=False)


@given(posteriors, posteriors, posteriors)
def test_the_distance_is_one(p: list[float], q: list[float], r: list[float]) -> None:
    one, other, third = made(p), made(q), made(r)
    assert js_distance(one, one) == pytest.approx(0.0, abs=1e-6)
    assert js_distance(one, other) == pytest.approx(js_distance(other, one), abs=1e-9)
    assert 0.0 <= js_distance(one, other) <= 1.0
    assert js_distance(one, third) <= js_distance(one, other) + js_distance(other, third) + 1e-6


def test_opposites_are_as_far_apart_as_can_be() -> None:
    angry, sad = (made([float(index == at) for index in range(8)]) for at in (0, 1))
    assert js_distance(angry, sad) == pytest.approx(1.0, abs=1e-6)
    assert js_distance(angry, made([1.0] * 8)) == pytest.approx(0.8467, abs=1e-3)


def test_the_page_names_every_field() -> None:
    compared = Compared(make_emotion_event(), "other-1", made([1.0] * 8), complete=True)
    section = EVENTS.split("\n## Shadow mode")[1].split("\n## ")[0]
    described = {
        name
        for line in section.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert set(shadow_fields(compared, 1)) == described
    assert f"`{SHADOW_KEY}`" in section


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_half_a_daemon_shadows_nothing(role: str) -> None:
    flags = {"role": role, "redis": "redis://127.0.0.1:6379/0", "models": {"shadow": "second"}}
    with pytest.raises(ConfigError, match=f"a {role} has not both"):
        load_config(None, flags)
