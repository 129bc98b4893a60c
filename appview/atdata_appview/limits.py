"""How often a client may ask: a token bucket each, in memory. No I/O; the clock is an argument."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

# Some 2 MB of buckets. Beyond that, those not used for longest are forgotten.
_MAX_CLIENTS = 20_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a client has left; ``reset`` is when its bucket is full. A request may pass if ``retry_after`` is None."""

    remaining: int
    reset: float
    retry_after: float | None


class RateLimiter:
    """Lets a client ask *per_minute* times at once, and then as often as its bucket refills, as many a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.time) -> None:
        self.per_minute = per_minute
        self._rate = per_minute / 60
        self._clock = clock
        # The one used last stands last.
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, address: str) -> Allowance:
        """Take one token from the bucket of the client at *address*, if there is one; a DID is a client, too."""
        client = client_of(address)
        now = self._clock()
        tokens, seen = self._buckets.pop(client, (float(self.per_minute), now))
        # A clock that was set back must not take tokens away.
        tokens = min(self.per_minute, tokens + max(0.0, now - seen) * self._rate)
        is_allowed = tokens >= 1
        if is_allowed:
            tokens -= 1
        self._buckets[client] = (tokens, now)
        if len(self._buckets) > _MAX_CLIENTS:
            del self._buckets[next(iter(self._buckets))]
        return Allowance(
            remaining=int(tokens),
            reset=now + (self.per_minute - tokens) / self._rate,
            retry_after=None if is_allowed else math.ceil((1 - tokens) / self._rate),
        )

    def give_back(self, address: str) -> None:
        """Put back the token that was taken last from the bucket of the client at *address*."""
        client = client_of(address)
        if client in self._buckets:
            tokens, seen = self._buckets[client]
            self._buckets[client] = (min(self.per_minute, tokens + 1), seen)


@lru_cache(maxsize=4096)
def client_of(address: str) -> str:
    """Who asks from *address*: an IPv4 address, or a network of IPv6."""
    # An IPv6 client usually has a /64 to itself, and with it more addresses than we have memory.
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or ipaddress.IPv6Network((parsed, 64), strict=False))
    return address
