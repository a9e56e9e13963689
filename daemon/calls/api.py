"""The dashboard's page and what it reads: `/calls`, `/api/calls`, `/api/calls/stream`, `/api/calls/{call}`."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import wraps
from typing import Final

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from daemon.access.usage import account_of
from daemon.audit.entries import UNAUDITED, Auditor
from daemon.calls.board import MAX_ROWS, Board, now_ms
from daemon.calls.view import timeline
from daemon.channel import Closed
from daemon.errors import CapacityError, UpstreamError
from daemon.request import StreamRequest

_PAGE: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "web", "calls.html")
_HEARTBEAT_S: Final = 15.0
"""Without news: proxies close connections that are silent, and a client that is gone shows only when it is written to."""

Handler = Callable[[Request], Awaitable[Response]]


class CallsApi:
    """The routes over one board.

    Args:
        board: the calls.
        audit: is told who read what, and who deleted.
    """

    def __init__(self, board: Board, audit: Auditor = UNAUDITED) -> None:
        self._board = board
        self._audit = audit

    def routes(self) -> list[Route]:
        """For the application."""
        return [
            Route("/calls", self.page),
            Route("/api/calls", _answering(self.list)),
            Route("/api/calls/stream", _answering(self.stream)),
            Route("/api/calls/{call}", _answering(self.one), methods=["GET"]),
            Route("/api/calls/{call}", _answering(self.delete), methods=["DELETE"]),
        ]

    async def page(self, _: Request) -> Response:
        """The page itself."""
        return FileResponse(_PAGE, media_type="text/html")

    async def list(self, request: Request) -> Response:
        """Live and recent calls, by what needs attention."""
        await self._board.ready()
        limit = _limit(request.query_params.get("limit"))
        self._audit.tally("calls.listed", who=_who(request))
        return JSONResponse({"calls": self._board.rows(limit)})

    async def one(self, request: Request) -> Response:
        """Everything of a call."""
        name = call_id(request.path_params["call"])
        await self._board.ready()
        state = await self._board.call(name)
        if state is None:
            return _problem(404, f"there is no call {name!r}, or not any more")
        self._audit.tally("call.read", who=_who(request), call=name)
        return JSONResponse(timeline(state, now_ms()))

    async def delete(self, request: Request) -> Response:
        """Deletes a call that is over, everywhere in Redis."""
        name = call_id(request.path_params["call"])
        await self._board.ready()
        state = await self._board.call(name)
        if state is not None and state.status(now_ms()) == "live":
            return _problem(409, f"the call {name!r} still lasts: what it says next would be kept again; end it first")
        count = await self._board.store.delete(name)
        self._board.forget(name)
        if count:
            self._audit.note("call.deleted", who=_who(request), call=name, entries=str(count))
        return JSONResponse({"call": name, "deleted": count}, 200 if count else 404)

    async def stream(self, request: Request) -> Response:
        """Server-sent events: all rows, then those that change; of one call, also what is said in it."""
        wanted = request.query_params.get("call", "")
        name = call_id(wanted) if wanted else ""
        await self._board.ready()
        self._board.check_room()
        return StreamingResponse(self._events(name, _who(request)), media_type="text/event-stream")

    async def _events(self, call: str, who: str) -> AsyncIterator[bytes]:
        with self._board.watching(call) as watcher, self._audited(call, who), contextlib.suppress(Closed):
            while True:
                try:
                    yield await asyncio.wait_for(watcher.outbox.get(), _HEARTBEAT_S)
                except TimeoutError:
                    yield b": still here\n\n"

    @contextlib.contextmanager
    def _audited(self, call: str, who: str) -> Iterator[None]:
        self._audit.tally("calls.watched", who=who, call=call)
        try:
            yield
        finally:
            self._audit.tally("calls.left", who=who, call=call)


class _BadRequest(Exception):
    """The request cannot be meant."""


def call_id(text: str) -> str:
    """A call id as clients may choose one.

    Raises:
        _BadRequest: if it is none.
    """
    try:
        StreamRequest(call_id=text)
    except ValidationError as error:
        raise _BadRequest(f"{text!r:.80} is no call id: 1 to 128 letters, digits and any of _.:@- make one") from error
    return text


def _who(request: Request) -> str:
    """The name of who asks."""
    return account_of(request.scope).name


def _limit(text: str | None) -> int:
    if text is None:
        return MAX_ROWS
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= MAX_ROWS):
        raise _BadRequest(f"limit is {text!r:.20}; it is 1 to {MAX_ROWS}")
    return int(text)


def _problem(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


def _answering(handler: Handler) -> Handler:
    """A handler whose errors are answers."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            response = await handler(request)
        except _BadRequest as error:
            response = _problem(400, str(error))
        except UpstreamError as error:
            response = _problem(503, str(error))
        except CapacityError as error:
            response = _problem(503, str(error))
        if response.status_code == 503:
            response.headers["Retry-After"] = "5"
        response.headers["Cache-Control"] = "no-store"
        return response

    return answer
