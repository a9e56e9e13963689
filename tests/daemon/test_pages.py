"""The pages in a real Chromium, as a person uses them: with the keyboard, on a phone, in the dark."""

import json
from typing import Any, Final

import pytest

from daemon.sinks.redis import DEFAULT_STREAMS
from tests.daemon.browser import NO_BROWSER, PROGRAM, Page, browsing
from tests.daemon.calls.build import alert, begin, end, result
from tests.daemon.calls.test_board import Fields, Site, a_call, fresh_site, recent
from tests.daemon.test_wire import MESSAGES

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NO_BROWSER)

EVIL: Final = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
NARROWEST: Final = 360


def hostile() -> list[Fields]:
    """A call in which everything that a client chooses is HTML."""
    role = EVIL.replace(",", "")[:64]
    session = "session-of-evil"
    return recent(
        begin(session, role=role, call="evil") | {"meta_note": EVIL},
        result(0, 1, 4, "angry", session=session, role=role, call="evil") | {"text": EVIL},
        alert(0, 4, call="evil", role=role, rule=EVIL) | {"session": session},
        end(session, at_s=10, received_s=10, role=role, call="evil") | {"reason": EVIL},
    )


def base(found: Site) -> str:
    return str(found.http.base_url).rstrip("/")


async def clicked(page: Page, selector: str) -> None:
    """Clicks what is there and not disabled."""
    await page.until(f"document.querySelector({selector!r}) && !document.querySelector({selector!r}).disabled")
    await page.ask(f"document.querySelector({selector!r}).click()")


async def test_a_person_finds_the_call_reads_it_replays_it_and_deletes_it() -> None:
    async with fresh_site() as found, browsing() as page:
        await found.add(*a_call("calm", "neutral"), *a_call("upset", over=False))
        await page.open(f"{base(found)}/calls")
        await page.until("document.querySelectorAll('.call').length === 2")
        first, second = await page.texts(".call")
        assert all(words in first for words in ("live", "upset", "attention", "angry", "happy", "70%"))
        assert "ended" in second
        assert await page.nameless() == []

        await page.ask("document.querySelector('.call-link').focus()")
        await page.press("Enter")
        await page.until("document.querySelectorAll('.turn').length === 2")
        assert await page.texts(".detail-name") == ["upset"]
        spoken = await page.texts(".turn")
        assert all(words in spoken[1] for words in ("Customer", "angry", "70%", "hello"))
        assert await page.ask("document.querySelector('.delete').disabled"), "it still lasts"
        assert await page.nameless() == []

        session = "session-of-upset"
        news = result(1, 10, 14, "sad", session=session, call="upset")
        await found.add(*recent(news | {"text": "still here"}))
        await page.until("document.querySelectorAll('.turn').length === 3")
        assert "still here" in (await page.texts(".turn"))[2]
        await found.add(*recent(alert(1, 14, call="upset") | {"session": session}))
        await page.until("document.querySelectorAll('.alert').length === 1")
        assert await page.ask("document.querySelector('#announcer').textContent") == "Alert: upset, customer."

        await page.ask("document.querySelector('.scrub').focus()")
        await clicked(page, ".turn .when")
        states = await page.ask("[...document.querySelectorAll('.turn')].map((turn) => turn.dataset.state)")
        assert states == ["now", "future", "future"]
        await clicked(page, ".play")
        await page.until("document.querySelectorAll('.turn[data-state=past]').length === 3")
        assert await page.texts(".play") == ["Replay"], "it stopped at the end"

        await found.add(*recent(end(session, at_s=20, received_s=20, call="upset")))
        await page.until("document.querySelector('.detail .badge').textContent === 'ended'")
        await clicked(page, ".delete")
        await page.until("document.querySelector('#confirm').open")
        await page.press("Escape")
        await page.until("!document.querySelector('#confirm').open")
        assert set(await found.names()) == {"calm", "upset"}, "thinking again deletes nothing"
        await clicked(page, ".delete")
        await clicked(page, "#confirm .danger")
        await page.until("document.querySelectorAll('.call').length === 1")
        assert await found.redis.exists(DEFAULT_STREAMS.call_key("upset")) == 0
        assert await found.names() == ["calm"]
        assert page.complaints == []


async def test_what_a_client_says_is_text() -> None:
    async with fresh_site() as found, browsing() as page:
        await found.add(*hostile())
        await page.open(f"{base(found)}/calls#evil")
        await page.until("document.querySelectorAll('.turn').length === 1")
        assert EVIL in (await page.texts(".turn .text"))[0]
        assert EVIL in (await page.texts(".facts"))[0]
        assert EVIL in (await page.texts(".alert"))[0]
        assert await page.ask("document.querySelectorAll('main img, main script').length") == 0
        assert await page.ask("document.title") == "evil · MEDUSA-RT calls"
        assert page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_on_a_phone_nothing_is_cut_off(scheme: str) -> None:
    async with fresh_site() as found, browsing() as page:
        await found.add(*a_call("x" * 128), *a_call("one"), *recent(alert(0, 9, call="one")))
        await page.open(f"{base(found)}/calls", width=NARROWEST, height=740, scheme=scheme)
        await page.until("document.querySelectorAll('.call').length === 2")
        overflow = "document.documentElement.scrollWidth - innerWidth"
        assert await page.ask(overflow) == 0
        await page.ask("location.hash = 'one'")
        await page.until("document.querySelectorAll('.turn').length === 2")
        assert await page.ask(overflow) == 0
        shown = "[...document.querySelectorAll('.list-pane, .detail-pane')].map((pane) => pane.offsetParent !== null)"
        assert await page.ask(shown) == [False, True]
        heights = "[...document.querySelectorAll('.player button, .back')].map((one) => one.offsetHeight)"
        assert all(height == 0 or height >= 24 for height in await page.ask(heights)), "big enough for a finger"
        await clicked(page, ".back")
        await page.until(f"{shown}.join() === 'true,false'")
        ground: Any = await page.ask("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(245, 246, 248)", "dark": "rgb(14, 17, 21)"}[scheme]


async def test_the_page_says_that_redis_is_away_and_when_it_is_back() -> None:
    async with fresh_site() as found, browsing() as page:
        await page.open(f"{base(found)}/calls")
        await page.until("document.querySelector('#connection-words').textContent === 'Live'")
        await found.add(*a_call("one"))
        # It came from Redis, so the board has reached it: nothing but us touches its problem from now on.
        await page.until("document.querySelectorAll('.call').length === 1")
        found.board.problem = "cannot reach Redis: gone"
        await page.until("document.querySelector('#connection-words').textContent === 'Reconnecting …'")
        assert await page.texts("#notices .notice") == ["cannot reach Redis: gone"]
        found.board.problem = None
        await page.until("document.querySelectorAll('#notices .notice').length === 0")


async def test_the_live_page_has_its_styles_and_no_complaints() -> None:
    async with fresh_site() as found, browsing() as page:
        await page.open(f"{base(found)}/")
        await page.until("document.querySelector('#toggle')")
        styles = await page.ask(
            "(({ borderRadius, minHeight }) => [borderRadius, minHeight])(getComputedStyle(document.querySelector('#demo')))"
        )
        assert styles == ["999px", "44px"]
        assert await page.ask("getComputedStyle(document.body).maxWidth") == "1120px"
        assert await page.nameless() == []
        await clicked(page, "footer a")
        await page.until("document.title === 'MEDUSA-RT calls'")
        assert page.complaints == []


async def test_the_live_page_tells_what_only_some_results_have() -> None:
    """Those of shipped recipes by what they listen to, others by name; gone again with a result that has none."""
    messages = [MESSAGES[name] for name in ("emotion_shared", "emotion_final", "emotion_reduced")]
    messages.insert(0, messages[0] | {"modality_share": {"whisper": 0.4, "prosody": 0.36, "mood": 0.24}})
    async with fresh_site() as found, browsing() as page:
        await page.open(f"{base(found)}/")
        lines = await page.ask(f"""(async () => {{
            const {{ Lane }} = await import("/lane.js");
            const lane = new Lane("agent", {{ trained_classes: ["angry"], trained_attributes: [] }});
            document.body.append(lane.element);
            return {json.dumps(messages)}.map((message) => {{
                lane.show(message);
                const line = lane.part("shares");
                const stage = lane.part("stage");
                return [line.innerText, line.title, line.hidden, stage.textContent, stage.title];
            }});
        }})()""")
    (mixed, title, _, _, _), (known, _, shown, _, _), (nothing, no_title, hidden, calm, _), reduced = lines
    assert mixed == "76% voice · 24% mood"
    assert title.endswith("whisper 40%, prosody 36%, mood 24%")
    assert (known, shown) == ("50% voice · 33% words · 17% both together", False)
    assert (nothing, no_title, hidden) == ("", "", True)
    assert "in haste" not in calm
    assert reduced[3].endswith("so far, 400 ms · in haste")
    assert reduced[4].endswith("voice, course alone were asked.")
    assert page.complaints == []
