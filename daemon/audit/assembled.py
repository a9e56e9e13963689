"""What a configuration says is written down and kept, running; and the entries that need more than one thing to be known."""

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from daemon.audit.entries import UNAUDITED, Auditor, AuditSettings
from daemon.audit.retention import keep_trimmed
from daemon.audit.writer import AUDIT_KEY, running_audit
from daemon.calls.beside import beside
from daemon.config import Config
from daemon.metrics import Metrics
from daemon.policy import Policy
from daemon.stream import Stream


@asynccontextmanager
async def audit_of(config: Config, url: str, metrics: Metrics) -> AsyncIterator[Auditor]:
    """Who writes down what happens, into the Redis at `url`; while it runs, what is too old goes."""
    policy = config.policy
    ages_s: dict[str, int] = {}
    if policy.retain_s is not None:
        ages_s[config.stream_settings().events_key] = policy.retain_s
    if policy.audit:
        ages_s[AUDIT_KEY] = policy.audit_retain_s
    async with AsyncExitStack() as stack:
        if ages_s:
            await stack.enter_async_context(beside(keep_trimmed(url, ages_s), "retention"))
        if not policy.audit:
            yield UNAUDITED
            return
        audit = await stack.enter_async_context(
            running_audit(url, AuditSettings(socket.gethostname(), policy.audit_maxlen))
        )
        metrics.count("medusa_audit_lost", "Audit entries that Redis did not take", lambda: audit.lost)
        yield audit


def note_start(audit: Auditor, config: Config, bundle_id: str) -> None:
    """What the operator decided, as far as it concerns people; nothing secret."""
    policy = config.policy
    audit.note(
        "daemon.started",
        analyze=",".join(policy.analyze),
        transcripts=policy.transcripts,
        retain_s="" if policy.retain_s is None else str(policy.retain_s),
        call_ttl_s=str(config.stream_settings().call_ttl_s),
        access="required" if config.access.required else "none",
        model=bundle_id,
    )


def note_bundle(audit: Auditor, model: str, before: str, who: str) -> None:
    """By which bundle new streams are judged from now on, and who decided that."""
    audit.note("bundle.changed", who=who, model=model, before=before)


def note_stream(audit: Auditor, stream: Stream, policy: Policy) -> None:
    """Who streams which call, and what of it is analysed."""
    info = stream.info
    audit.note(
        "stream.opened",
        who=stream.owner,
        call=info.call,
        session=info.session,
        roles=",".join(info.roles),
        analyzed=",".join(policy.analyzed(info.roles)),
        model=info.model,
    )
