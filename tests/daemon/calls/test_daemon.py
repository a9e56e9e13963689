"""A whole daemon: alerts and a summary of a real call, in Redis, at the client, at the webhook and at the API."""

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from daemon.calls.webhook import SIGNATURE, signature
from daemon.config import load_config
from daemon.errors import ConfigError
from daemon.events import read_call
from daemon.server import running_daemon
from model.audio import SAMPLE_RATE_HZ
from tests.daemon.calls.test_webhook import receiving
from tests.daemon.conftest import ASSETS, CALL, Served, finals, linear16_of, of_type, pieces, serving

SECRET = "shared"
RULE = {"name": "anything", "role": "customer", "emotions": ["angry", "sad", "happy", "fear", "disgust", "neutral"]}
RULES = [{**RULE, "above": 0.5, "utterances": 1, "cooldown_s": 0}]
BEGINNING = 10 * SAMPLE_RATE_HZ * 4
"""Bytes of the call in which each party speaks once, at least."""


def request(served: Served, path: str, method: str = "GET") -> tuple[int, dict[str, str], Any]:
    asked = urllib.request.Request(f"http://127.0.0.1:{served.port}{path}", method=method)
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            body = answer.read()
            return answer.status, dict(answer.headers), body
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


async def until_summary(served: Served, call: str) -> list[dict[str, str]]:
    async with asyncio.timeout(60):
        while True:
            entries = await read_call(served.daemon.redis_url, call)
            if entries and entries[-1]["type"] == "call.summary":
                return entries
            await asyncio.sleep(0.02)


async def test_a_call_with_alerts(tmp_path: Path) -> None:
    async with receiving() as (receiver, settings):
        alerts = {"rules": RULES, "webhook_url": settings.url, "webhook_secret": SECRET}
        async with serving(tmp_path, alerts=alerts) as served:
            chunks = pieces(linear16_of(CALL)[:BEGINNING], 32_000)
            messages = await served.stream(chunks, channels=2, roles="customer,agent", interim_ms=0, call_id="garden")
            entries = await until_summary(served, "garden")
            _, _, metrics = await asyncio.to_thread(request, served, "/metrics")
            status, headers, body = await asyncio.to_thread(request, served, "/api/calls/garden")
            page_status, page_headers, page = await asyncio.to_thread(request, served, "/calls")
            root = await asyncio.to_thread(request, served, "/")
            gone = await asyncio.to_thread(request, served, "/api/calls/garden", "DELETE")
            assert await read_call(served.daemon.redis_url, "garden") == []

    told = of_type(messages, "alert")
    assert told
    for alert in told:
        raising = [m for m in finals(messages) if m["role"] == "customer" and m["utterance"] == alert["utterance"]]
        assert messages.index(raising[0]) < messages.index(alert), "behind the result that raised it"
    stored = [fields for fields in entries if fields["type"] == "alert"]
    assert [fields["event_id"] for fields in stored] == [alert["event_id"] for alert in told]
    posted = [(json.loads(sent), headers_[SIGNATURE.lower()], sent) for _, headers_, sent in receiver.requests]
    assert [said["event_id"] for said, _, _ in posted] == [alert["event_id"] for alert in told]
    assert all(signed == signature(sent, SECRET) for _, signed, sent in posted)
    assert f'medusa_alerts_total{{rule="anything"}} {len(told)}.0' in metrics.decode()

    summary = entries[-1]
    assert entries[-2]["type"] == "call.ended"
    assert [entry["type"] for entry in entries].count("call.summary") == 1
    counts = {role: sum(m["role"] == role for m in finals(messages)) for role in ("customer", "agent")}
    assert (int(summary["r0_utterances"]), int(summary["r1_utterances"])) == (counts["customer"], counts["agent"])
    assert int(summary["alerts"]) == len(told)
    assert float(summary["duration_ms"]) == pytest.approx(messages[-1]["totals"]["received_ms"])
    assert sum(float(summary[name]) for name in summary if name.startswith("r0_share_")) == pytest.approx(1, abs=1e-5)

    assert (status, headers["cache-control"]) == (200, "no-store")
    call = json.loads(body)
    assert len(call["said"]) == len(finals(messages))
    assert [raised["event_id"] for raised in call["raised"]] == [alert["event_id"] for alert in told]
    assert call["analysis"]["roles"][0]["utterances"] == counts["customer"]

    assert (page_status, b"MEDUSA-RT calls" in page) == (200, True)
    for found in (page_headers, root[1], headers):
        assert "frame-ancestors 'none'" in found["content-security-policy"]
        assert "unsafe" not in found["content-security-policy"]
        assert found["x-content-type-options"] == "nosniff"
    assert gone[0] == 200


async def test_without_rules_there_are_no_alerts_and_one_summary(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        messages = await served.stream(pieces(linear16_of(ASSETS / "two_sentences.flac")), call_id="plain")
        entries = await until_summary(served, "plain")
    assert not of_type(messages, "alert")
    assert [fields["type"] for fields in entries if not fields["type"].startswith("emotion")] == [
        "call.started",
        "call.ended",
        "call.summary",
    ]


async def test_a_rule_that_the_bundle_can_never_meet_stops_the_start(tmp_path: Path) -> None:
    rule = {**RULE, "emotions": ["surprise"], "above": 0.5, "utterances": 1}
    config = load_config(
        None, {"alerts": {"rules": [rule]}, "streams": {"embedded_port": 0, "spool_dir": tmp_path}, "port": 0}
    )
    with pytest.raises(ConfigError, match="waits for surprise, of which this bundle knows none"):
        async with running_daemon(config):
            raise AssertionError("it started")
