"""Alerts to somebody's HTTP server: one after the other, signed, tried again where that can help, and never in anybody's way.

A receiver answers 2xx. It may get an alert twice, where its answer was lost: `event_id` is the same then. It knows that
an alert is ours by its signature: `X-Medusa-Signature: sha256=<hex>`, HMAC-SHA256 of the body under the shared secret.
"""

import asyncio
import hmac
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal
from urllib.parse import urlsplit

import httpx2

from daemon.calls.beside import beside
from daemon.channel import Channel, Closed, Overflow
from daemon.messages import AlertEvent
from daemon.wire import WIRE_VERSION, alert_message

_log = logging.getLogger(__name__)

Outcome = Literal["delivered", "retried", "failed", "dropped"]

SIGNATURE: Final = "X-Medusa-Signature"
_AGAIN: Final = frozenset({408, 425, 429})
"""Answers of a client's mistake that time heals; every 5xx is another."""
_SERVER_ERROR: Final = 500
_LAST_S: Final = 5.0
"""How long a shutdown waits for alerts that are on their way."""


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Where alerts go.

    Attributes:
        url: http or https.
        secret: for the signature; None for none.
        timeout_s: of one attempt, altogether.
        attempts: before an alert is given up.
        queue: alerts that wait; the oldest goes first.
        first_pause_s: after the first failure; it doubles with every further one.
        longest_pause_s: between two attempts.
    """

    url: str
    secret: str | None = None
    timeout_s: float = 5.0
    attempts: int = 6
    queue: int = 256
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0


class Webhook:
    """Delivers alerts while `run` runs.

    Args:
        settings: where to, and how patiently.
        count: told of every outcome.
    """

    def __init__(self, settings: WebhookSettings, count: Callable[[Outcome], None]) -> None:
        self._settings = settings
        self._count = count
        self._busy = 0
        self._waiting: Channel[AlertEvent] = Channel(settings.queue, Overflow.DROP_OLDEST)

    @property
    def waiting(self) -> int:
        """Alerts that were neither delivered nor given up."""
        return len(self._waiting) + self._busy

    def offer(self, alert: AlertEvent) -> None:
        """Takes an alert; never blocks."""
        dropped = self._waiting.dropped
        self._waiting.offer(alert)
        if self._waiting.dropped > dropped:
            self._count("dropped")
            _log.error("the alert webhook is too slow: %d alerts wait, the oldest was dropped", self._settings.queue)

    async def run(self) -> None:
        """Delivers until `close`, then what still waits."""
        # It would log every URL, and some services put their secret into it.
        logging.getLogger(httpx2.__name__).setLevel(logging.WARNING)
        # Not through a proxy that the environment names: it would read what the operator sends to one host alone.
        async with httpx2.AsyncClient(
            timeout=self._settings.timeout_s, follow_redirects=False, trust_env=False
        ) as client:
            while True:
                try:
                    alert = await self._waiting.get()
                except Closed:
                    return
                self._busy = 1
                await self._deliver(client, alert)
                self._busy = 0

    async def close(self) -> None:
        """No more alerts."""
        await self._waiting.close()

    async def _deliver(self, client: httpx2.AsyncClient, alert: AlertEvent) -> None:
        settings = self._settings
        body = webhook_body(alert)
        headers = {"Content-Type": "application/json"}
        if settings.secret is not None:
            headers[SIGNATURE] = signature(body, settings.secret)
        problem = ""
        for attempt in range(1, settings.attempts + 1):
            problem, hopeless = await self._attempt(client, body, headers)
            if not problem:
                self._count("delivered")
                return
            if hopeless:
                break
            if attempt < settings.attempts:
                self._count("retried")
                await asyncio.sleep(self._pause_s(attempt))
        self._count("failed")
        _log.error("an alert of session %s was not delivered: %s", alert.info.session, problem)

    async def _attempt(self, client: httpx2.AsyncClient, body: bytes, headers: dict[str, str]) -> tuple[str, bool]:
        """What went wrong, "" for nothing, and whether it will again."""
        try:
            async with (
                asyncio.timeout(self._settings.timeout_s),
                client.stream("POST", self._settings.url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code  # the body is not read: it may be endless, and says nothing to us
        except (httpx2.HTTPError, httpx2.StreamError, TimeoutError, OSError) as error:
            return type(error).__name__, False  # its message may quote the URL, which may hold a secret
        if answer.is_success:
            return "", False
        return f"the server answered {status}", status < _SERVER_ERROR and status not in _AGAIN

    def _pause_s(self, failures: int) -> float:
        """Doubles; up to half of it is left to chance, so that many daemons spread out."""
        pause = min(self._settings.longest_pause_s, self._settings.first_pause_s * 2.0 ** (failures - 1))
        return pause * random.uniform(0.5, 1.0)


@asynccontextmanager
async def running_webhook(
    settings: WebhookSettings | None, count: Callable[[Outcome], None]
) -> AsyncIterator[Callable[[AlertEvent], None]]:
    """Gives what takes alerts; at the end, those that wait have `_LAST_S` to be delivered."""
    if settings is None:
        yield lambda alert: None
        return
    webhook = Webhook(settings, count)
    async with beside(webhook.run(), "alert webhook") as running:
        yield webhook.offer
        await webhook.close()
        await asyncio.wait({running}, timeout=_LAST_S)
        for _ in range(webhook.waiting):
            count("dropped")


def check_url(url: str) -> None:
    """Looks whether alerts can be sent to a URL.

    Raises:
        ValueError: if they cannot; the URL itself is not told, it may hold a secret.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):  # a port that is no number, a bracket that is not closed
        known = False
    if not known:
        raise ValueError(
            "no URL to send alerts to: it is http:// or https:// and a host, like https://host/path"
        ) from None


def webhook_body(alert: AlertEvent) -> bytes:
    """The JSON object that is sent: the `alert` message with the call that it is about. No words of anybody."""
    about = {"v": WIRE_VERSION, "call": alert.info.call, "session": alert.info.session, "model": alert.info.model}
    return json.dumps(alert_message(alert) | about | {"ts": alert.created_ms}, ensure_ascii=False).encode()


def signature(body: bytes, secret: str) -> str:
    """The value of `X-Medusa-Signature`."""
    return f"sha256={hmac.new(secret.encode(), body, sha256).hexdigest()}"
