"""OpenTelemetry traces, where the extra `otel` is installed and OTEL_* asks for them."""
