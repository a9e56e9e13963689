"""The HTTP side of WHIP (RFC 9725).

    POST   /whip               an offer in, 201 and the answer out
    PATCH  /whip/{id}          candidates as they are found, or an ICE restart
    DELETE /whip/{id}          the end
    GET    /whip/{id}/events   the session's messages as server-sent events, until a minute after its end

The id is a secret of the client: who knows it may end the session and read its results.
"""

import asyncio
import contextlib
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from daemon import wire
from daemon.access.usage import Account, QuotaError, account_of
from daemon.errors import CapacityError, PeerError
from daemon.request import StreamRequest, request_of_query
from daemon.streams import Streams
from daemon.transports.whip.cross_origin import EXPOSED, Origins
from daemon.transports.whip.peer import Peer
from daemon.transports.whip.results import ResultLog, next_after
from daemon.transports.whip.rules import IceServer, WhipRules
from daemon.transports.whip.sdp import Credentials, Offer, parse_fragment, parse_offer, write_fragment
from daemon.transports.whip.session import WhipSession

MAX_BODY_BYTES: Final = 64 << 10
MAX_READERS: Final = 8
"""Of one session's events."""
RETAINED_S: Final = 60.0
"""How long the messages of a session that ended can still be read."""
_BODY_S: Final = 10.0
_RETRY_AFTER_S: Final = 5
_MAX_RESTARTS: Final = 32
_SDP: Final = "application/sdp"
_FRAGMENT: Final = "application/trickle-ice-sdpfrag"
_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_STATUS: Final = {
    "unsupported_offer": 422,
    "too_many_candidates": 422,
    "too_big": 413,
    "too_slow": 408,
    "bad_content_type": 415,
}
"""Of a client's mistakes; of all others it is 400."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Resource:
    """A session as its URL shows it."""

    session: WhipSession
    peer: Peer
    log: ResultLog
    remote: Credentials
    mid: str
    etag: str
    task: "asyncio.Task[None]"
    restarts: int = 0
    readers: int = 0


class WhipDoor:
    """All WHIP sessions of the process.

    Args:
        streams: of the process.
        rules: of the configuration.
    """

    def __init__(self, streams: Streams, rules: WhipRules) -> None:
        self._streams = streams
        self._rules = rules
        self._origins = Origins(rules.allowed_origins)
        self._open: dict[str, _Resource] = {}
        self._ended: dict[str, _Resource] = {}
        # Its INFO is every connectivity check, with the addresses of clients.
        logging.getLogger("aioice").setLevel(logging.WARNING)

    def routes(self) -> list[Route]:
        """To be mounted in front of static files: every method is answered here."""
        return [
            Route("/whip", self._endpoint, methods=_METHODS),
            Route("/whip/{id}", self._session, methods=_METHODS),
            Route("/whip/{id}/events", self._events, methods=_METHODS),
        ]

    async def _endpoint(self, request: Request) -> Response:
        accept = {"Accept-Post": _SDP}
        return await self._dispatch(request, {"POST": self._post}, accept)

    async def _session(self, request: Request) -> Response:
        accept = {"Accept-Patch": _FRAGMENT}
        return await self._dispatch(request, {"PATCH": self._patch, "DELETE": self._delete}, accept)

    async def _events(self, request: Request) -> Response:
        return await self._dispatch(request, {"GET": self._read}, {})

    async def _dispatch(
        self, request: Request, methods: dict[str, Callable[[Request], Awaitable[Response]]], accept: dict[str, str]
    ) -> Response:
        allowed = ", ".join([*methods, "OPTIONS"])
        shared = self._origins.headers(request.headers, allowed)
        method = methods.get(request.method)
        if request.method == "OPTIONS":
            response = Response(status_code=200, headers={"Allow": allowed} | accept)
        elif method is None:
            response = _problem(405, "bad_method", f"{request.method} is not for this resource; it takes {allowed}")
            response.headers["Allow"] = allowed
        elif self._origins.refuses(request.headers):
            origin = request.headers["origin"]
            response = _problem(
                403, "bad_origin", f"pages of {origin!r:.200} may not use this: see webrtc.allowed_origins"
            )
        else:
            try:
                response = await method(request)
            except PeerError as error:
                response = _problem(_STATUS.get(error.code, 400), error.code, error.message)
            except CapacityError as error:
                status = 429 if isinstance(error, QuotaError) else 503
                response = _problem(status, "overloaded", str(error))
                response.headers["Retry-After"] = str(_RETRY_AFTER_S)
            except ClientDisconnect:
                response = _problem(400, "bad_request", "the body ended too early")
        response.headers.update(shared)
        return response

    async def _post(self, request: Request) -> Response:
        offer = parse_offer(await _body(request, _SDP))
        wanted = _wanted(request.query_params, offer)
        wanted.role_names()
        name, answer = await self._accept(offer, wanted, account_of(request.scope))
        here = f"{request.url.path.rstrip('/')}/{name}"
        links = [*map(_link, self._rules.ice_servers), f'<{here}/events>; rel="urn:medusa:events"']
        headers = {"Location": here, "ETag": self._open[name].etag, "Link": ", ".join(links)}
        return Response(answer, 201, headers | {"Access-Control-Expose-Headers": EXPOSED}, _SDP)

    async def _accept(self, offer: Offer, wanted: StreamRequest, account: Account) -> tuple[str, str]:
        """Begins a session; its id and the answer."""
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._streams.admitted(account))
            stack.enter_context(self._streams.place(account))
            log = ResultLog(self._streams.rules.outbox)
            peer = Peer(self._rules.ice_servers, log)
            stack.push_async_callback(peer.close)
            address = self._rules.public_address
            answer = await peer.answer(offer, stereo=wanted.channels == 2, public_address=address)
            if not peer.candidates:
                raise CapacityError("this machine has no network address for media")
            stream = self._streams.open(wanted, log.append, account=account)
            session = WhipSession(peer, log, stream, self._streams, stack.pop_all())
        name = secrets.token_urlsafe(18)
        task = asyncio.create_task(session.run(), name="whip session")
        self._open[name] = _Resource(session, peer, log, offer.credentials, offer.mid, _new_etag(), task)
        task.add_done_callback(functools.partial(self._over, name))
        return name, answer

    async def _patch(self, request: Request) -> Response:
        resource = self._find(request)
        if resource is None:
            return _not_found()
        body = await _body(request, _FRAGMENT)
        matches = [tag.strip() for tag in request.headers.get("if-match", "").split(",") if tag.strip()]
        if not matches:
            return _problem(
                428, "no_etag", 'If-Match is missing: it holds the ETag of the session, or "*" to restart ICE'
            )
        if resource.etag not in matches and "*" not in matches:
            return _problem(412, "old_etag", f"If-Match {', '.join(matches)!r:.80} is not of this ICE session")
        fragment = parse_fragment(body)
        if fragment.credentials in (None, resource.remote):
            resource.peer.trickle(fragment.candidates, complete=fragment.complete)
            return Response(status_code=204)
        return self._restart(resource, fragment.credentials)

    def _restart(self, resource: _Resource, remote: Credentials) -> Response:
        if resource.restarts >= _MAX_RESTARTS:
            return _problem(422, "too_many_restarts", f"ICE was restarted {_MAX_RESTARTS} times, the limit")
        resource.restarts += 1
        resource.remote, resource.etag = remote, _new_etag()
        body = write_fragment(resource.peer.restart(remote), resource.mid, resource.peer.candidates)
        return Response(body, 200, {"ETag": resource.etag}, _FRAGMENT)

    async def _delete(self, request: Request) -> Response:
        resource = self._find(request)
        if resource is None:
            return _not_found()
        resource.session.end()
        self._retire(request.path_params["id"])
        return Response(status_code=200)

    async def _read(self, request: Request) -> Response:
        resource = self._find(request) or self._ended.get(request.path_params["id"])
        if resource is None:
            return _not_found()
        if resource.readers >= MAX_READERS:
            raise CapacityError(f"{MAX_READERS} readers read these events, the limit: come back later")
        first = next_after(request.headers.get("last-event-id"))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(resource, first), headers=headers, media_type="text/event-stream")

    def _find(self, request: Request) -> _Resource | None:
        return self._open.get(request.path_params["id"])

    def _over(self, name: str, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (problem := task.exception()) is not None:
            _log.error("a WHIP session failed: %s", problem, exc_info=problem)
        self._retire(name)
        asyncio.get_running_loop().call_later(RETAINED_S, self._ended.pop, name, None)

    def _retire(self, name: str) -> None:
        """Its messages can still be read for a while, by as many as there may be streams."""
        resource = self._open.pop(name, None)
        if resource is not None:
            self._ended[name] = resource
            while len(self._ended) > self._streams.rules.max_streams:
                del self._ended[next(iter(self._ended))]


def _wanted(query: Mapping[str, str], offer: Offer) -> StreamRequest:
    """The parameters of the native protocol, but for those that the offer holds."""
    if wrong := query.keys() & {"encoding", "sample_rate"}:
        raise PeerError("bad_request", f"{' and '.join(sorted(wrong))} is what the offer says: leave it out")
    asked = request_of_query(query)
    said = asked.channels if "channels" in query else len(asked.roles) or (2 if offer.stereo else 1)
    if said not in (1, 2):
        raise PeerError("bad_channels", f"channels {said} is not 1 or 2")
    return asked.model_copy(update={"channels": said})


async def _body(request: Request, media_type: str) -> str:
    """A text of that type, no longer than it may be.

    Raises:
        PeerError: if it is something else.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != media_type:
        raise PeerError("bad_content_type", f"the body must be {media_type}, got {given!r:.80}")
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_BODY_BYTES:
                    raise PeerError("too_big", f"the body is over the limit of {MAX_BODY_BYTES} bytes")
        return data.decode()
    except TimeoutError as error:
        raise PeerError("too_slow", f"the body took more than {_BODY_S:g} s") from error
    except UnicodeDecodeError as error:
        raise PeerError("bad_sdp", f"the body is not UTF-8: {error}") from error


async def _events(resource: _Resource, first: int) -> AsyncIterator[str]:
    resource.readers += 1
    try:
        async with contextlib.aclosing(resource.log.server_sent_events(first)) as events:
            async for event in events:
                yield event
    finally:
        resource.readers -= 1


def _problem(status: int, code: str, message: str) -> Response:
    return JSONResponse(wire.error(code, message), status)


def _not_found() -> Response:
    return _problem(404, "no_session", "there is no such session: it never was, or it ended")


def _new_etag() -> str:
    return f'"{secrets.token_hex(8)}"'


def _link(server: IceServer) -> str:
    """A server as clients are told of it (RFC 9725, 4.6)."""
    about = 'rel="ice-server"'
    if server.username is not None:
        about += f'; username="{_quoted(server.username)}"; credential="{_quoted(server.credential or "")}"'
        about += '; credential-type="password"'
    return ", ".join(f"<{url}>; {about}" for url in server.urls)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
