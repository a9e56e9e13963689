"""The bundle changes while streams go on: each keeps its own, new ones get the next, and the old one's memory comes back."""

import asyncio
import json
import os
import signal
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect

from daemon.access.keys import digest, new_key
from daemon.audit.writer import AUDIT_KEY
from daemon.config import DEFAULT_BUNDLE
from daemon.engine import EngineSettings
from daemon.errors import CapacityError, ConfigError
from daemon.swap import Bundles, reloaded_by_sighup
from model.bundle import MANIFEST, Bundle, read_bundle, write_manifest
from model.signature import read_private_key, sign, write_keys
from tests.daemon.conftest import ASSETS, Message, Served, linear16_of, serving
from tests.daemon.other_bundle import id_of, write_other
from tests.factories import make_info, make_utterance
from tests.waiting import until

NEVER_S: Final = 3600.0
HELLO: Final = linear16_of(ASSETS / "hello_3s.flac")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles side by side; tests put more there."""
    folder = tmp_path_factory.mktemp("bundles")
    for name in ("first", "second"):
        write_other(folder, name)
    return folder


@asynccontextmanager
async def bundles_of(folder: Path, settings: EngineSettings | None = None) -> AsyncIterator[Bundles]:
    bundles = Bundles(folder, settings or EngineSettings())
    await bundles.start()
    try:
        yield bundles
    finally:
        await bundles.close()


async def heard(connection: ClientConnection, kind: str) -> Message:
    async with asyncio.timeout(60):
        while (message := json.loads(await connection.recv()))["type"] != kind:
            pass
    found: Message = message
    return found


async def says(connection: ClientConnection) -> Message:
    """The result of one more utterance on a stream."""
    await connection.send(HELLO)
    await connection.send(json.dumps({"type": "finalize"}))
    return await heard(connection, "emotion")


async def close(connection: ClientConnection) -> None:
    await connection.send(json.dumps({"type": "close"}))
    await heard(connection, "session.closed")
    await connection.close()


async def ask(served: Served, name: str | None = None, key: str | None = None) -> tuple[int, dict[str, Any]]:
    """Status and body of a request for another bundle."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{served.port}/api/bundle"
    async with httpx2.AsyncClient(timeout=60, headers=headers) as client:
        response = await client.post(url, params={} if name is None else {"name": name})
    body: dict[str, Any] = response.json()
    return response.status_code, body


async def audited(served: Served, kind: str) -> list[dict[str, str]]:
    """Entries of a kind in the audit, once there is one."""
    async with (
        asyncio.timeout(20),
        Redis.from_url(served.daemon.redis_url, protocol=2, decode_responses=True) as client,
    ):
        while True:
            entries: Any = await client.xrange(AUDIT_KEY)
            if found := [fields for _, fields in entries if fields["type"] == kind]:
                return found
            await asyncio.sleep(0.05)


async def test_streams_keep_their_bundle_and_new_ones_get_the_next(shelf: Path, tmp_path: Path) -> None:
    first, second = id_of(shelf / "first"), id_of(shelf / "second")
    async with serving(tmp_path / "spool", bundle=shelf / "first") as served:
        url = f"{served.url}?interim_ms=0&call_id="
        async with connect(f"{url}old") as old:
            assert (await heard(old, "session.created"))["model"] == first
            assert await ask(served, "second") == (200, {"model": second, "before": first, "retiring": 1})
            async with connect(f"{url}new") as new:
                assert (await heard(new, "session.created"))["model"] == second
                assert [(await says(each))["model"] for each in (old, new)] == [first, second]
                assert json.loads((await served.get("/health"))[1])["model"] == second
                streams = {first: 1, second: 1}
                shown = {"model": second, "loading": False, "streams": streams}
                assert json.loads((await served.get("/api/bundle"))[1]) == shown
                metrics = (await served.get("/metrics"))[1]
                assert f'medusa_bundle_streams{{model="{first}"}} 1.0' in metrics

                write_other(shelf, "third")
                status, refusal = await ask(served, "third")
                assert (status, refusal["code"]) == (409, "busy")
                assert f"1 streams still use {first}" in refusal["message"]

                # Back to the one before: it is there already, whoever still uses it.
                bundles = served.daemon.bundles
                assert bundles is not None
                engine = next(engine for engine in bundles.engines if engine.bundle_id == first)
                assert await ask(served) == (200, {"model": first, "before": second, "retiring": 1})
                assert bundles.engine is engine
                assert (await says(new))["model"] == second
                await close(new)
            await until(lambda: bundles.streams() == {first: 1})
            assert (await says(old))["model"] == first
            await close(old)
        assert await ask(served, "third") == (200, {"model": id_of(shelf / "third"), "before": first, "retiring": 0})
        for call, model in (("old", first), ("new", second)):
            assert {event["model"] for event in await served.events(call)} == {model}


async def test_who_may_change_the_bundle_and_to_what(shelf: Path, tmp_path: Path) -> None:
    """Administrators, to one that lies beside it and can meet the alert rules."""
    keys = {"boss": new_key(), "desk": new_key()}
    roles = {"boss": ["admin"], "desk": ["read", "ingest"]}
    access = {"keys": {name: {"sha256": digest(key), "roles": roles[name]} for name, key in keys.items()}}
    rule = {"name": "upset", "emotions": ["angry"], "above": 0.5, "utterances": 1}
    write_other(shelf, "calm")
    manifest = read_bundle(shelf / "calm").manifest
    calm = replace(manifest.ensemble, trained_classes=("neutral",))
    write_manifest(shelf / "calm", replace(manifest, name="calm", ensemble=calm))
    flags = {"bundle": shelf / "first", "access": access, "alerts": {"rules": [rule]}, "policy": {"audit": True}}
    async with serving(tmp_path / "spool", **flags) as served:
        assert (await ask(served, "second"))[0] == 401
        assert (await ask(served, "second", keys["desk"]))[0] == 403
        status, refusal = await ask(served, "../second", keys["boss"])
        assert (status, refusal["code"]) == (422, "bad_bundle")
        assert "is no name of a bundle" in refusal["message"]
        status, refusal = await ask(served, "calm", keys["boss"])
        assert (status, refusal["code"]) == (422, "bad_bundle")
        assert "the alert rule 'upset' waits for angry, of which this bundle knows none" in refusal["message"]
        model = id_of(shelf / "first")
        assert json.loads((await served.get("/health"))[1])["model"] == model
        assert await ask(served, key=keys["boss"]) == (200, {"model": model, "before": model, "retiring": 0})
        assert (await ask(served, "second", keys["boss"]))[0] == 200
        changes = await audited(served, "bundle.changed")
        assert [(one["who"], one["before"], one["model"]) for one in changes] == [
            ("boss", model, id_of(shelf / "second"))
        ]


async def test_what_cannot_be_loaded_is_refused_whatever_it_raises(shelf: Path) -> None:
    """A GPU without room for a second bundle, for instance: CTranslate2 says RuntimeError."""
    full = False

    def check(bundle: Bundle) -> None:
        if full:
            raise RuntimeError("CUDA failed with error out of memory")

    bundles = Bundles(shelf / "first", EngineSettings(), check)
    await bundles.start()
    try:
        full = True
        with pytest.raises(ConfigError, match="cannot be loaded: RuntimeError: CUDA failed"):
            await bundles.swap("second")
        assert (bundles.swaps, bundles.loading) == ({"done": 0, "refused": 1}, False)
        assert bundles.engine.bundle_id == id_of(shelf / "first")
    finally:
        await bundles.close()


async def test_what_is_refused_changes_nothing(shelf: Path, tmp_path: Path) -> None:
    write_keys(tmp_path / "key")
    key = read_private_key(tmp_path / "key")
    for name in ("good", "damaged", "unsigned", "other_format", "other_graph"):
        write_other(tmp_path, name)
    (tmp_path / "other_graph" / "ensemble.onnx").write_bytes(b"no graph")
    write_manifest(tmp_path / "other_graph", read_bundle(DEFAULT_BUNDLE).manifest)
    manifest = tmp_path / "other_format" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"format_version": 2', '"format_version": 1'))
    for name in ("good", "damaged", "other_graph"):
        sign(tmp_path / name, key)
    with (tmp_path / "damaged" / "ensemble.onnx").open("r+b") as graph:
        graph.write(b"#")
    refused = {
        "damaged": "is damaged",
        "unsigned": "trusted",
        "other_format": "trusted",
        "other_graph": "ensemble.onnx",
        "nowhere": "No such file",
        "../good": "is no name of a bundle",
        "..": "is no name of a bundle",
        "": "is no name of a bundle",
    }
    settings = EngineSettings(trusted_keys=(str(tmp_path / "key.pub"),))
    async with bundles_of(tmp_path / "good", settings) as bundles:
        engine, streams = bundles.engine, bundles.streams()
        for name, reason in refused.items():
            with pytest.raises(ConfigError, match=reason):
                await bundles.swap(name)
            assert (bundles.engine, bundles.streams(), bundles.loading) == (engine, streams, False), name
        assert bundles.swaps == {"done": 0, "refused": len(refused) - 3}
        bundles = Bundles(tmp_path / "other_format", EngineSettings())
        with pytest.raises(ConfigError, match="format version 1, this program reads 2"):
            await bundles.start()


async def test_one_change_at_a_time_and_models_that_nobody_uses_are_freed(shelf: Path) -> None:
    async with bundles_of(shelf / "first") as bundles:
        first = weakref.ref(bundles.engine.models.emotion)
        over = asyncio.Event()
        stream = asyncio.create_task(_until(over))
        bundles.hold(bundles.engine.bundle_id, stream)
        changing = asyncio.create_task(bundles.swap("second"))
        await until(lambda: bundles.loading)
        with pytest.raises(CapacityError, match="another bundle is being loaded"):
            await bundles.swap()
        assert (await changing).model == bundles.engine.bundle_id == id_of(shelf / "second")
        assert first() is not None
        assert bundles.streams() == {id_of(shelf / "first"): 1, id_of(shelf / "second"): 0}
        over.set()
        await until(lambda: first() is None)
        assert bundles.streams() == {id_of(shelf / "second"): 0}


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def test_sighup_follows_the_link_of_the_configuration(shelf: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(shelf / "first")
    async with bundles_of(link) as bundles:
        with reloaded_by_sighup(bundles):
            (tmp_path / "next").symlink_to(shelf / "second")
            (tmp_path / "next").replace(link)
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: bundles.engine.bundle_id == id_of(shelf / "second"))
            link.unlink()
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: bundles.swaps["refused"] == 1)
        assert bundles.engine.bundle_id == id_of(shelf / "second")


async def test_a_gateway_outlives_sighup(caplog: pytest.LogCaptureFixture) -> None:
    with reloaded_by_sighup(None):
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "a gateway has no models to load" in caplog.text)


async def test_the_engine_of_a_stream_is_told_what_is_certain(shelf: Path) -> None:
    """Else what is scored ahead waits for the end of a pause that is over."""
    async with bundles_of(shelf / "first") as bundles:
        (engine,) = bundles.engines
        info, utterance = replace(make_info(), model=engine.bundle_id), make_utterance()
        with engine._wanted(info, utterance, NEVER_S) as wanted:
            bundles.accept(replace(info, model="retired"), utterance)
            assert wanted.ahead_s > 0
            bundles.accept(info, utterance)
            assert wanted.ahead_s == 0
