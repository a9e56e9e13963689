"""Memory that is free and yet ours: neither Python nor glibc hands it back by itself."""

import ctypes
import gc


def trim() -> None:
    """Hands what malloc keeps free back to the system; nothing where there is no glibc.

    Models free blocks of every size in several threads. Measured over an hour of calls, the process grew by 14 MB without it
    while Python's own memory stayed as it was.
    """
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


def collect() -> None:
    """Frees what only refers to itself, and hands it back.

    Tasks that were cancelled refer to their own tracebacks, and so to the models, until the collector looks: the process grew
    by the size of a bundle with every second change of the bundle.
    """
    gc.collect()
    trim()
