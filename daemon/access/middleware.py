"""Asks the gate before any handler runs, answers who may not pass, and tells handlers who it is."""

from collections.abc import Callable, MutableMapping
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon import wire
from daemon.access.first_message import FirstMessage, PassOn
from daemon.access.gate import Asked, Gate
from daemon.access.policy import NATIVE, Special, is_guarded, is_whip, need
from daemon.access.principal import AccessError, Principal
from daemon.access.usage import Ledger
from daemon.transports.whip.cross_origin import Origins

_REALM: Final = 'Bearer realm="medusa"'
_UNAUTHENTICATED: Final = 401
_FORBIDDEN: Final = 403
_METHODS: Final = "GET, HEAD, POST, DELETE, OPTIONS"


def principal_of(scope: Scope) -> Principal:
    """Who asks, as the gate found out."""
    principal: Principal = scope["state"]["principal"]
    return principal


def asked_of(scope: Scope) -> Asked:
    """A request as the gate takes it."""
    client = scope.get("client")
    return Asked(
        kind=scope["type"],
        method=scope.get("method", "GET"),
        path=scope["path"],
        query=scope["query_string"],
        headers=dict(Headers(scope=scope)),
        subprotocols=tuple(scope.get("subprotocols", ())),
        address=client[0] if client else "local",
    )


def problem(error: AccessError) -> Response:
    """The answer to who may not pass: as the native protocol says it, and `error` as our API says it."""
    body = wire.error(error.code, error.message) | {"error": error.message}
    response = JSONResponse(body, error.status, headers={"Cache-Control": "no-store"})
    if error.status == _UNAUTHENTICATED:
        shown = "" if error.code == "no_credential" else ', error="invalid_token"'
        response.headers["WWW-Authenticate"] = _REALM + shown
    elif error.code == "no_role":
        response.headers["WWW-Authenticate"] = f'{_REALM}, error="insufficient_scope"'
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def _head_bytes(scope: Scope) -> int:
    names_and_values = sum(len(name) + len(value) for name, value in scope["headers"])
    return names_and_values + len(scope.get("raw_path") or b"") + len(scope["query_string"])


def _too_big(limit: int) -> AccessError:
    return AccessError(431, "too_big", f"the request's line and headers are over the limit of {limit} bytes")


class AccessMiddleware:
    """ASGI middleware in front of everything but headers.

    Args:
        app: what it guards.
        gate: decides.
        ledger: accounts of who passes.
        denied: counts who does not, by code.
        whip_origins: pages that may use WHIP, which answers them itself.
        max_header_bytes: of a request: uvicorn's own limit is only of a head that is not whole yet.
    """

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        ledger: Ledger,
        denied: Callable[[str], None],
        whip_origins: Origins,
        max_header_bytes: int,
    ) -> None:
        self._app = app
        self._gate = gate
        self._ledger = ledger
        self._denied = denied
        self._whip_origins = whip_origins
        self._max_header_bytes = max_header_bytes
        self._first_message = FirstMessage(gate, denied)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        asked = asked_of(scope)
        if _head_bytes(scope) > self._max_header_bytes:
            self._denied("too_big")
            await problem(_too_big(self._max_header_bytes))(scope, receive, send)
            return
        if asked.kind == "http" and is_guarded(asked.kind, asked.method, asked.path):
            send = self._sharing(asked, send)
        try:
            principal = self._gate.admit(asked)
        except AccessError as error:
            if error.code == "no_credential" and asked.kind == "websocket" and asked.path == NATIVE and not asked.query:
                await self._first_message.serve(asked, receive, send, self._passing(scope))
            else:
                self._denied(error.code)
                await problem(error)(scope, receive, send)
            return
        if (
            asked.method == "OPTIONS"
            and is_guarded(asked.kind, asked.method, asked.path)
            and not is_whip(asked.kind, asked.path)
        ):
            await Response(status_code=204, headers={"Allow": _METHODS})(scope, receive, send)
            return
        await self._passing(scope)(principal, receive, self._watching(asked, send))

    def _passing(self, scope: Scope) -> PassOn:
        async def pass_on(principal: Principal, receive: Receive, send: Send) -> None:
            state: MutableMapping[str, Any] = scope.setdefault("state", {})
            state["principal"], state["account"] = principal, self._ledger.account(principal)
            await self._app(scope, receive, send)

        return pass_on

    def _sharing(self, asked: Asked, send: Send) -> Send:
        """Lets pages of allowed origins see the answer (CORS), a refusal too; credentials are headers, never cookies."""
        origins = self._whip_origins if is_whip(asked.kind, asked.path) else self._gate.origins
        allowed = origins.headers(asked.headers, _METHODS)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                more = [(n.lower().encode(), v.encode()) for n, v in allowed.items() if n.lower().encode() not in known]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        return sending

    def _watching(self, asked: Asked, send: Send) -> Send:
        """A signature that a door refuses is a failed attempt like any other."""
        if need(asked.kind, asked.method, asked.path) is not Special.SIGNED_DOOR:
            return send

        async def sending(message: Message) -> None:
            refused = message["type"] == "websocket.http.response.start"
            if refused and message["status"] in (_UNAUTHENTICATED, _FORBIDDEN):
                self._gate.attempts.failed(asked.address)
                self._denied("bad_signature")
            await send(message)

        return sending
