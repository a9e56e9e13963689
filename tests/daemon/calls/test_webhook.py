"""Alerts to a real HTTP server that answers as a test says."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from daemon.calls.webhook import SIGNATURE, WebhookSettings, check_url, running_webhook, signature, webhook_body
from daemon.messages import AlertEvent
from tests.factories import CREATED_MS, make_info, make_utterance
from tests.waiting import until

ALERT = AlertEvent(make_info(), make_utterance(3), "upset", ("angry",), 0.5, 0.75, 0, 1234.5, 2, CREATED_MS)
SECRET = "a secret"


@dataclass
class Receiver:
    """A server that gives the answers of a script, then 204; "drop" closes the connection, "hang" says nothing."""

    script: list[int | str]
    port: int = 0
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    location: str = "/elsewhere"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().strip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append((first, headers, body))
                answer = self.script.pop(0) if self.script else 204
                if answer == "hang":
                    await asyncio.sleep(30)
                if answer == "drop":
                    return
                writer.write(f"HTTP/1.1 {answer} so\r\nLocation: {self.location}\r\nContent-Length: 0\r\n\r\n".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def receiving(script: Sequence[int | str] = ()) -> AsyncIterator[tuple[Receiver, WebhookSettings]]:
    receiver = Receiver(list(script))
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{receiver.port}/hook?token=hidden"
    try:
        yield (
            receiver,
            WebhookSettings(url, SECRET, timeout_s=2.0, attempts=4, first_pause_s=0.01, longest_pause_s=0.02),
        )
    finally:
        server.close()


async def test_an_alert_arrives_signed() -> None:
    outcomes: list[str] = []
    async with receiving() as (receiver, settings), running_webhook(settings, outcomes.append) as offer:
        offer(ALERT)
        await until(lambda: bool(outcomes))
    ((first, headers, body),) = receiver.requests
    assert first == "POST /hook?token=hidden HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert headers[SIGNATURE.lower()] == signature(body, SECRET)
    said = json.loads(body)
    assert (said["event_id"], said["rule"], said["role"]) == (ALERT.event_id, "upset", "customer")
    assert (said["call"], said["score"], said["ts"]) == ("call-1", 0.75, CREATED_MS)
    assert "text" not in said
    assert outcomes == ["delivered"]


def test_the_signature_is_that_of_hmac_sha256() -> None:
    """RFC 4231, test case 2."""
    wanted = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert signature(b"what do ya want for nothing?", "Jefe") == f"sha256={wanted}"


async def test_without_a_secret_nothing_is_signed() -> None:
    outcomes: list[str] = []
    async with receiving() as (receiver, settings):
        async with running_webhook(replace(settings, secret=None), outcomes.append) as offer:
            offer(ALERT)
            await until(lambda: bool(outcomes))
        assert SIGNATURE.lower() not in receiver.requests[0][1]


@pytest.mark.parametrize(
    ("script", "outcomes"),
    [
        ([500, "drop", 429], ["retried", "retried", "retried", "delivered"]),
        ([503] * 4, ["retried", "retried", "retried", "failed"]),
        ([400], ["failed"]),
        ([404], ["failed"]),
        ([302], ["failed"]),
    ],
    ids=["heals", "never heals", "refused", "nobody there", "redirected"],
)
async def test_what_may_heal_is_tried_again(script: list[int | str], outcomes: list[str]) -> None:
    found: list[str] = []
    async with receiving(script) as (receiver, settings), running_webhook(settings, found.append) as offer:
        offer(ALERT)
        await until(lambda: found[-1:] in (["delivered"], ["failed"]))
    assert found == outcomes
    bodies = [body for _, _, body in receiver.requests]
    assert bodies == [webhook_body(ALERT)] * len(receiver.requests), "the same each time"
    assert all(first.startswith("POST /hook") for first, _, _ in receiver.requests)


async def test_a_server_that_says_nothing_is_given_up_and_the_next_alert_goes_out() -> None:
    found: list[str] = []
    async with receiving(["hang"]) as (receiver, settings):
        quick = replace(settings, timeout_s=0.1, attempts=1)
        async with running_webhook(quick, found.append) as offer:
            offer(ALERT)
            offer(replace(ALERT, rule="another"))
            await until(lambda: len(found) == 2)
    assert found == ["failed", "delivered"]
    assert json.loads(receiver.requests[1][2])["rule"] == "another"


async def test_offering_never_waits_and_the_oldest_goes_first() -> None:
    found: list[str] = []
    async with receiving(["hang"]) as (receiver, settings):
        async with running_webhook(replace(settings, queue=2, timeout_s=0.3, attempts=1), found.append) as offer:
            offer(ALERT)
            await until(lambda: len(receiver.requests) == 1)
            for n in range(5):
                offer(replace(ALERT, rule=f"rule {n}"))
            assert found == ["dropped"] * 3
            await until(lambda: len(found) == 6)
    assert [json.loads(body)["rule"] for _, _, body in receiver.requests] == ["upset", "rule 3", "rule 4"]


async def test_what_waits_at_the_end_is_still_delivered() -> None:
    found: list[str] = []
    async with receiving() as (receiver, settings):
        async with running_webhook(settings, found.append) as offer:
            for _ in range(3):
                offer(ALERT)
        assert found == ["delivered"] * 3


async def test_logs_tell_neither_the_url_nor_what_it_was_about(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    found: list[str] = []
    async with receiving(["drop", 400]) as (_, settings), running_webhook(settings, found.append) as offer:
        offer(ALERT)
        await until(lambda: found[-1:] == ["failed"])
    text = "\n".join(record.getMessage() for record in caplog.records if record.name != "asyncio")
    assert "session-1 was not delivered: the server answered 400" in text
    for secret in ("hidden", SECRET, "angry", "upset", "hook"):
        assert secret not in text


@pytest.mark.parametrize(
    "url", ["ftp://host/?token", "host/token", "http://", "https:///x", "javascript:alert(1)", "http://[", ""]
)
def test_what_is_no_url_for_alerts(url: str) -> None:
    with pytest.raises(ValueError, match="https://host/path") as caught:
        check_url(url)
    assert "token" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://host", "https://user:word@host:8443/a?b=c"])
def test_what_is_one(url: str) -> None:
    check_url(url)
