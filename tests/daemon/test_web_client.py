"""The browser's client and the live page against a scripted server: what breaks, what a person is asked and told."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from daemon.headers import SecurityHeaders
from model.labels import CLASSES
from tests.daemon.browser import NO_BROWSER, PROGRAM, Page, browsing
from tests.daemon.conftest import CALL
from tests.waiting import until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(PROGRAM is None, reason=NO_BROWSER),
]

WEB: Final = Path(__file__).parents[2] / "daemon" / "web"
GOLDEN: Final = Path(__file__).parents[1] / "golden"
MESSAGES: Final[dict[str, dict[str, Any]]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in GOLDEN.glob("*.json")
    if not path.stem.startswith("redis_")
}
"""What the server sends, without `seq`."""
ROLES: Final = ["customer", "agent"]
CREATED: Final = MESSAGES["session_created"] | {"roles": ROLES, "trained_classes": list(CLASSES), "resume": None}
RESUMABLE: Final = CREATED | {"resume": "ticket"}
CLOSED: Final = MESSAGES["session_closed"]
OVERLOADED: Final = {"type": "error", "code": "overloaded", "message": "64 streams are open, the limit"}

Json = dict[str, Any]
Script = Callable[[WebSocket], Awaitable[None]]


class _Server(uvicorn.Server):
    """Leaves signals to pytest."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Scripted:
    """A server of which each connection plays the next script.

    Attributes:
        base: its address.
        key: that its pages have to give, "" for none.
        seen: every connection, as its script left it.
    """

    def __init__(self) -> None:
        self.base = ""
        self.key = ""
        self.scripts: list[Script] = []
        self.seen: list[WebSocket] = []

    async def play(self, socket: WebSocket) -> None:
        self.seen.append(socket)
        offered = socket.scope["subprotocols"]
        await socket.accept("bearer" if offered else None)
        await self.scripts.pop(0)(socket)

    async def demo(self, _: Request) -> Response:
        return FileResponse(CALL)

    async def session(self, request: Request) -> Response:
        known = request.cookies.get("session") == self.key
        if request.method == "POST":
            if request.headers["authorization"] != f"Bearer {self.key}":
                return JSONResponse({"message": "this key is not known"}, 401)
            return Response(status_code=204, headers={"Set-Cookie": f"session={self.key}; Path=/"})
        return JSONResponse({"required": bool(self.key), "roles": ["ingest"] if known else []})

    async def token(self, request: Request) -> Response:
        known = request.cookies.get("session") == self.key
        return JSONResponse({"token": "minted", "expires_in": 60} if known else {}, 200 if known else 401)

    def plays(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.seen = []


async def tell(socket: WebSocket, *messages: Json) -> None:
    for seq, message in enumerate(messages):
        await socket.send_text(json.dumps({"seq": seq} | message))


@asynccontextmanager
async def serving() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    routes = [
        WebSocketRoute("/v1/stream", scripted.play),
        Route("/demo/call.flac", scripted.demo),
        Route("/v1/session", scripted.session, methods=["GET", "POST"]),
        Route("/v1/token", scripted.token, methods=["POST"]),
        Mount("/", StaticFiles(directory=WEB, html=True)),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(SecurityHeaders)])
    server = _Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="websockets-sansio"))
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    scripted.base = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield scripted
    server.should_exit = True
    await running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Scripted]:
    async with serving() as scripted:
        yield scripted


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page(server: Scripted) -> AsyncIterator[Page]:
    async with browsing("--autoplay-policy=no-user-gesture-required") as opened:
        await opened.open(f"{server.base}/")
        yield opened


async def run(page: Page, code: str) -> Any:
    """What a program with the client's functions returns."""
    return await page.ask(f"""(async () => {{
        const {{ connect, publish, MedusaError }} = await import("/client/medusa.js");
        const heard = [];
        {code}
    }})()""")


STREAMING: Final = """
    let asked = 0;
    const attempts = [];
    const session = await connect({
        url: location.origin, token: async () => `token-${++asked}`, sampleRate: 8000, callId: "before",
        onInterrupted({ attempt, error }) {
            attempts.push([attempt, error.code, error.closeCode]);
            if (attempt === 1) { session.send(new Uint8Array([5, 6, 7, 8])); session.close(); }
            return 10;
        },
    });
    const buffer = new Uint8Array([1, 2, 3, 4]);
    session.send(buffer);
    buffer.fill(0);
    for await (const { type } of session) heard.push(type);
    return { heard, attempts, backlog: session.backlogS };
"""


async def test_a_lost_connection_is_resumed_where_the_server_stopped_hearing(server: Scripted, page: Page) -> None:
    """With a fresh token, and the audio that came meanwhile."""
    got: list[Any] = []

    async def breaks(socket: WebSocket) -> None:
        await tell(socket, RESUMABLE)
        got.append(await socket.receive_bytes())
        await socket.close(1011)

    async def refuses(socket: WebSocket) -> None:
        await tell(socket, OVERLOADED)
        await socket.close(1013)

    async def resumes(socket: WebSocket) -> None:
        got.append(json.loads(await socket.receive_text()))
        await tell(socket, {"type": "session.resumed", "session": "s", "received": 1, "missed": 0, "seq": 1})
        got.extend([await socket.receive_bytes(), await socket.receive_bytes()])
        got.append(json.loads(await socket.receive_text()))
        await tell(socket, CLOSED | {"seq": 2})
        await socket.close()

    server.plays(breaks, refuses, resumes)
    told: Json = await run(page, STREAMING)
    assert told["heard"] == ["session.created", "error", "session.resumed", "session.closed"]
    assert told["attempts"] == [[1, "connection_lost", 1011], [2, "overloaded", 1013]]
    assert told["backlog"] == 0
    resume = {"type": "resume", "resume": "ticket", "after": 0}
    assert got == [bytes([1, 2, 3, 4]), resume, bytes([3, 4]), bytes([5, 6, 7, 8]), {"type": "close"}]
    asked = {"encoding": "linear16", "sample_rate": "8000", "channels": "1", "resume": "true", "call_id": "before"}
    assert [dict(socket.query_params) for socket in server.seen] == [asked, {}, {}]
    assert [socket.scope["subprotocols"] for socket in server.seen] == [["bearer", f"token-{n}"] for n in (1, 2, 3)]


async def test_a_server_that_forgot_the_stream_gets_another_of_the_same_call(server: Scripted, page: Page) -> None:
    """With the audio from where results were settled on."""
    got: list[Any] = []

    async def breaks(socket: WebSocket) -> None:
        await tell(socket, RESUMABLE)
        got.append(await socket.receive_bytes())
        await tell(socket, {"type": "audio.settled", "settled_ms": 0.25, "seq": 1})
        await socket.close(1012)

    async def forgot(socket: WebSocket) -> None:
        got.append(json.loads(await socket.receive_text())["after"])
        await tell(socket, {"type": "error", "code": "unknown_resume", "message": "no stream waits for this token"})
        await socket.close(1008)

    async def shuts_down(socket: WebSocket) -> None:
        await tell(socket, RESUMABLE | {"resume": "another"})
        got.extend([await socket.receive_bytes(), json.loads(await socket.receive_text())])
        await tell(socket, CLOSED)
        await socket.close()

    server.plays(breaks, forgot, shuts_down)
    told: Json = await run(page, STREAMING)
    assert told["heard"] == ["session.created", "audio.settled", "session.created", "session.closed"]
    assert [code for _, code, _ in told["attempts"]] == ["connection_lost"] * 2
    assert got == [bytes([1, 2, 3, 4]), 1, bytes([5, 6, 7, 8]), {"type": "close"}]
    queries = [dict(socket.query_params) for socket in server.seen]
    assert [query.get("call_id") for query in queries] == ["before", None, CREATED["call"]]


async def test_a_server_that_shuts_down_hands_the_rest_to_the_next_one(server: Scripted, page: Page) -> None:
    got: list[bytes] = []

    async def shuts_down(socket: WebSocket) -> None:
        await tell(socket, RESUMABLE)
        got.append(await socket.receive_bytes())
        heard = CLOSED | {"reason": "going_away", "totals": CLOSED["totals"] | {"received_ms": 0.125}}
        await tell(socket, heard | {"seq": 1})
        await socket.close(1001)

    async def goes_on(socket: WebSocket) -> None:
        await tell(socket, RESUMABLE)
        got.extend([await socket.receive_bytes(), await socket.receive_bytes()])
        await tell(socket, CLOSED)
        await socket.close()

    server.plays(shuts_down, goes_on)
    told: Json = await run(page, STREAMING)
    assert told["heard"] == ["session.created", "session.closed"] * 2
    assert got == [bytes([1, 2, 3, 4]), bytes([3, 4]), bytes([5, 6, 7, 8])]


async def test_what_breaks_is_thrown_with_its_code(server: Scripted, page: Page) -> None:
    async def breaks(socket: WebSocket) -> None:
        await tell(socket, CREATED)
        await socket.close(1011)

    async def ends_with_error(socket: WebSocket) -> None:
        await tell(socket, CREATED, OVERLOADED | {"code": "idle", "message": "no message for 30 s"}, CLOSED)
        await socket.close(1008)

    async def refuses(socket: WebSocket) -> None:
        await tell(socket, OVERLOADED)
        await socket.close(1013)

    server.plays(breaks, ends_with_error, refuses)
    told = await run(
        page,
        """
        const tried = async () => {
            const types = [];
            try {
                for await (const { type } of await connect({ url: location.origin })) types.push(type);
                return types;
            } catch (error) {
                return [...types, error instanceof MedusaError, error.code, error.closeCode];
            }
        };
        return [await tried(), await tried(), await tried()];
        """,
    )
    assert told == [
        ["session.created", True, "connection_lost", 1011],
        ["session.created", "error", "session.closed", True, "idle", 0],
        [True, "overloaded", 1013],
    ]


async def test_leaving_the_loop_or_giving_up_ends_the_stream(server: Scripted, page: Page) -> None:
    gone: list[str] = []

    async def waits(socket: WebSocket) -> None:
        await tell(socket, CREATED)
        gone.append((await socket.receive())["type"])

    async def silent(socket: WebSocket) -> None:
        gone.append((await socket.receive())["type"])

    server.plays(waits, silent)
    told = await run(
        page,
        """
        const session = await connect({ url: location.origin });
        for await (const message of session) break;
        const after = await session[Symbol.asyncIterator]().next();
        const late = await connect({ url: location.origin, signal: AbortSignal.timeout(50) }).catch(({ name }) => name);
        return [after.done, late];
        """,
    )
    assert told == [True, "TimeoutError"]
    await until(lambda: gone == ["websocket.disconnect"] * 2)


async def test_messages_that_nobody_reads_do_not_pile_up_without_end(server: Scripted, page: Page) -> None:
    gone: list[str] = []

    async def floods(socket: WebSocket) -> None:
        await tell(socket, CREATED, *[MESSAGES["warning"]] * 5000)
        gone.append((await socket.receive())["type"])

    server.plays(floods)
    await run(page, "window.session = await connect({ url: location.origin });")
    await until(lambda: gone == ["websocket.disconnect"])
    told = await run(
        page,
        """
        try { for await (const { type } of session) heard.push(type); } catch (error) { return [heard.length, error.code]; }
        """,
    )
    assert told == [4097, "slow_reader"]


async def test_without_webrtc_or_a_server_publishing_says_so(server: Scripted, page: Page) -> None:
    told = await run(
        page,
        """
        const silence = new AudioContext().createMediaStreamDestination().stream;
        const said = (work) => work.then(() => "nothing", ({ code, status }) => [code, status]);
        const nobody = await said(publish(silence, { url: location.origin }));
        const mute = await said(publish(new MediaStream(), { url: location.origin }));
        const Kept = window.RTCPeerConnection;
        delete window.RTCPeerConnection;
        const old = await said(publish(silence));
        window.RTCPeerConnection = Kept;
        return [nobody, mute, old];
        """,
    )
    assert told == [["refused", 405], ["no_audio", 0], ["no_webrtc", 0]]


async def test_a_bundle_with_attributes_gets_a_plane(server: Scripted, page: Page) -> None:
    emotion = MESSAGES["emotion_final"] | {"channel": 0, "role": "customer"}
    points = [(4.0, 4.0), (7.0, 1.0)]
    results = [
        emotion | {"utterance": index, "arousal": arousal, "valence": valence}
        for index, (arousal, valence) in enumerate(points)
    ]

    async def speaks(socket: WebSocket) -> None:
        await tell(socket, CREATED | {"trained_attributes": ["arousal", "valence", "dominance"]}, *results)
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass

    server.plays(speaks)
    await page.open(f"{server.base}/")
    await page.click("#demo")
    await page.until("document.querySelectorAll('.utterance').length === 2")
    dots = "[...document.querySelectorAll('.plane-dot')].map((dot) => [dot.getAttribute('cx'), dot.getAttribute('cy')])"
    assert await page.ask(dots) == [["50.0", "50.0"], ["0.0", "0.0"]], "pleasant is right, excited is up"
    label = "document.querySelector('.plane-picture').getAttribute('aria-label')"
    assert await page.ask(label) == "Arousal 7.0 and valence 1.0 of 7"
    assert (await page.texts(".lane .bars"))[0].split()[::2] == list(CLASSES)
    shown = "[...document.querySelectorAll('.plane')].map((plane) => plane.offsetParent !== null)"
    assert await page.ask(shown) == [True, True]
    assert await page.nameless() == []
    await page.look(360, 740, "light")
    assert await page.ask("document.documentElement.scrollWidth <= innerWidth")


async def test_a_person_gives_the_key_that_a_server_wants(server: Scripted, page: Page) -> None:
    async def waits(socket: WebSocket) -> None:
        await tell(socket, CREATED)
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass

    server.plays(waits)
    server.key = "secret"
    await page.open(f"{server.base}/")
    await page.click("#demo")
    await page.until("document.querySelector('dialog[open]')")
    assert await page.nameless() == []
    for typed in ("wrong", "secret"):
        await page.send("Input.insertText", text=typed)
        await page.press("Enter")
        if typed == "wrong":
            await page.until("document.querySelector('dialog [role=alert]').textContent === 'this key is not known'")
    await page.until("document.querySelector('#connection-words').textContent === 'Live'")
    server.key = ""
    assert [socket.scope["subprotocols"] for socket in server.seen] == [["bearer", "minted"]]
    assert not await page.ask("document.querySelector('dialog')")
