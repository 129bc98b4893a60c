"""What is counted about requests, and how Prometheus wants to read it. No I/O.

One histogram and a few gauges: the client library for Prometheus would bring more than that.
Format: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

# Seconds. The goal is a median of 10 ms.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class RequestMetrics:
    """How long requests took, by method and status. Both must come from small sets."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], list[int]] = {}
        self._sums: dict[tuple[str, int], float] = {}

    def observe(self, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        key = (method, status)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0] * (len(_BUCKETS) + 1)
            self._sums[key] = 0.0
        counts[bisect_left(_BUCKETS, seconds)] += 1
        self._sums[key] += seconds

    def render(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Everything as text; *gauges* maps further names to their description and value."""
        name = "atdata_appview_request_seconds"
        lines = [f"# HELP {name} How long requests took, by method and status.", f"# TYPE {name} histogram"]
        for (method, status), counts in sorted(self._counts.items()):
            labels = f'method="{method}",status="{status}"'
            total = 0
            for bound, count in zip((*_BUCKETS, "+Inf"), counts, strict=True):
                total += count
                lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {total}')
            lines.append(f"{name}_sum{{{labels}}} {self._sums[method, status]:.6f}")
            lines.append(f"{name}_count{{{labels}}} {total}")
        for gauge, (description, value) in gauges.items():
            lines += [f"# HELP {gauge} {description}", f"# TYPE {gauge} gauge", f"{gauge} {value}"]
        return "\n".join(lines) + "\n"
