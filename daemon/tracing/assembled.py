"""The traces that the environment asks for."""

import asyncio
import importlib
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from daemon.errors import ConfigError
from daemon.tracing.wanted import traces_wanted

if TYPE_CHECKING:  # the extra may not be installed
    from daemon.tracing.spans import Tracing

_NEEDED: Final = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
_LAST_SPANS_S: Final = 3.0
"""What a collector does not take within that, when we end, is lost: nobody waits for traces."""


def check_traces() -> bool:
    """Whether OTEL_* asks for traces.

    Raises:
        ConfigError: if it does, and they cannot be had.
    """
    if not traces_wanted(os.environ):
        return False
    try:
        for module in _NEEDED:
            importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"OTEL_* asks for traces, but {error.name} is not installed: pip install 'medusa-rt[otel]', or unset "
            "OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_EXPORTER"
        ) from error
    return True


@asynccontextmanager
async def tracing_of() -> "AsyncIterator[Tracing | None]":
    """Traces over OTLP where OTEL_* asks for them, else None.

    Raises:
        ConfigError: as for `check_traces`.
    """
    if not check_traces():
        yield None
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from daemon.tracing.spans import Tracing

    resource = Resource.create()  # of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "medusa-daemon"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield Tracing(provider)
    finally:
        # A thread that the interpreter does not wait for: a collector that is away takes as long as its timeout.
        ending = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, _LAST_SPANS_S)
