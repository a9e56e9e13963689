"""What `serve --role` refuses, and how a gateway begins."""

import asyncio
import re
from pathlib import Path

import pytest

from daemon.config import DEFAULT_BUNDLE, load_config
from daemon.embedded import EmbeddedRedis
from daemon.errors import ConfigError
from daemon.fleet import serving
from daemon.fleet.keys import FleetKeys
from daemon.fleet.settings import FleetSettings
from daemon.metrics import Metrics
from model.bundle import read_bundle
from tests.daemon.fleet.running import workers_at
from tests.ports import free_port
from tests.waiting import until


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_a_fleet_needs_a_redis_that_all_reach(role: str) -> None:
    with pytest.raises(ConfigError, match="role: gateways and workers meet in a Redis server that all of them reach"):
        load_config(None, {"role": role})
    assert load_config(None, {"role": role, "redis": "redis://redis:6379/0"}).role == role
    assert load_config(None, {}).role == "all"


def test_another_role_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="role: Input should be 'all', 'gateway' or 'worker'"):
        load_config(None, {"role": "both"})


def test_the_settings_are_those_of_the_configuration() -> None:
    assert load_config(None, {}).fleet_settings() == FleetSettings()
    changed = load_config(None, {"fleet": {"capacity": 3, "visibility_s": 2.5}}).fleet_settings()
    assert (changed.capacity, changed.visibility_s) == (3, 2.5)


async def test_a_gateway_that_no_worker_ever_served_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_CARD_WAIT_S", 0.5)
    async with EmbeddedRedis.start() as server:
        config = load_config(None, {"role": "gateway", "redis": server.url})
        with pytest.raises(ConfigError, match=f"no worker ever had the bundle {read_bundle(DEFAULT_BUNDLE).id}"):
            async with serving.running_gateway(config, Metrics()):
                pass
    nobody = load_config(None, {"role": "gateway", "redis": f"redis://user:secret@127.0.0.1:{free_port()}/0"})
    with pytest.raises(ConfigError, match="Redis cannot be used: ConnectionError") as refused:
        async with serving.running_gateway(nobody, Metrics()):
            pass
    assert "secret" not in str(refused.value)


async def test_a_gateway_begins_with_its_first_worker_and_outlives_it() -> None:
    """It knows the languages from then on, and is not ready while nobody is there."""
    bundle = read_bundle(DEFAULT_BUNDLE).id
    metrics = Metrics()
    async with EmbeddedRedis.start() as server:
        config = load_config(None, {"role": "gateway", "redis": server.url, "fleet": {"visibility_s": 1}})
        gateway = serving.running_gateway(config, metrics)
        entering = asyncio.create_task(gateway.__aenter__())
        await asyncio.sleep(0.3)
        assert not entering.done()
        async with workers_at(server.url, bundle=bundle) as workers:
            await workers.start("a")
            scoring = await entering
            assert (scoring.languages, scoring.bundle.id) == (("en",), bundle)
            await until(lambda: scoring.problem() is None)
            page = metrics.page().decode()
            assert "\nmedusa_work_workers 1.0\n" in page
            assert "\nmedusa_work_waiting 0.0\n" in page
            await workers.stop("a")
        await until(lambda: f"no worker with the bundle {bundle} is there" in (scoring.problem() or ""))
        await gateway.__aexit__(None, None, None)


def test_the_page_names_every_metric_and_key() -> None:
    page = (Path(serving.__file__).parents[2] / "docs" / "scale-out.md").read_text(encoding="utf-8")
    source = Path(serving.__file__).read_text(encoding="utf-8")
    kept = re.findall(r'metrics\.(watch|count)\("(medusa_\w+)"', source)
    names = {name if kind == "watch" else f"{name}_total" for kind, name in kept}
    assert len(names) >= 15
    assert [name for name in names if f"`{name}`" not in page] == []
    assert f"`{FleetKeys('BUNDLE').work}`" in page
    settings = FleetSettings()
    assert f"`fleet.visibility_s` ({settings.visibility_s:g} s)" in page
    assert f"`fleet.attempts` ({settings.attempts})" in page
    assert f"heard of for {settings.alive_s:g} s" in page
    assert f"at most {settings.interim_s:g} s" in page
