"""The prediction server's interface: requests in JSON and Arrow, limits, metrics, traces, its own description."""
