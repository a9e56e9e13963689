"""Whether the environment asks for traces: the variables are OpenTelemetry's own, not ours."""

from collections.abc import Mapping
from typing import Final

from daemon.errors import ConfigError

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP: Final = "http/protobuf"


def traces_wanted(environ: Mapping[str, str]) -> bool:
    """True if an endpoint or the exporter `otlp` is named, and nothing switches traces off.

    Raises:
        ConfigError: if they ask for what we do not have.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get(_EXPORTER, "").strip()
    if exporter == "none" or not (exporter or any(environ.get(name) for name in _ENDPOINTS)):
        return False
    if exporter not in ("", "otlp"):
        raise ConfigError(f"{_EXPORTER} is {exporter!r}; traces go out as otlp, or not at all (none)")
    for name in _PROTOCOLS:
        if (protocol := environ.get(name, _HTTP)) != _HTTP:
            raise ConfigError(f"{name} is {protocol!r}; traces go out over {_HTTP} (port 4318 of most collectors)")
        if name in environ:
            break
    return True
