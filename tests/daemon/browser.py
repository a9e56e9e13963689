"""A real Chromium, driven over its own DevTools protocol: no driver, no download."""

import asyncio
import base64
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect

Json = dict[str, Any]

PROGRAM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER: Final = "needs Chromium: none of chromium, chromium-browser and google-chrome is installed"

_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-port=0",
)
_KEYS: Final = {"Enter": ("\r", 13), "Tab": ("", 9), "ArrowRight": ("", 39), "Escape": ("", 27)}
_POLL_S: Final = 0.05


class Page:
    """One tab.

    Attributes:
        complaints: what the console would show in red since the page was opened: errors, exceptions, breaches of the content
            security policy.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self.complaints: list[str] = []
        self._connection = connection
        self._session = ""
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}

    async def listen(self) -> None:
        """Takes what the browser says; runs beside everything else."""
        async for text in self._connection:
            message: Json = json.loads(text)
            if (waiting := self._waiting.pop(message.get("id", 0), None)) is not None:
                waiting.set_result(message)
                continue
            what: Json = message.get("params", {})
            match message.get("method"):
                case "Runtime.exceptionThrown":
                    self.complaints.append(str(what["exceptionDetails"]))
                case "Log.entryAdded" if what["entry"]["level"] == "error":
                    self.complaints.append(f"{what['entry']['text']} {what['entry'].get('url', '')}")
                case "Runtime.consoleAPICalled" if what["type"] == "error":
                    self.complaints.append(str(what["args"]))

    async def attach(self) -> None:
        """Opens the tab."""
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            await self.send(f"{domain}.enable")

    async def send(self, method: str, **params: Any) -> Json:
        """A command's result."""
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._connection.send(json.dumps({"id": number, "method": method, "params": params, **session}))
        answer = await asyncio.wait_for(waiting, 60)
        assert "error" not in answer, (method, answer)
        result: Json = answer["result"]
        return result

    async def open(self, url: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Goes to a page in a window of that size."""
        await self.look(width, height, scheme)
        self.complaints.clear()
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def look(self, width: int, height: int, scheme: str) -> None:
        """Changes the window's size and its light, whatever page is there."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.send("Emulation.setDeviceMetricsOverride", **size)
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def before(self, script: str) -> str:
        """Runs a script in every page from now on, before the page's own; a name for `never`."""
        added = await self.send("Page.addScriptToEvaluateOnNewDocument", source=script)
        name: str = added["identifier"]
        return name

    async def never(self, name: str) -> None:
        """Takes back what `before` asked for."""
        await self.send("Page.removeScriptToEvaluateOnNewDocument", identifier=name)

    async def picture(self) -> bytes:
        """What the whole page looks like, as PNG."""
        size = (await self.send("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = await self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    async def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    async def until(self, expression: str, within_s: float = 30.0) -> None:
        """Returns once an expression is true."""
        try:
            async with asyncio.timeout(within_s):
                while not await self.ask(f"Boolean({expression})"):  # noqa: ASYNC110 - the page's own event
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            text = await self.ask("document.body.innerText")
            raise AssertionError(f"never true: {expression}; {self.complaints}; the page says:\n{text}") from None

    async def click(self, selector: str) -> None:
        """Clicks in the middle of an element that is there and not disabled: a press that the browser takes for a person's."""
        one = f"document.querySelector({selector!r})"
        await self.until(f"{one} && !{one}.disabled")
        await self.ask(f"{one}.scrollIntoView({{ block: 'center' }})")
        box = f"(({{ x, y, width, height }}) => ({{ x: x + width / 2, y: y + height / 2 }}))({one}.getBoundingClientRect())"
        where = await self.ask(box)
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    async def press(self, key: str) -> None:
        """Presses a key."""
        text, code = _KEYS[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        await self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    async def texts(self, selector: str) -> list[str]:
        """What is written in every such element, as a person sees it."""
        found: list[str] = await self.ask(f"[...document.querySelectorAll({selector!r})].map((one) => one.innerText)")
        return found

    async def nameless(self) -> list[str]:
        """Controls that a screen reader could not name."""
        roles = ("button", "link", "combobox", "slider", "textbox", "checkbox", "img")
        tree = await self.send("Accessibility.getFullAXTree")
        nodes = [node for node in tree["nodes"] if not node.get("ignored") and node["role"]["value"] in roles]
        assert nodes
        return [str(node) for node in nodes if not node.get("name", {}).get("value", "").strip()]


@asynccontextmanager
async def browsing(*flags: str) -> AsyncIterator[Page]:
    """A fresh browser with one tab; `flags` go to its command line."""
    assert PROGRAM is not None, NO_BROWSER
    with tempfile.TemporaryDirectory(prefix="medusa-chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *_FLAGS,
            *flags,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with connect(await _address(process), max_size=None, ping_interval=None) as connection:
                page = Page(connection)
                listening = asyncio.create_task(page.listen())
                await page.attach()
                yield page
                listening.cancel()
                await asyncio.wait({listening})
        finally:
            if process.returncode is None:
                os.killpg(process.pid, 9)
            await process.communicate()


async def _address(process: "asyncio.subprocess.Process") -> str:
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while line := await process.stderr.readline():
            before, found, address = line.decode().strip().partition("DevTools listening on ")
            if found:
                return address
    raise AssertionError("Chromium did not start")
