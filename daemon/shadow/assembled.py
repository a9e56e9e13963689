"""The shadow that a configuration describes, and what the rest of the daemon must do because of it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.config import Config
from daemon.engine import load_models, running_engine
from daemon.errors import UpstreamError
from daemon.metrics import Metrics
from daemon.shadow.comparing import Shadow, running_shadow
from daemon.swap import Bundles

_DELETE: Final = "DELETE"
_GONE: Final = (200, 404)
"""What the deletion of a call answers where there is none any more."""


@asynccontextmanager
async def shadow_of(
    config: Config, url: str, metrics: Metrics, bundles: Bundles | None
) -> AsyncIterator[Shadow | None]:
    """A second bundle beside those that are served; None where the configuration names none.

    Raises:
        ConfigError: if it cannot be loaded.
    """
    if config.models.shadow is None or bundles is None:
        yield None
        return
    settings = config.engine_settings()
    settings = replace(settings, batch=replace(settings.batch, workers=1))
    models = await asyncio.to_thread(load_models, config.models.shadow, settings)
    async with running_engine(models, settings) as engine:
        shadow = Shadow(engine, bundles.has_room, url, metrics, config.streams.maxlen)
        async with running_shadow(shadow, url, config.policy.retain_s):
            bundles.listen(shadow.hears)
            yield shadow


def forgetting(routes: Sequence[Route], shadow: Shadow | None) -> list[Route]:
    """The routes of calls, of which each that deletes one has the shadow forget it too.

    It does so once the call is gone: a call that still lasts is not deleted, and nothing of it comes after its end. Where that
    fails, the request can be made again, for a call that is not there.
    """
    if shadow is None:
        return list(routes)
    return [_forgetting(route, shadow) if _DELETE in (route.methods or ()) else route for route in routes]


def _forgetting(route: Route, shadow: Shadow) -> Route:
    async def delete(request: Request) -> Response:
        response: Response = await route.endpoint(request)
        if response.status_code in _GONE:
            try:
                await shadow.forget(request.path_params["call"])
            except UpstreamError as error:
                headers = {"Retry-After": "5", "Cache-Control": "no-store"}
                return JSONResponse({"error": str(error)}, 503, headers=headers)
        return response

    return Route(route.path, delete, methods=[_DELETE])
