"""Publishes events as the sink does, but one at a time and confirmed: a worker lets go of an utterance only behind it."""

from redis.asyncio import Redis

from daemon.messages import EmotionEvent

# The very script of the sink, so that an event that both publish is there once.
from daemon.sinks.redis import APPEND, DEFAULT_STREAMS, StreamSettings
from daemon.wire import redis_fields


class Publisher:
    """Adds events to the stream of all calls and to their call's own.

    Args:
        client: a connection to Redis.
        settings: names and limits of the streams.
    """

    def __init__(self, client: "Redis", settings: StreamSettings = DEFAULT_STREAMS) -> None:
        self._settings = settings
        self._append = client.register_script(APPEND)

    async def publish(self, event: EmotionEvent) -> None:
        """Publishes an event in both streams; again and again is once."""
        settings, fields = self._settings, redis_fields(event)
        pairs = [part for field in fields.items() for part in field]
        for key, ttl_s in ((settings.events_key, 0), (settings.call_key(event.info.call), settings.call_ttl_s)):
            seen = settings.seen_key(key, event.event_id)
            await self._append([key, seen], [settings.maxlen, ttl_s, settings.unsure_ttl_s, len(pairs), *pairs])
