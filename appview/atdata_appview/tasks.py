"""Tasks beside the requests, and how they are ended."""

from __future__ import annotations

import asyncio
from typing import Any


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel *tasks* and wait until they are done. Their results and errors stay with them.

    Before Python 3.12, `asyncio.wait_for`, which psycopg's pool uses, loses a cancellation that comes in the moment in
    which a connection becomes free: once is not enough.
    """
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)
