"""Arenas of malloc, counted where they are: in a process of their own."""

import subprocess
import sys

import pytest

from daemon.memory import share_arenas

PROGRAM = """
import ctypes, re, sys, tempfile, threading
from daemon.memory import share_arenas

limit, threads = map(int, sys.argv[1:])
if limit:
    assert share_arenas(limit)
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
begin = threading.Barrier(threads)

def allocate():
    begin.wait()
    for _ in range(2000):
        libc.malloc(5000)

running = [threading.Thread(target=allocate) for _ in range(threads)]
for thread in running:
    thread.start()
for thread in running:
    thread.join()
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, ctypes.c_void_p(stream))
    libc.fclose(ctypes.c_void_p(stream))
    print(len(re.findall(rb"<heap nr", file.read())))
"""


def arenas(limit: int, threads: int = 8) -> int:
    command = [sys.executable, "-c", PROGRAM, str(limit), str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="arenas are glibc's")
def test_threads_share_the_arenas_that_there_are() -> None:
    assert arenas(2) <= 2
    assert arenas(0) > 2, "else there was nothing to limit"


def test_where_there_is_no_such_option_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not share_arenas(2)


ALLOCATING = """
from daemon.memory import allocated

before = allocated()
block = bytearray(64 << 20)
held = allocated()
del block
after = allocated()
if before is not None:
    assert held - before > 60 << 20, (before, held)
    assert after - before < 4 << 20, (before, after)
"""


def test_what_malloc_gave_out_is_told_and_what_it_got_back_is_not() -> None:
    succeeds(ALLOCATING)


COLLECTING = """
import gc, weakref
from daemon.memory import collect, settled, tidy

class Ring:
    'Refers to itself, as a task does to its traceback.'
    def __init__(self):
        self.itself = self

before, later = Ring(), Ring()
with settled():
    seen = weakref.ref(before)
    del before
    tidy()
    assert seen() is not None, "what is settled is not looked at"
    collect()
    assert seen() is None
    assert gc.get_freeze_count() > 0, "what is left is settled again"
    fresh = weakref.ref(Ring())
    tidy()
    assert fresh() is None, "what comes later is found"
assert gc.get_freeze_count() == 0
gone = weakref.ref(later)
del later
collect()
assert gone() is None
assert gc.get_freeze_count() == 0, "nothing was settled"
"""


def test_what_is_settled_is_looked_at_only_when_everything_is() -> None:
    succeeds(COLLECTING)


def succeeds(program: str) -> None:
    """In a process of its own: others have threads that allocate, and daemons that settle what they hold."""
    found = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
