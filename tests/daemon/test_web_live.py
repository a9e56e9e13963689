"""The live page and foreign WebRTC clients in a real Chromium, with a recording for its microphone."""

import asyncio
import base64
import json
import re
import shutil
import wave
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import numpy as np
import pytest
import pytest_asyncio

from model.audio import SAMPLE_RATE_HZ
from model.recording import read_mono
from tests import npm
from tests.daemon.browser import NO_BROWSER, PROGRAM, Page, browsing
from tests.daemon.conftest import ASSETS, Served, assert_same_results, finals, pieces
from tests.daemon.transports.conftest import offline, ordered
from tests.daemon.transports.whip_client import http_call, needs_network

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(PROGRAM is None, reason=NO_BROWSER),
    needs_network,
]

AXE: Final = "axe-core@4.14.1"
WHIP_CLIENT: Final = "whip-whep@1.2.0"
LEAD_S: Final = 1.0
"""Silence before the first word: by then the connection stands."""
EDGE_MS: Final = 150
"""By how much Opus moves the edges that are heard."""
CODEC_COST: Final = 0.2
"""Of a probability: Opus at a browser's bit rate, and its gain control."""
LOOKS: Final = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
NO_WEBRTC: Final = "delete window.RTCPeerConnection"
FOREIGN: Final = '<!doctype html><html lang="en"><title>another site</title><link rel="icon" href="data:," /></html>'

Json = dict[str, Any]


@pytest.fixture(scope="module")
def recording() -> bytes:
    """Two sentences behind some silence, linear16 at 16 kHz."""
    audio = np.concatenate(
        [np.zeros(round(LEAD_S * SAMPLE_RATE_HZ), np.float32), read_mono(ASSETS / "two_sentences.flac")]
    )
    pcm: bytes = np.round(audio * 32767).astype("<i2").tobytes()
    return pcm


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody else's site serves."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "index.html").write_text(FOREIGN)
    return folder


@pytest.fixture(scope="module")
def foreign(foreign_folder: Path) -> Iterator[str]:
    """The address of that site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=foreign_folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def daemon_flags(foreign: str) -> Json:
    return {"webrtc": {"allowed_origins": [foreign]}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page(recording: bytes, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Page]:
    path = tmp_path_factory.mktemp("microphone") / "voice.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(recording)
    async with browsing(
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={path}%noloop",
    ) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spoken(served: Served, page: Page) -> str:
    """A person pressed Start, said both sentences and pressed Stop; the id of that call. The page still shows it."""
    await page.open(f"http://127.0.0.1:{served.port}/")
    await page.click("#toggle")
    await page.until("document.querySelectorAll('.utterance').length === 2")
    assert await page.texts("#transport") == ["over WebRTC"]
    await page.click("#toggle")
    await page.until("document.querySelector('#connection-words').textContent === 'Not connected'")
    (ids,) = await page.texts("#ids")
    return ids.rpartition(" ")[2]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


async def test_the_microphone_gives_what_the_recording_gives_offline(
    served: Served, spoken: str, recording: bytes
) -> None:
    got = ordered(await served.events(spoken))
    wanted = await offline(recording, "linear16", SAMPLE_RATE_HZ, ("customer",))
    assert len(got) == len(wanted) == 2
    shift = float(got[0]["start_ms"]) - float(wanted[0]["start_ms"])
    assert -LEAD_S * 1000 < shift <= EDGE_MS, "the stream begins once it is connected, within the silence"
    for one, other in zip(got, wanted, strict=True):
        assert one["top"] == other["top"]
        assert words(one["text"]) == words(other["text"])
        for edge in ("start_ms", "end_ms"):
            moved = float(one[edge]) - shift  # by an edge that has moved itself
            assert moved == pytest.approx(float(other[edge]), abs=2 * EDGE_MS)
        for name in (name for name in one if name.startswith("p_")):
            assert float(one[name]) == pytest.approx(float(other[name]), abs=CODEC_COST), name


async def test_the_page_shows_and_says_what_the_stream_told(served: Served, page: Page, spoken: str) -> None:
    told = ordered(await served.events(spoken))
    shown = await page.texts(".utterance")
    for event, row in zip(told, reversed(shown), strict=True):
        assert all(part in row for part in (event["text"], event["top"], f"{round(100 * float(event['confidence']))}%"))
    phrases = await page.texts(".phrase")
    assert [phrase.split() for phrase in phrases] == [[*event["text"].split(), event["top"]] for event in told]
    emotions = await page.ask("[...document.querySelectorAll('.phrase')].map((one) => one.dataset.emotion)")
    assert emotions == [event["top"] for event in told], "the colour is that of the word beside it"
    (announced,) = await page.ask("[document.querySelector('#announcer').textContent]")
    assert announced.startswith(told[-1]["top"])
    assert announced.endswith(told[-1]["text"])
    assert await page.texts(".top") == [told[-1]["top"]]
    assert "after its end" in (await page.texts(".stage"))[0]
    pixels = "document.querySelector('canvas').getContext('2d').getImageData(0, 0, 400, 60).data.buffer"
    colours = f"new Set(new Uint32Array({pixels})).size"
    assert await page.ask(colours) > 4, "the posterior is drawn"
    light = await page.ask("document.querySelector('canvas').toDataURL()")
    await page.look(1280, 900, "dark")
    await page.until(f"document.querySelector('canvas').toDataURL() !== {light!r}")
    await page.look(1280, 900, "light")
    await page.until(f"document.querySelector('canvas').toDataURL() === {light!r}")
    assert await page.texts(".notice") == []
    assert await page.nameless() == []
    assert page.complaints == []


async def serious(page: Page) -> list[str]:
    """What axe-core finds that keeps people from using a page."""
    if not await page.ask("Boolean(window.axe)"):
        folder = npm.installed(AXE) / "node_modules" / "axe-core"
        await page.ask(f"{(folder / 'axe.min.js').read_text(encoding='utf-8')}; 0")
    found: Json = json.loads(await page.ask("axe.run().then((found) => JSON.stringify(found))"))
    assert len(found["passes"]) > 10
    return [
        f"{one['id']}: {node['html']} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
async def test_the_live_page_is_accessible(page: Page, spoken: str, width: int, scheme: str) -> None:
    await page.look(width, 850, scheme)
    assert await page.ask("document.documentElement.scrollWidth <= innerWidth")
    assert await serious(page) == []


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
async def test_the_dashboard_is_accessible(served: Served, page: Page, spoken: str, width: int, scheme: str) -> None:
    await page.open(f"http://127.0.0.1:{served.port}/calls", width=width, scheme=scheme)
    await page.until("document.querySelectorAll('.call').length")
    assert await serious(page) == []
    await page.ask(f"location.hash = {spoken!r}")
    await page.until("document.querySelectorAll('.turn').length === 2")
    assert await serious(page) == []


async def test_without_webrtc_the_page_takes_a_websocket_and_says_so(served: Served, page: Page) -> None:
    script = await page.before(NO_WEBRTC)
    await page.open(f"http://127.0.0.1:{served.port}/")
    await page.click("#toggle")
    await page.until("document.querySelector('.stage')?.textContent.startsWith('so far')")
    await page.never(script)
    assert await page.texts("#transport") == ["over WebSocket"]
    (notice,) = await page.texts(".notice")
    assert notice == "Audio goes over a WebSocket, for WebRTC does not work here: this browser has no WebRTC."
    await page.click("#toggle")
    await page.until("document.querySelector('#connection-words').textContent === 'Not connected'")
    assert len(await page.texts(".phrase")) == 1, "what was said until then is still scored"
    assert page.complaints == []


async def test_a_foreign_client_publishes_from_another_site(
    served: Served, page: Page, foreign: str, foreign_folder: Path
) -> None:
    """npm's whip-whep; its results are read as server-sent events."""
    shutil.copy(npm.installed(WHIP_CLIENT) / "node_modules" / "whip-whep" / "whip.js", foreign_folder)
    await page.open(foreign)
    url = f"http://127.0.0.1:{served.port}/whip?call_id=foreign&roles=caller"
    heard: list[Json] = await page.ask(f"""(async () => {{
        const {{ WHIPClient }} = await import("/whip.js");
        const peer = new RTCPeerConnection();
        const microphone = await navigator.mediaDevices.getUserMedia({{ audio: true }});
        peer.addTransceiver(microphone.getAudioTracks()[0], {{ direction: "sendonly" }});
        const client = new WHIPClient();
        await client.publish(peer, {json.dumps(url)});
        const heard = [];
        const events = new EventSource(`${{client.resourceURL}}/events`);
        return new Promise((resolve) => {{
            events.onmessage = ({{ data }}) => {{
                const message = JSON.parse(data);
                heard.push(message);
                if (message.type === "emotion" && message.final) client.stop();
                if (message.type !== "session.closed") return;
                events.close();
                resolve(heard);
            }};
        }});
    }})()""")
    assert [message["seq"] for message in heard] == list(range(len(heard)))
    found = finals(heard)
    assert [message["role"] for message in found] == ["caller"]
    assert [message["top"] for message in found] == [event["top"] for event in ordered(await served.events("foreign"))]
    assert words(found[0]["text"])[:2] == ["good", "morning"]
    # It closes the connection, which ends the session, and deletes it then: the browser reports that answer, a 404.
    assert [complaint for complaint in page.complaints if "/whip/" not in complaint] == []


async def test_our_client_publishes_from_another_site(served: Served, page: Page, foreign: str) -> None:
    await page.open(foreign)
    heard: list[Json] = await page.ask(f"""(async () => {{
        const {{ publish }} = await import("http://127.0.0.1:{served.port}/client/medusa.js");
        const microphone = await navigator.mediaDevices.getUserMedia({{ audio: true }});
        const session = await publish(microphone, {{ roles: ["caller"], callId: "ours", interimMs: 0 }});
        const heard = [];
        for await (const message of session) {{
            heard.push(message);
            if (message.type === "speech.started") session.close();
        }}
        return heard;
    }})()""")
    assert [message["type"] for message in heard] == ["session.created", "speech.started", "emotion", "session.closed"]
    assert [message["seq"] for message in heard] == [0, 1, 2, 3]
    assert heard[0]["call"] == "ours"
    assert heard[2]["role"] == "caller"
    refused = await page.ask(f"""(async () => {{
        const {{ publish }} = await import("http://127.0.0.1:{served.port}/client/medusa.js");
        const silence = new AudioContext().createMediaStreamDestination().stream;
        return publish(silence, {{ language: "xx" }}).catch(({{ name, code, status }}) => [name, code, status]);
    }})()""")
    assert refused == ["MedusaError", "bad_language", 400]


async def test_the_page_of_the_readme(served: Served, page: Page, foreign: str, foreign_folder: Path) -> None:
    """As it stands there, but for the address."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```html\n(.*?)```", readme, re.DOTALL)
    assert block.count("http://localhost:8765/") == 1
    own = block.replace("localhost:8765", f"127.0.0.1:{served.port}")
    (foreign_folder / "page.html").write_text(own, encoding="utf-8")
    await page.open(f"{foreign}/page.html")
    await page.click("button")
    await page.until("/^\\w+: good morning/i.test(document.querySelector('p').textContent)")
    assert [complaint for complaint in page.complaints if "favicon" not in complaint] == []


async def test_a_microphone_survives_another_way_to_the_server(served: Served, page: Page) -> None:
    """As when a telephone leaves the wireless network: ICE starts anew, the session stays."""
    await page.open(f"http://127.0.0.1:{served.port}/")
    told: Json = await page.ask("""(async () => {
        const { publish } = await import("/client/medusa.js");
        const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
        const session = await publish(microphone, { interimMs: 0 });
        const name = () => session.peer.remoteDescription.sdp.match(/a=ice-ufrag:(.*)/)[1];
        const before = name();
        const heard = [];
        for await (const message of session) {
            heard.push(message);
            if (message.type === "speech.started" && heard.length === 2) await session.mend();
            if (message.type === "emotion") session.close();
        }
        return { heard, changed: before !== name() };
    })()""")
    assert told["changed"]
    assert [m["type"] for m in told["heard"]] == ["session.created", "speech.started", "emotion", "session.closed"]
    assert words(told["heard"][2]["text"])[:2] == ["good", "morning"]
    assert page.complaints == []


async def test_a_microphone_that_is_given_up_early_leaves_nothing_behind(served: Served, page: Page) -> None:
    await page.open(f"http://127.0.0.1:{served.port}/")
    late = await page.ask("""(async () => {
        const { publish } = await import("/client/medusa.js");
        const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
        const giving = new AbortController();
        const { fetch } = window;
        window.fetch = async (...asked) => { const answer = await fetch(...asked); giving.abort(); return answer; };
        const found = await publish(microphone, { signal: giving.signal }).catch(({ name }) => name);
        window.fetch = fetch;
        return found;
    })()""")
    assert late == "AbortError"
    await asyncio.wait_for(until_idle(served), 10)


async def until_idle(served: Served) -> None:
    """Returns once no stream is open."""
    while "\nmedusa_streams 0.0" not in (await served.get("/metrics"))[1]:  # noqa: ASYNC110 - no event of ours
        await asyncio.sleep(0.05)


async def test_a_stream_of_samples_survives_its_connection(served: Served, page: Page, recording: bytes) -> None:
    await page.open(f"http://127.0.0.1:{served.port}/")
    heard: list[Json] = await page.ask(f"""(async () => {{
        const sockets = [];
        const Made = window.WebSocket;
        window.WebSocket = class extends Made {{
            constructor(...given) {{ super(...given); sockets.push(this); }}
        }};
        const {{ connect }} = await import("/client/medusa.js");
        const audio = Uint8Array.from(atob({base64.b64encode(recording).decode()!r}), (byte) => byte.charCodeAt());
        const session = await connect({{ interimMs: 0, onInterrupted: () => 50 }});
        for (let at = 0; at < audio.length; at += 1280) session.send(audio.subarray(at, at + 1280));
        const heard = [];
        for await (const message of session) {{
            heard.push(message);
            // Not 1000 or 1001: those mean that the client wanted it.
            if (message.type === "speech.started" && sockets.length === 1) sockets[0].close(4000);
            if (message.type === "session.resumed") session.close();
        }}
        window.WebSocket = Made;
        return heard;
    }})()""")
    numbered = [message["seq"] for message in heard if message["type"] != "session.resumed"]
    assert numbered == list(range(len(numbered)))
    assert sum(message["type"] == "session.resumed" for message in heard) == 1
    assert_same_results(finals(heard), finals(await served.stream(pieces(recording), interim_ms=0)))


async def test_the_module_may_be_imported_from_any_site(served: Served) -> None:
    answer = await http_call(served.port, "GET", "/client/medusa.js", origin="https://calls.example.org")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["content-type"].startswith("text/javascript")
