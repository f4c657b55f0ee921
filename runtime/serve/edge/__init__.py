"""The layers that every request passes: connections, access, limits, errors, metrics, traces, logs."""
