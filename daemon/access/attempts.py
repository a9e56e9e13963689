"""Failed attempts per address: a bucket each, which every failure empties by one and time fills again."""

import ipaddress
import math
from collections.abc import Callable
from typing import Final

_MOST_ADDRESSES: Final = 4096
_SHARED_BITS: Final = 64
"""Of an IPv6 address: who has one has all that begin alike."""


class Attempts:
    """Who failed of late.

    Args:
        per_minute: failures that an address may have; afterwards as many as time gives back.
        clock: seconds, of any epoch.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """Address -> failures that are left, and when that was; the oldest first."""

    def wait_s(self, address: str) -> int:
        """Whole seconds until the address may try again; 0 if it may now."""
        left = self._left(_network(address))
        return 0 if left >= 1 else math.ceil(round((1 - left) * 60 / self._per_minute, 6))

    def failed(self, address: str) -> None:
        """Counts a failure."""
        network = _network(address)
        left = max(0.0, self._left(network) - 1)
        self._buckets.pop(network, None)
        self._buckets[network] = (left, self._clock())
        while len(self._buckets) > _MOST_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]

    def _left(self, network: str) -> float:
        left, since = self._buckets.get(network, (float(self._per_minute), self._clock()))
        return min(float(self._per_minute), left + (self._clock() - since) * self._per_minute / 60)


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(parsed) >> _SHARED_BITS << _SHARED_BITS, _SHARED_BITS)))
    return str(parsed)
