"""`/api/bundle`: which bundle is served, and the change to another one; docs/operations.md."""

from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon import wire
from daemon.access.usage import account_of
from daemon.errors import CapacityError, ConfigError
from daemon.swap import Bundles

PATH: Final = "/api/bundle"


class BundleApi:
    """The resource. The gate lets in whoever may read to look, and administrators to change.

    Args:
        bundles: that are served; None in a gateway, which has no models.
    """

    def __init__(self, bundles: Bundles | None) -> None:
        self._bundles = bundles

    def routes(self) -> list[Route]:
        """For the application."""
        return [Route(PATH, self.show, methods=["GET"]), Route(PATH, self.swap, methods=["POST"])]

    async def show(self, _: Request) -> Response:
        """The bundle that new streams get, and open streams by bundle."""
        if self._bundles is None:
            return _elsewhere()
        body = {
            "model": self._bundles.engine.bundle_id,
            "loading": self._bundles.loading,
            "streams": self._bundles.streams(),
        }
        return JSONResponse(body, headers={"Cache-Control": "no-store"})

    async def swap(self, request: Request) -> Response:
        """Gives new streams the bundle of a folder `name`, without one the configured one; answers when that is done."""
        if self._bundles is None:
            return _elsewhere()
        try:
            swapped = await self._bundles.swap(request.query_params.get("name"), who=account_of(request.scope).name)
        except ConfigError as error:
            return _problem(422, "bad_bundle", str(error))
        except CapacityError as error:
            return _problem(409, "busy", str(error))
        return JSONResponse({"model": swapped.model, "before": swapped.before, "retiring": swapped.retiring})


def _elsewhere() -> Response:
    return _problem(409, "no_models", "a gateway has no models: start workers and gateways with the other bundle")


def _problem(status: int, code: str, message: str) -> Response:
    headers = {"Cache-Control": "no-store"}
    return JSONResponse(wire.error(code, message) | {"error": message}, status, headers=headers)
