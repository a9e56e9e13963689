"""What a process says of itself."""

import json

import pytest
from starlette.requests import Request

from daemon.metrics import Metrics
from daemon.probes import probes


async def asked(path: str, problem: str | None = None, stuck: str | None = None) -> tuple[int, str]:
    routes = {
        route.path: route.endpoint for route in probes(lambda: "bundle-1", lambda: problem, lambda: stuck, Metrics())
    }
    answer = await routes[path](Request({"type": "http", "method": "GET", "path": path, "headers": []}))
    return answer.status_code, answer.body.decode()


@pytest.mark.parametrize(
    ("stuck", "status", "body"),
    [
        (None, 200, {"status": "alive", "model": "bundle-1"}),
        (
            "the asr model has been at one batch for 75 s",
            503,
            {"status": "stuck", "model": "bundle-1", "problem": "the asr model has been at one batch for 75 s"},
        ),
    ],
)
async def test_a_process_is_alive_until_its_engine_is_stuck(
    stuck: str | None, status: int, body: dict[str, str]
) -> None:
    """What keeps it from new work for a while is no reason to end it."""
    code, text = await asked("/health", problem="Redis is loading its data", stuck=stuck)
    assert (code, json.loads(text)) == (status, body)


@pytest.mark.parametrize(("problem", "status"), [(None, 200), ("Redis is loading its data", 503)])
async def test_a_process_is_ready_if_nothing_is_wrong(problem: str | None, status: int) -> None:
    code, text = await asked("/ready", problem=problem)
    assert (code, json.loads(text)) == (status, {"ready": problem is None, "problem": problem})


async def test_metrics_are_shown() -> None:
    code, text = await asked("/metrics")
    assert code == 200
    assert "# HELP medusa_streams" in text
