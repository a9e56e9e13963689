"""What every process of ours has around its own work: an HTTP server that leaves signals to us, and its probes."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.metrics import Metrics


class Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling: it would cut streams off before they are finished."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to whoever runs it."""
        yield

    async def begun(self, serving: "asyncio.Task[None]") -> None:
        """Returns once it listens, or `serving`, its task, has ended."""
        while not self.started and not serving.done():  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)


def told_to_stop() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


Problem = Callable[[], str | None]
"""What is wrong, None if nothing is."""


def probes(bundle_id: Callable[[], str], problem: Problem, stuck: Problem, metrics: Metrics) -> list[Route]:
    """`/health`, `/ready` and `/metrics`.

    Args:
        bundle_id: of the models that new work is for.
        problem: why there should be no work for us now.
        stuck: what only another process can mend.
        metrics: to show.
    """

    async def health(_: Request) -> Response:
        found = stuck()
        status = {"status": "alive" if found is None else "stuck", "model": bundle_id()}
        return JSONResponse(status if found is None else status | {"problem": found}, 200 if found is None else 503)

    async def ready(_: Request) -> Response:
        found = problem()
        return JSONResponse({"ready": found is None, "problem": found}, 200 if found is None else 503)

    async def metrics_page(_: Request) -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics_page)]
