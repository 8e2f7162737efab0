"""Token metering and token rate limits for LLM traffic on Envoy, as an external processor."""

__version__ = "0.1.0"
