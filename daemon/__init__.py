"""Run time: audio in over WebSocket, emotion posteriors out to Redis Streams and to the client. Never imports torch."""
