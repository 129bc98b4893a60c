"""The syntax of AT Protocol identifiers: one check per string format, and fresh TIDs. No I/O but `new_tid`'s clock.

Every check takes any string and answers True or False; none raises. The specifications are those of did, handle, nsid,
tid, record-key, at-uri-scheme and lexicon#string-formats at https://atproto.com/specs.
"""

from __future__ import annotations

import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

__all__ = [
    "FORMATS",
    "format_datetime",
    "is_at_identifier",
    "is_at_uri",
    "is_cid",
    "is_datetime",
    "is_did",
    "is_handle",
    "is_language",
    "is_nsid",
    "is_record_key",
    "is_semver",
    "is_tid",
    "is_uri",
    "new_tid",
    "parse_datetime",
    "tid_at",
]

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_DID_SHAPE = r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]"
_HANDLE_SHAPE = rf"(?:{_LABEL}\.)+[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?"
_NSID_SHAPE = rf"[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?(?:\.{_LABEL})+\.[a-zA-Z][a-zA-Z0-9]{{0,62}}"
_RECORD_KEY_SHAPE = r"(?!\.\.?\Z)[A-Za-z0-9._:~-]{1,512}"

_DID = re.compile(_DID_SHAPE)
_HANDLE = re.compile(_HANDLE_SHAPE)
_NSID = re.compile(_NSID_SHAPE)
_RECORD_KEY = re.compile(_RECORD_KEY_SHAPE)
_AT_URI = re.compile(rf"at://({_DID_SHAPE}|{_HANDLE_SHAPE})(?:/({_NSID_SHAPE})(?:/{_RECORD_KEY_SHAPE})?)?")
_TID = re.compile(r"[234567abcdefghij][234567abcdefghijklmnopqrstuvwxyz]{12}")
# Any multibase; what the bytes say is for the code that decodes them. CIDv0 (`Qm…`) is not part of the protocol.
_CID = re.compile(r"(?!Qmb)[a-zA-Z0-9+=]{8,256}")
_DATETIME = re.compile(
    r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](?:\.[0-9]{1,20})?"
    r"(?:Z|(?!-00:00)[+-][0-2][0-9]:[0-5][0-9])"
)
_LANGUAGE = re.compile(r"(?:i|[a-z]{2,3})(?:-[a-zA-Z0-9]{1,8})*|[xX](?:-[a-zA-Z0-9]{1,8})+")
_URI = re.compile(r"[a-z][a-z0-9.+-]{0,80}:[!-~]+")
# https://semver.org/#is-there-a-suggested-regular-expression-regex-to-check-a-semver-string
_SEMVER = re.compile(
    r"(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)"
    r"(?:-(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?"
)


def is_did(s: str) -> bool:
    """True for a DID such as `did:plc:7iza6de2dwap2sbkpav7c6c6`."""
    return len(s) <= 2048 and _DID.fullmatch(s) is not None


def is_handle(s: str) -> bool:
    """True for a handle, a domain name such as `alice.example.com`."""
    return len(s) <= 253 and _HANDLE.fullmatch(s) is not None


def is_at_identifier(s: str) -> bool:
    """True for a DID or a handle."""
    return is_did(s) if s.startswith("did:") else is_handle(s)


def is_nsid(s: str) -> bool:
    """True for an NSID such as `ac.foundation.dataset.record`."""
    return len(s) <= 317 and _NSID.fullmatch(s) is not None


def is_tid(s: str) -> bool:
    """True for a TID such as `3jzfcijpj2z2a`."""
    return _TID.fullmatch(s) is not None


def is_record_key(s: str) -> bool:
    """True for a record key: 1 to 512 characters of a small alphabet, not `.` nor `..`."""
    return _RECORD_KEY.fullmatch(s) is not None


@lru_cache(1024)  # the URI of a schema is in the records of all its datasets, and read and checked in each
def is_at_uri(s: str) -> bool:
    """True for an AT URI of a repository, a collection or a record; without query, fragment or trailing slash."""
    match = _AT_URI.fullmatch(s) if len(s) <= 8192 else None
    if match is None:
        return False
    authority, collection = match.groups()
    longest = 2048 if authority.startswith("did:") else 253
    return len(authority) <= longest and (collection is None or len(collection) <= 317)


def is_cid(s: str) -> bool:
    """True for what can be a CIDv1 in some multibase; the bytes are not decoded."""
    return _CID.fullmatch(s) is not None


def is_language(s: str) -> bool:
    """True for a language tag (BCP 47) such as `pt-BR`, in which nothing is said twice."""
    if _LANGUAGE.fullmatch(s) is None:
        return False
    # RFC 5646 §2.2.9: no variant and no extension singleton occurs twice.
    seen: set[str] = set()
    in_extension = False
    for subtag in s.lower().split("-")[1:]:
        if subtag == "x":
            break
        is_singleton = len(subtag) == 1
        in_extension |= is_singleton
        is_variant = not in_extension and (len(subtag) >= 5 or (len(subtag) == 4 and subtag[0].isdigit()))
        if is_singleton or is_variant:
            if subtag in seen:
                return False
            seen.add(subtag)
    return True


def is_uri(s: str) -> bool:
    """True for a URI of any scheme, up to 8 KiB. Says nothing about whether it is safe to open."""
    return len(s) <= 8192 and _URI.fullmatch(s) is not None


def is_semver(s: str) -> bool:
    """True for a version such as `1.4.0-rc.1+build.5` (https://semver.org/spec/v2.0.0.html)."""
    return len(s) <= 256 and _SEMVER.fullmatch(s) is not None


def is_datetime(s: str) -> bool:
    """True for a date and time with a time zone, in the profile of RFC 3339 and ISO 8601 that the protocol uses."""
    # Year 0 is legal on the wire and unknown to Python: look at a leap year in its stead, as year 0 is one.
    if s.startswith("0000"):
        instant = _instant("0004" + s[4:])
        return instant is not None and instant.year >= 4
    return _instant(s) is not None


@lru_cache(64)  # what checks a record and what reads it both want to know
def _instant(s: str) -> datetime | None:
    if _DATETIME.fullmatch(s) is None:
        return None
    try:
        return datetime.fromisoformat(s).astimezone(UTC)
    except (ValueError, OverflowError):  # no such day, or outside of Python's years 1 to 9999
        return None


def parse_datetime(s: str) -> datetime:
    """The instant that *s* names, aware and in UTC, cut to microseconds.

    >>> parse_datetime("2024-02-29T12:00:00.5+01:00")
    datetime.datetime(2024, 2, 29, 11, 0, 0, 500000, tzinfo=datetime.timezone.utc)

    Raises ValueError for what is not a protocol datetime, and for the year 0, which Python cannot express.
    Specification: https://atproto.com/specs/lexicon#datetime
    """
    instant = _instant(s)
    if instant is None:
        raise ValueError(f"{s[:64]!r} is not a datetime such as 2024-02-29T12:00:00.000Z")
    return instant


def format_datetime(moment: datetime) -> str:
    """*moment* as the protocol prefers it: UTC, `Z`, milliseconds, or microseconds when there are any.

    >>> format_datetime(datetime(2024, 2, 29, 12, 0, tzinfo=UTC))
    '2024-02-29T12:00:00.000Z'

    Raises ValueError for a datetime without a time zone: guessing one would move the instant.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone; use datetime.now(UTC)")
    if moment.utcoffset():
        moment = moment.astimezone(UTC)
    # With its offset, +00:00, cut off: answers format one for each record.
    return moment.isoformat(timespec="microseconds" if moment.microsecond % 1000 else "milliseconds")[:-6] + "Z"


FORMATS: Final[Mapping[str, Callable[[str], bool]]] = {
    "at-identifier": is_at_identifier,
    "at-uri": is_at_uri,
    "cid": is_cid,
    "datetime": is_datetime,
    "did": is_did,
    "handle": is_handle,
    "language": is_language,
    "nsid": is_nsid,
    "record-key": is_record_key,
    "tid": is_tid,
    "uri": is_uri,
}
"""The check for each string format of the lexicon language."""


_BASE32_SORTABLE = "234567abcdefghijklmnopqrstuvwxyz"
_HOST = zlib.crc32((os.uname().nodename if hasattr(os, "uname") else "").encode())
_tid_lock = threading.Lock()
_last_tid_time = 0


def new_tid() -> str:
    """A fresh record key that sorts after every one this process made before.

    >>> new_tid() < new_tid()
    True

    53 bits of microseconds since 1970 and 10 bits of clock identifier: https://atproto.com/specs/tid
    """
    global _last_tid_time
    with _tid_lock:
        # One tick past the last one when the clock stands still or was set back.
        now = max(time.time_ns() // 1000, _last_tid_time + 1)
        _last_tid_time = now
    # The process id tells processes of one host apart with certainty, also after a fork; the host's name spreads
    # hosts (and containers, where every process is number 1) over the 1024 identifiers.
    return _encode_tid(now << 10 | ((os.getpid() ^ _HOST) & 0x3FF))


def tid_at(moment: datetime) -> str:
    """The first TID of *moment*: those made before sort before it, those made later after it.

    >>> tid_at(datetime(2026, 1, 1, tzinfo=UTC)) < new_tid()
    True
    """
    return _encode_tid(round(moment.timestamp() * 1_000_000) << 10)


def _encode_tid(number: int) -> str:
    return "".join(_BASE32_SORTABLE[number >> shift & 31] for shift in range(60, -1, -5))


def _fresh_lock() -> None:
    # A fork while another thread holds the lock would leave the child's copy locked for ever.
    global _tid_lock
    _tid_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)
