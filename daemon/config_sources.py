"""Where the values of the configuration come from, and what is told of those that are wrong, but for secrets."""

import json
import os
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource

from daemon.sinks.redis import without_password

PREFIX: Final = "MEDUSA_"
"""Of environment variables."""
DELIMITER: Final = "__"
"""Between a section and its key in a variable's name."""
_SHOWN_ACCESS: Final = {
    *("keys", "jwt", "roles", "token_ttl_s", "session_ttl_s", "allowed_origins", "failures_per_minute"),
    *("max_streams", "max_starts_per_minute", "max_stream_s", "max_day_s"),
    *("algorithms", "jwks_file", "audience", "issuer", "roles_claim", "leeway_s"),
}
"""What may be shown where it stands below a name that may be shown; of a whole table nothing is."""
_SHOWN_ALERTS: Final = {"rules", "webhook_timeout_s", "webhook_attempts", "webhook_queue"}
"""The URL is not among them: many services put what must not be known into it."""


def from_environment(settings: type[BaseSettings]) -> dict[str, Any]:
    """What `MEDUSA_*` says, unchecked: its mistakes are told together with the others, names that mean nothing too."""
    names = [name[len(PREFIX) :].lower() for name in os.environ if name.upper().startswith(PREFIX)]
    known = settings.model_fields
    unknown = {name: "set in the environment" for name in names if name.split(DELIMITER)[0] not in known}
    return EnvSettingsSource(settings)() | unknown


def mistake_told(mistake: ErrorDetails, environment: dict[str, Any], given: dict[str, Any]) -> str:
    """One line: the key, what is wrong, the value, and the variable that said it."""
    loc = tuple(map(str, mistake["loc"]))
    value = mistake["input"]
    shown = (
        "a secret"
        if _secret(loc)
        else f"{without_password(value) if loc == ('redis',) and isinstance(value, str) else value!r:.80}"
    )
    by_variable = _holds(environment, loc) and not _holds(given, loc)
    source = f", from {', '.join(_variables(loc))}" if by_variable else ""
    return f"  {'.'.join(loc)}: {mistake['msg'].removeprefix('Value error, ')} (got {shown}{source})"


def _secret(loc: tuple[str, ...]) -> bool:
    """Whether what stands at `loc` may be a secret: a key that is misspelled holds one as well."""
    if loc[0] == "alerts":
        return len(loc) == 1 or loc[1] not in _SHOWN_ALERTS
    if loc[0] == "access":
        named = loc[3:] if loc[1:2] == ("keys",) else loc[2:] if loc[1:2] == ("jwt",) else loc[1:]
        return not named or named[0] not in _SHOWN_ACCESS
    if loc[0] == "webrtc":
        return len(loc) == 1 or loc[1] not in ("public_address", "allowed_origins")
    return loc[0] == "telephony" and loc != ("telephony", "public_url")


def _holds(values: Any, loc: tuple[str, ...]) -> bool:
    """Whether nested `values` have something at `loc`; positions inside a list count as the list."""
    for name in loc:
        if not isinstance(values, dict):
            break
        if name not in values:
            return False
        values = values[name]
    return True


def _variables(loc: tuple[str, ...]) -> list[str]:
    """The variables that are set for the key at `loc`: its own, else its section's, else those of the keys in it."""
    known = {name.upper(): name for name in os.environ}  # pydantic-settings takes small letters too
    for length in range(len(loc), 0, -1):
        name = PREFIX + DELIMITER.join(loc[:length]).upper()
        if name in known:
            return [known[name]]
    below = PREFIX + DELIMITER.join(loc).upper() + DELIMITER
    return sorted(known[name] for name in known if name.startswith(below))


def no_json(settings: type[BaseSettings]) -> list[str]:
    """The variables of sections and lists whose value is no JSON."""
    return [name for name in sorted(os.environ) if _is_compound(name, settings) and not _is_json(os.environ[name])]


def _is_compound(variable: str, settings: type[BaseSettings]) -> bool:
    section, _, key = variable.upper().removeprefix(PREFIX).lower().partition(DELIMITER)
    field = settings.model_fields.get(section)
    default = field.default if field else None
    return isinstance(getattr(default, key, None) if key else default, BaseModel | tuple | dict)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested values, of which those that lie `over` others win."""
    result = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if both else value
    return result
