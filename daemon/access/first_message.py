"""A native stream whose credential is in its first message: it takes no stream's place until that has come and is good."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import Message, Receive, Send

from daemon.access.credentials import Shown
from daemon.access.gate import Asked, Gate
from daemon.access.policy import need
from daemon.access.principal import AccessError, Principal
from daemon.transports.native import token_of, told

_WITHIN_S: Final = 10.0
_MOST_CHARACTERS: Final = 32_768
"""Of the message: a longer one is read for nobody that we do not know."""
_MOST_WAITING: Final = 256
"""Connections that have not said who they are."""
_MOST_OF_AN_ADDRESS: Final = 32
"""Else one machine could keep all others waiting."""

PassOn = Callable[[Principal, Receive, Send], Awaitable[None]]


class FirstMessage:
    """Connections that say in their first message who they are.

    Args:
        gate: decides.
        denied: counts who may not pass, by code.
    """

    def __init__(self, gate: Gate, denied: Callable[[str], None]) -> None:
        self._gate = gate
        self._denied = denied
        self._waiting: Counter[str] = Counter()

    async def serve(self, asked: Asked, receive: Receive, send: Send, pass_on: PassOn) -> None:
        """Accepts the connection, waits for its first message, and passes it on with that if it may stream."""
        if self._waiting.total() >= _MOST_WAITING or self._waiting[asked.address] >= _MOST_OF_AN_ADDRESS:
            self._denied("too_many_waiting")
            await send({"type": "websocket.close"})
            return
        self._waiting[asked.address] += 1
        try:
            opening = await self._accepted(receive, send)
        finally:
            self._waiting[asked.address] -= 1
            self._waiting += Counter()  # forgets addresses of which none waits
        if opening is None:
            return
        connect, first = opening
        try:
            principal = self._recognised(first, asked)
        except AccessError as error:
            self._denied(error.code)
            await self._refuse(send, error)
            return
        await pass_on(principal, _replaying(receive, connect, first), _without_accept(send))

    async def _accepted(self, receive: Receive, send: Send) -> tuple[Message, Message] | None:
        """What opened the connection and its first message; None where it ended before."""
        connect = await receive()
        await send({"type": "websocket.accept"})
        try:
            async with asyncio.timeout(_WITHIN_S):
                first = await receive()
        except TimeoutError:
            self._denied("no_credential")
            await self._refuse(send, AccessError(401, "no_credential", f"no start message came within {_WITHIN_S:g} s"))
            return None
        return None if first["type"] == "websocket.disconnect" else (connect, first)

    def _recognised(self, first: Message, asked: Asked) -> Principal:
        text = first.get("text")
        if text is not None and len(text) > _MOST_CHARACTERS:
            raise AccessError(413, "too_big", f"the start message is over the limit of {_MOST_CHARACTERS} characters")
        token = token_of(text)
        if token is None:
            raise AccessError(
                401,
                "no_credential",
                'this needs a key or a token: in the header Authorization, or as "token" of the start message',
            )
        return self._gate.allowed(
            self._gate.identified(Shown(token), asked.address), need(asked.kind, asked.method, asked.path)
        )

    async def _refuse(self, send: Send, error: AccessError) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            await send({"type": "websocket.send", "text": told(error.message)})
            await send({"type": "websocket.close", "code": error.close_code, "reason": error.code})


def _replaying(receive: Receive, *messages: Message) -> Receive:
    waiting = list(messages)

    async def replayed() -> Message:
        return waiting.pop(0) if waiting else await receive()

    return replayed


def _without_accept(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] != "websocket.accept":
            await send(message)

    return sending
