"""Which members score while finals wait: all of them, or one of the fallbacks that the bundle declares. Sans-IO.

    all members  ──finals wait──>  fallback 1  ──they still wait──>  fallback 2 ...
                 <──for long calm──            <──for long calm──

Interim results have given way long before (`daemon.batcher`), and streams are refused at a longer wait (`daemon.streams`). One
step at a time, down once the step before had time to tell, back once finals have hardly waited for a while. Whether there is
room for the members that come back is not known before they are back: where finals wait again soon, the next try comes later.
"""

import logging
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

_SETTLE_S: Final = 2.0
"""What was queued before a step is done by then."""
_CALM_S: Final = 10.0
_LONGEST_CALM_S: Final = 160.0
_RELAPSE_S: Final = 60.0
"""Waiting that comes this soon behind a step back is put down to it."""


class Steps:
    """Chooses the fallback for one engine.

    Args:
        beyond_s: how long finals wait before members drop out; they come back at half of it.
        clock: seconds that only grow.
    """

    def __init__(self, beyond_s: float, clock: Callable[[], float]) -> None:
        self._beyond_s = beyond_s
        self._clock = clock
        self._number = 0
        self._calm_s = _CALM_S
        self._waited_at = clock()
        """When finals were last seen to wait, or the last step back was made."""
        self._stepped_at = self._returned_at = -float("inf")

    def number(self, wait_s: float, fallbacks: int) -> int:
        """The fallback to score with now, counted from 1; 0 for all members.

        Args:
            wait_s: how long finals waited lately.
            fallbacks: how many there are.
        """
        now, before = self._clock(), self._number
        if wait_s > self._beyond_s:
            self._waited_at = now
            if self._number < fallbacks and now - self._stepped_at >= _SETTLE_S:
                self._step_down(now)
        elif wait_s > self._beyond_s / 2:
            self._waited_at = now
        else:
            while self._number and now - self._waited_at >= self._calm_s:
                self._number -= 1
                self._waited_at += self._calm_s
                self._returned_at = now
        if self._number != before:
            _log.warning("finals wait %.2f s: from fallback %d to %d (0 has all members)", wait_s, before, self._number)
        return self._number

    def _step_down(self, now: float) -> None:
        again = now - self._returned_at < _RELAPSE_S
        if not self._number or again:
            self._calm_s = min(2 * self._calm_s, _LONGEST_CALM_S) if again else _CALM_S
        self._returned_at = -float("inf")
        self._number += 1
        self._stepped_at = now
