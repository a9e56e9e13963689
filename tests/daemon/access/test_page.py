"""What our pages need of a daemon that wants a key, in a real browser: asked once, and no script ever holds it."""

import json
from pathlib import Path
from typing import Final

import pytest

from daemon.access.keys import digest, new_key
from tests.daemon.browser import NO_BROWSER, PROGRAM, browsing
from tests.daemon.conftest import serving

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NO_BROWSER)

KEY: Final = new_key()
KEYS: Final = {"desk": {"sha256": digest(KEY), "roles": ["ingest", "read", "admin"]}}
DIALOG: Final = "document.querySelector('dialog[open]')"


def typed(text: str) -> str:
    field = f"{DIALOG}.querySelector('input')"
    return f"({field}.value = {json.dumps(text)}, {DIALOG}.querySelector('form').requestSubmit())"


async def test_a_page_signs_in_once(tmp_path: Path) -> None:
    async with serving(tmp_path, access={"keys": KEYS}) as served, browsing() as page:
        await page.open(f"http://127.0.0.1:{served.port}/health")
        await page.ask(
            "import('/access.js').then((access) => { window.access = access; window.done = [];"
            " for (const one of [access.fetchAuthorized('/api/calls'), access.fetchAuthorized('/api/calls?limit=1')])"
            " one.then((answer) => done.push(answer.status), (error) => done.push(error.message)); })"
        )
        await page.until(DIALOG)
        assert await page.ask("document.querySelectorAll('dialog').length") == 1, "two requests wait for one answer"
        assert await page.nameless() == []
        await page.ask(typed(new_key()))
        await page.until(f"{DIALOG}.querySelector('[role=alert]').textContent.includes('not known here')")
        await page.ask(typed("ключ"))
        await page.until(f"{DIALOG}.querySelector('[role=alert]').textContent === 'This is no key.'")
        await page.ask(typed(KEY))
        await page.until("done.length === 2")
        assert await page.ask("done") == [200, 200]
        assert await page.ask("document.querySelectorAll('dialog').length") == 0
        assert await page.ask("[document.cookie, sessionStorage.length, localStorage.length]") == ["", 0, 0]

        await page.ask("new EventSource('/api/calls/stream').addEventListener('calls', () => done.push('news'))")
        await page.until("done.includes('news')")
        await page.ask(
            "window.socket = new WebSocket('/v1/stream?interim_ms=0'.replace(/^/, location.origin.replace('http', 'ws'))),"
            " socket.onmessage = ({ data }) => done.push(JSON.parse(data).type), undefined"
        )
        await page.until("done.includes('session.created')")
        minted = await page.ask("access.token()")
        assert minted.count(".") == 2
        assert await page.ask("access.token()") == minted, "it is not made anew each time"
        await page.ask(
            "access.fetchAuthorized('/api/calls/none', { method: 'DELETE' }).then(({ status }) => done.push(status))"
        )
        await page.until("done.includes(404)")

        await page.ask("access.signOut()")
        await page.ask("void access.authorized().catch((error) => done.push(error.message))")
        await page.until(DIALOG)
        await page.press("Escape")
        await page.until("String(done.at(-1)).startsWith('This server needs a key')")


async def test_where_nobody_needs_a_key_nobody_is_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, browsing() as page:
        await page.open(f"http://127.0.0.1:{served.port}/health")
        asked = "import('/access.js').then(async (access) => [await access.authorized(), await access.token(),"
        found = await page.ask(asked + " (await access.fetchAuthorized('/api/calls')).status])")
        assert found == [None, "", 200]
        assert [each for each in page.complaints if "favicon" not in each] == []
