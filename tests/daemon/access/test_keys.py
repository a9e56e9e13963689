"""API keys: made, kept as hashes, found again; and what each principal may take."""

from pathlib import Path

import pytest

from daemon.access.attempts import Attempts
from daemon.access.keys import PREFIX, KeyRing, digest, is_digest, new_key, read_key
from daemon.access.principal import Limits, Principal
from daemon.access.usage import UNLIMITED, Ledger, QuotaError
from daemon.errors import ConfigError

EDGE = Principal("edge", frozenset({"ingest"}))


class Clock:
    """Time that passes when a test says so."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_key_is_random_and_known_by_its_digest_alone() -> None:
    one, other = new_key(), new_key()
    assert one != other
    assert one.startswith(PREFIX)
    assert len(one) >= len(PREFIX) + 43, "256 bits"
    ring = KeyRing({digest(one): EDGE})
    assert ring.find(one) == EDGE
    assert ring.named("edge") == EDGE
    for wrong in (other, one[:-1], one + "x", "", digest(one), "\udcff", "é"):
        assert ring.find(wrong) is None


def test_what_a_digest_looks_like() -> None:
    assert is_digest(digest("x"))
    assert not any(map(is_digest, ("", "ab", "g" * 64, digest("x") + "0", new_key())))


def test_a_key_file(tmp_path: Path) -> None:
    made, path = new_key(), tmp_path / "key"
    path.write_text(made + "\n")
    assert read_key(path) == digest(made)
    for text in ("", "short", "two words that are together long enough for a key"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="a key is one word of at least 32") as caught:
            read_key(path)
        assert not text or text not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read the key file"):
        read_key(tmp_path / "none")


def test_an_address_that_fails_waits_and_others_do_not() -> None:
    clock = Clock()
    attempts = Attempts(per_minute=3, clock=clock)
    for _ in range(3):
        assert attempts.wait_s("192.0.2.1") == 0
        attempts.failed("192.0.2.1")
    assert attempts.wait_s("192.0.2.1") == 20
    assert attempts.wait_s("192.0.2.2") == 0
    clock.now += 19
    assert attempts.wait_s("192.0.2.1") == 1
    clock.now += 1
    assert attempts.wait_s("192.0.2.1") == 0
    clock.now += 3600
    for _ in range(3):
        assert attempts.wait_s("192.0.2.1") == 0, "no more than a minute's are saved up"
        attempts.failed("192.0.2.1")
    assert attempts.wait_s("192.0.2.1") > 0


def test_who_has_one_ipv6_address_has_its_network() -> None:
    attempts = Attempts(per_minute=1, clock=Clock())
    attempts.failed("2001:db8:1:2::3")
    assert attempts.wait_s("2001:db8:1:2:ffff::1") > 0
    assert attempts.wait_s("2001:db8:1:3::3") == 0


def test_the_addresses_that_are_remembered_are_bounded() -> None:
    attempts = Attempts(per_minute=1, clock=Clock())
    for number in range(5000):
        attempts.failed(f"10.0.{number // 256}.{number % 256}")
    assert attempts.wait_s("10.0.0.0") == 0, "the oldest was forgotten"
    assert attempts.wait_s("10.0.19.135") > 0


def test_streams_at_a_time() -> None:
    """Connections may be one more: over that one a client can come back, but nothing begins."""
    account = Ledger(Clock()).account(Principal("edge", frozenset(), Limits(streams=2)))
    with account.connection(), account.connection(), account.stream():
        with account.connection(), account.stream():
            with (
                pytest.raises(QuotaError, match="edge has 2 streams open, its limit: come back later"),
                account.stream(),
            ):
                pass
            with pytest.raises(QuotaError, match="edge has 2 streams open"), account.connection():
                pass
        with account.stream():
            pass


def test_connections_on_which_nothing_began_take_no_stream_s_place() -> None:
    account = Ledger(Clock()).account(Principal("edge", frozenset(), Limits(streams=1)))
    with account.connection(), account.connection(), account.stream():
        pass


def test_a_stream_that_waits_for_its_client_has_its_place() -> None:
    account = Ledger(Clock()).account(Principal("edge", frozenset(), Limits(streams=2)))
    with account.stream():
        with account.parked(), account.stream():
            assert not account.idle
            with pytest.raises(QuotaError, match="its limit, 1 of them waiting for their clients"), account.stream():
                pass
        with account.stream():
            pass


def test_streams_that_begin_within_a_minute() -> None:
    """Connections over which a stream goes on are none of them."""
    clock = Clock()
    account = Ledger(clock).account(Principal("edge", frozenset(), Limits(starts_per_minute=2)))
    for _ in range(2):
        with account.stream():
            clock.now += 10
    for _ in range(5):
        with account.connection():
            pass
    with pytest.raises(QuotaError, match="2 streams within a minute, its limit: come back in 40 s"), account.stream():
        pass
    clock.now += 40
    with account.stream():
        pass


def test_audio_of_a_stream_and_of_a_day() -> None:
    clock = Clock(86_400.0 * 20_000)
    ledger = Ledger(clock)
    account = ledger.account(Principal("edge", frozenset(), Limits(stream_s=2, day_s=3)))
    meter = account.meter()
    assert meter.problem(32_000) is None
    assert "over 2 s of audio" in (meter.problem(1) or "")
    again = account.meter()
    assert again.problem(15_000) is None
    assert "3 s of audio today" in (again.problem(2000) or "")
    with pytest.raises(QuotaError, match="come back after midnight"), account.connection():
        pass
    clock.now += 86_400
    assert account.meter().problem(16_000) is None
    assert ledger.account(Principal("edge", frozenset(), kind="token")) is account, "its tokens share what a key has"


def test_audio_that_is_over_a_limit_is_not_counted() -> None:
    """Else one long message, of which nothing was taken, would use up what other streams still may send."""
    account = Ledger(Clock()).account(Principal("edge", frozenset(), Limits(stream_s=4, day_s=3)))
    meter, other = account.meter(), account.meter()
    assert meter.problem(16_000) is None
    assert "over 4 s of audio" in (meter.problem(10**6) or "")
    assert "3 s of audio today" in (meter.problem(32_001) or "")
    with account.connection():
        assert other.problem(32_000) is None
    assert "3 s of audio today" in (other.problem(1) or "")


def test_audio_that_was_not_taken_is_given_back() -> None:
    clock = Clock(86_400.0 * 20_000)
    account = Ledger(clock).account(Principal("edge", frozenset(), Limits(stream_s=2.5, day_s=3)))
    meter, other = account.meter(), account.meter()
    for _ in range(10):
        assert meter.problem(32_000) is None
        meter.give_back(32_000)
    with account.connection():
        assert other.problem(16_000) is None
    assert meter.problem(32_000) is None
    clock.now += 86_400
    assert other.problem(16_000) is None
    meter.give_back(32_000)
    assert "3 s of audio today" in (account.meter().problem(32_001) or ""), (
        "what was counted yesterday is not given back"
    )


def test_a_connection_needs_a_second_that_is_left() -> None:
    """What is left of a day is seldom nothing: a chunk is refused as a whole."""
    account = Ledger(Clock(86_400.0)).account(Principal("edge", frozenset(), Limits(day_s=3)))
    meter = account.meter()
    assert meter.problem(32_000) is None
    with account.connection():
        assert meter.problem(1) is None
    with pytest.raises(QuotaError, match="come back after midnight"), account.connection():
        pass
    little = Ledger(Clock(86_400.0)).account(Principal("little", frozenset(), Limits(day_s=0.5)))
    with little.connection():
        assert little.meter().problem(8_000) is None


def test_idle_accounts_of_many_subjects_are_forgotten() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    busy = ledger.account(Principal("jwt:busy", frozenset()))
    with busy.connection():
        for number in range(3000):
            ledger.account(Principal(f"jwt:{number}", frozenset()))
        assert ledger.account(Principal("jwt:busy", frozenset())) is busy
        assert len(ledger._accounts) <= 1025


def test_nobodys_account_has_no_limit() -> None:
    for _ in range(100):
        with UNLIMITED.connection(), UNLIMITED.stream():
            assert UNLIMITED.meter().problem(10**9) is None
