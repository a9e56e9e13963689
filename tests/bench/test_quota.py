import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.quota import QuotaError, limited

BUSY = "while True: pass"


def used_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_process_gets_no_more_than_its_share_while_the_block_lasts() -> None:
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        try:
            with limited([process.pid], 0.1):
                before = used_s(process.pid)
                time.sleep(2.0)
                spent = used_s(process.pid) - before
        except QuotaError as error:
            pytest.skip(str(error))
        assert spent <= 0.4  # 0.2 and what the clock's ticks leave open
        before = used_s(process.pid)
        deadline = time.monotonic() + 60
        while used_s(process.pid) - before < 0.5:  # let go: it has more than a tenth again
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()


def test_a_process_that_is_not_there_is_an_error() -> None:
    with pytest.raises(QuotaError), limited([2**22 - 1], 0.5):
        pass
