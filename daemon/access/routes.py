"""`/v1/token`: a credential for a minute, for a browser. `/v1/session`: the sign-in of our own pages.

Our pages keep no key. They give it once, and get a cookie that scripts cannot read, that other sites cannot use (SameSite,
and the gate looks at the page's origin too), and that EventSource and WebSocket, which take no headers, send by themselves.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.access.credentials import COOKIE
from daemon.access.gate import Gate
from daemon.access.middleware import asked_of, principal_of, problem
from daemon.access.policy import SESSION, TOKEN
from daemon.access.principal import AccessError, Principal, Role
from daemon.errors import PeerError
from daemon.request import parse_object

MOST_BODY_BYTES: Final = 4096
_BODY_S: Final = 5.0
_MINTABLE: Final[frozenset[Role]] = frozenset({"ingest", "read"})
"""What a browser may get: nobody deletes with a token that was handed on."""

Handler = Callable[[Request], Awaitable[Response]]


class AccessRoutes:
    """The two resources.

    Args:
        gate: whose tokens they hand out.
        token_ttl_s: of a token.
        session_ttl_s: of a session.
    """

    def __init__(self, gate: Gate, token_ttl_s: int, session_ttl_s: int) -> None:
        self._gate = gate
        self._token_ttl_s = token_ttl_s
        self._session_ttl_s = session_ttl_s

    def routes(self) -> list[Route]:
        """For the application."""
        return [
            Route(TOKEN, _answering(self.token), methods=["POST"]),
            Route(SESSION, _answering(self.visitor), methods=["GET"]),
            Route(SESSION, _answering(self.sign_in), methods=["POST"]),
            Route(SESSION, _answering(self.sign_out), methods=["DELETE"]),
        ]

    async def token(self, request: Request) -> Response:
        """A token of the caller's roles, or of those of them that the body names."""
        owner = _recognised(request)
        if owner.kind == "token":
            raise AccessError(403, "no_role", "a token is no key: it makes no other token")
        wanted = _wanted(await _body(request), owner)
        text, lasts_s = self._gate.mint.issue(owner, "token", wanted, self._token_ttl_s)
        return JSONResponse({"token": text, "expires_in": lasts_s, "roles": sorted(wanted)})

    async def visitor(self, request: Request) -> Response:
        """Whether a key is needed here, and the roles of who asks."""
        found = self._gate.visitor(asked_of(request.scope))
        roles = sorted(found.roles) if found is not None else []
        return JSONResponse({"required": self._gate.rules.required, "roles": roles})

    async def sign_in(self, request: Request) -> Response:
        """A session for the key or token that the caller shows."""
        owner = _recognised(request)
        if owner.kind not in ("key", "jwt"):
            raise AccessError(403, "no_role", "a session begins with a key, not with a token or another session")
        text, lasts_s = self._gate.mint.issue(owner, "session", owner.roles, self._session_ttl_s)
        response = JSONResponse({"roles": sorted(owner.roles), "expires_in": lasts_s})
        response.set_cookie(
            COOKIE, text, max_age=lasts_s, path="/", secure=_is_secure(request), httponly=True, samesite="strict"
        )
        return response

    async def sign_out(self, request: Request) -> Response:
        """Forgets the session."""
        response = JSONResponse({"roles": []})
        response.delete_cookie(COOKIE, path="/", secure=_is_secure(request), httponly=True, samesite="strict")
        return response


def _recognised(request: Request) -> Principal:
    """Who asks, where anybody needs to be somebody."""
    owner = principal_of(request.scope)
    if owner.kind == "anyone":
        raise AccessError(409, "not_needed", "nobody needs a credential here: leave it out")
    return owner


def _wanted(body: bytes, owner: Principal) -> frozenset[Role]:
    """The roles of a token."""
    have = owner.roles & _MINTABLE
    if not have:
        raise AccessError(
            403, "no_role", f"tokens have some of {', '.join(sorted(_MINTABLE))}, and the key has none of them"
        )
    named = parse_object(body.decode(), "the body").get("roles", sorted(have)) if body else sorted(have)
    if not isinstance(named, list) or not named or not all(isinstance(role, str) for role in named):
        raise PeerError("bad_request", f"roles must be a list of some of {', '.join(sorted(_MINTABLE))}")
    wanted = frozenset(role for role in have if role in named)
    if refused := sorted(set(named) - wanted):
        raise AccessError(403, "no_role", f"the key cannot hand on {', '.join(refused)[:100]}: it has {sorted(have)}")
    return wanted


async def _body(request: Request) -> bytes:
    """The body, no longer than it may be."""
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MOST_BODY_BYTES:
                    raise AccessError(413, "too_big", f"the body is over the limit of {MOST_BODY_BYTES} bytes")
    except TimeoutError as error:
        raise AccessError(408, "too_slow", f"the body took more than {_BODY_S:g} s") from error
    except ClientDisconnect as error:
        raise PeerError("bad_request", "the body ended too early") from error
    return bytes(data)


def _is_secure(request: Request) -> bool:
    """Whether the page came over TLS, also where that ends at a proxy."""
    return request.url.scheme == "https" or request.headers.get("origin", "").lower().startswith("https://")


def _answering(handler: Handler) -> Handler:
    """A handler whose errors are answers."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            response = await handler(request)
        except AccessError as error:
            return problem(error)
        except PeerError as error:
            return problem(AccessError(400, error.code, error.message))
        except UnicodeDecodeError:
            return problem(AccessError(400, "bad_request", "the body is not UTF-8"))
        response.headers["Cache-Control"] = "no-store"
        return response

    return answer
