"""Where events go: Redis Streams when serving, a list when scoring offline or testing."""
