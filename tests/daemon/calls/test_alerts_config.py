"""The section `alerts`: what it takes, what it refuses, and what it never shows."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from daemon.calls.webhook import WebhookSettings
from daemon.config import load_config
from daemon.errors import ConfigError

RULE = {"name": "upset", "emotions": ["angry"], "above": 0.5, "utterances": 2}
ROOT = Path(__file__).parents[3]


def mistakes(alerts: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"alerts": alerts})
    return str(caught.value)


def test_none_by_default() -> None:
    alerts = load_config(None, {}).alerts
    assert alerts.rules == ()
    assert alerts.webhook() is None


def test_the_example_of_the_page_is_taken() -> None:
    page = (ROOT / "docs" / "calls.md").read_text(encoding="utf-8")
    example = tomllib.loads(page.partition("```toml\n")[2].partition("```")[0])
    alerts = load_config(None, example).alerts
    (rule,) = (rule.rule() for rule in alerts.rules)
    assert (rule.role, rule.emotions, rule.above, rule.speech_ms, rule.utterances, rule.cooldown_ms) == (
        "customer",
        ("angry", "disgust"),
        0.6,
        5_000,
        None,
        60_000,
    )
    assert alerts.webhook() == WebhookSettings("https://example.com/hooks/medusa", "a long random text")


def test_rules_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUSA_ALERTS__RULES", '[{"name": "n", "emotions": ["sad"], "above": 0.9, "for_s": 3}]')
    monkeypatch.setenv("MEDUSA_ALERTS__WEBHOOK_URL", "http://localhost:1/x")
    alerts = load_config(None, {}).alerts
    assert [rule.name for rule in alerts.rules] == ["n"]
    assert alerts.webhook_url == "http://localhost:1/x"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"emotions": ["furious"]}, "alerts.rules.0.emotions: different ones of angry, sad, happy"),
        ({"emotions": ["angry", "angry"]}, "alerts.rules.0.emotions: different ones"),
        ({"emotions": []}, "alerts.rules.0.emotions"),
        ({"above": 1.0}, "alerts.rules.0.above"),
        ({"above": 0}, "alerts.rules.0.above"),
        ({"utterances": 0}, "alerts.rules.0.utterances"),
        ({"utterances": None}, "either for_s (seconds of speech) or utterances"),
        ({"for_s": 3}, "not both"),
        ({"cooldown_s": -1}, "alerts.rules.0.cooldown_s"),
        ({"name": "a\nb"}, "alerts.rules.0.name"),
        ({"name": ""}, "alerts.rules.0.name"),
        ({"role": ""}, "alerts.rules.0.role"),
        ({"colour": "red"}, "alerts.rules.0.colour"),
    ],
)
def test_a_rule_that_cannot_work(change: dict[str, Any], says: str) -> None:
    assert says in mistakes({"rules": [RULE | change]})


def test_two_rules_of_one_name() -> None:
    assert "upset is there twice" in mistakes({"rules": [RULE, RULE]})


@pytest.mark.parametrize("key", ["webhook_timeout_s", "webhook_attempts", "webhook_queue"])
def test_limits_of_the_webhook(key: str) -> None:
    message = mistakes({key: 0})
    assert f"alerts.{key}" in message
    assert "got 0" in message


@pytest.mark.parametrize(
    "alerts",
    [
        {"webhook_url": "ftp://hidden/"},
        {"webhook_url": 7, "webhook_secret": ["hidden"]},
        {"webhook_sekret": "hidden"},
        "hidden",
    ],
)
def test_secrets_are_not_shown(alerts: Any) -> None:
    message = mistakes(alerts)
    assert "alerts" in message
    assert "hidden" not in message


def test_a_configuration_that_is_printed_hides_the_secret() -> None:
    config = load_config(None, {"alerts": {"webhook_url": "http://h", "webhook_secret": "hidden"}})
    assert "hidden" not in repr(config)
