"""Where a daemon listens: its socket, and how a client on this machine writes the address."""

import errno
import socket
from ipaddress import IPv6Address, ip_address
from typing import Final

from daemon.config import Config
from daemon.errors import ConfigError

_WILDCARDS: Final = ("0.0.0.0", "::")
"""Addresses to listen on that are none to connect to."""


def bound(config: Config) -> socket.socket:
    """The socket, bound before anything is loaded; left to uvicorn, a port in use would end in a traceback.

    Raises:
        ConfigError: if there is no such address here, the port cannot be had, or other machines would reach it unguarded.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; else a client that reads nothing keeps its connection for ever
            limit_ms = round(config.limits.idle_timeout_s * 1000)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
        listening.bind((config.host, config.port))
    except (OSError, UnicodeError) as error:  # UnicodeError: what no name of a host can look like
        listening.close()
        problem = error.strerror or error if isinstance(error, OSError) else "no name of a host"
        raise ConfigError(f"cannot listen on {config.host} port {config.port}: {problem}") from error
    try:
        _check_exposure(config, str(listening.getsockname()[0]))
    except ConfigError:
        listening.close()
        raise
    return listening


def _check_exposure(config: Config, address: str) -> None:
    """Refuses to be reached by other machines without keys or without TLS, unless the operator says so.

    Raises:
        ConfigError: naming the ways out.
    """
    lacks = [
        *([] if config.access.required else ["access keys (anybody could stream, read transcripts and delete calls)"]),
        *([] if config.tls.cert else ["TLS (keys and audio would be readable on the way)"]),
    ]
    if config.insecure or not lacks or _is_loopback(address):
        return
    raise ConfigError(
        f"{config.host} is reached from other machines, and the configuration lacks {' and '.join(lacks)}. Either\n"
        "  give it both: [access.keys.NAME], which `medusa-daemon key NAME` prints, and cert and key under [tls]; or\n"
        "  listen on this machine alone: --host 127.0.0.1; or\n"
        "  say --insecure (insecure = true, MEDUSA_INSECURE=true) where TLS ends at a proxy, or all who reach it may use it"
    )


def _is_loopback(text: str) -> bool:
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def free(config: Config) -> bool:
    """Whether the port is free at this moment; that another program has it says nothing about the configuration.

    Raises:
        ConfigError: if the address cannot be had, whoever has the port.
    """
    try:
        bound(config).close()
    except ConfigError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
            return False
        raise
    return True


def authority(host: str, port: int) -> str:
    """`host:port` of a URL for a client on this machine."""
    name = "localhost" if host in _WILDCARDS else f"[{host}]" if ":" in host else host
    return f"{name}:{port}"
