"""The errors this project raises on purpose.

    AtdataError                  everything below; catch this to catch us
    ├── UriError                 a string that is not the AT URI it should be (also ValueError)
    ├── RecordError              a record that cannot be written as asked (also ValueError)
    ├── LexiconError             a lexicon document, or data checked against one, is wrong (also ValueError)
    ├── SchemaError              a sample type that no schema can express, or the reverse (also ValueError)
    ├── SampleError              a sample that cannot be packed, read or stacked (also ValueError)
    ├── LensError                a lens that does not fit, or a path that does not exist (also ValueError)
    ├── SourceError              an address of a dataset that we do not open, or a split it has not (also ValueError)
    │   └── UnknownSplitError    a dataset has no split of this name (also KeyError)
    ├── ArgumentError            an argument of another kind than the one that is taken (also TypeError)
    ├── ShardError               a shard that cannot be read
    │   ├── MissingShardError    there is nothing at its address (also FileNotFoundError)
    │   └── UnknownShardError    the data source has no shard of this name (also KeyError)
    ├── MissingExtraError        an optional package is not installed (also ImportError)
    ├── ConfigError              an operator's mistake: settings, ports, folders, unreachable services
    └── NetworkError             the other side did not answer, or not as the protocol says
        ├── LoginError           an account's server does not let us in, or nobody is logged in
        ├── NotFoundError        no such account, record or label (also LookupError)
        └── RateLimitError       a server wants us to come back later

Each message names the culprit. Those that reach a person end with what to do next. None repeats a password: what an
error is made of is `redacted`.
"""

from __future__ import annotations

import re
from errno import ENOENT
from typing import Any

__all__ = [
    "ArgumentError",
    "AtdataError",
    "ConfigError",
    "LensError",
    "LexiconError",
    "LoginError",
    "MissingExtraError",
    "MissingShardError",
    "NetworkError",
    "NotFoundError",
    "RateLimitError",
    "RecordError",
    "SampleError",
    "SchemaError",
    "ShardError",
    "SourceError",
    "UnknownShardError",
    "UnknownSplitError",
    "UriError",
]

# https://www.rfc-editor.org/rfc/rfc3986#section-3.2.1
_USER_INFO = re.compile(r"(?<=//)[^/?#\s]*@")
# The parameters of signed URLs, of S3, Google and Azure, and what else services call a key. The lengths are bounded,
# for texts of strangers are long.
_SECRET_PARAMETER = re.compile(
    r"([?&;#](?:[^?=&;#\s]{0,60}?"
    r"(?:token|secret|passw|credential|signature|auth(?!or)|(?:api|access|private)[_-]?key)[^?=&;#\s]{0,60}"
    r"|sig|key|pwd|pass)=)[^&#\s'\"]*(?<![:,;.)])",
    re.IGNORECASE,
)


# What a terminal might obey: C0 and C1 control characters but tabs and ends of lines.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def redacted(text: str) -> str:
    """*text* without the passwords of the URLs in it: user information, and parameters such as signatures.

    >>> redacted("https://ada:secret@example.com/0.tar?X-Amz-Signature=abc&x=1: is empty")
    'https://…@example.com/0.tar?X-Amz-Signature=…&x=1: is empty'
    """
    return _SECRET_PARAMETER.sub(r"\1…", _USER_INFO.sub("…@", text))


class AtdataError(Exception):
    """The base of every error that this project raises on purpose."""

    def __init__(self, *args: Any) -> None:
        # Here, so that no message can be forgotten: errors quote strangers, and end up in logs and terminals.
        super().__init__(*(_CONTROL.sub("\ufffd", redacted(arg)) if isinstance(arg, str) else arg for arg in args))


class UriError(AtdataError, ValueError):
    """A string is not the URI it should be; the message says what is missing."""


class RecordError(AtdataError, ValueError):
    """A record cannot be written as asked; the message names the field."""


class LexiconError(AtdataError, ValueError):
    """A lexicon document is malformed, or a query parameter breaks its lexicon."""


class SchemaError(AtdataError, ValueError):
    """A sample type that no schema can express, or a schema that no type can; the message names the field."""


class SampleError(AtdataError, ValueError):
    """A sample that cannot be packed, read or stacked. `str()` says where, as far as it is known.

    >>> print(SampleError("expected int, found str", field="label", key="000003", shard="train-0.tar"))
    train-0.tar: sample 000003: field label: expected int, found str
    """

    def __init__(
        self, problem: str, field: str | None = None, key: str | None = None, shard: str | None = None
    ) -> None:
        # All four are arguments of the exception, too, so that it survives the way back from a worker process.
        super().__init__(problem, field, key, shard)
        self.problem: str
        self.problem, self.field, self.key, self.shard = self.args

    def __str__(self) -> str:
        places = (
            self.shard,
            self.key and f"sample {self.key}",
            self.field and f"field {self.field}",
        )
        return ": ".join([*(place for place in places if place), self.problem])

    def inside(self, field: str) -> SampleError:
        """The same, seen from one level further out: *field* holds what is wrong."""
        inner = "" if self.field is None else self.field if self.field.startswith("[") else f".{self.field}"
        return SampleError(self.problem, field + inner, self.key, self.shard)

    def located(self, shard: str, key: str) -> SampleError:
        """The same, with the shard and the key of the sample."""
        return SampleError(self.problem, self.field, key, shard)


class LensError(AtdataError, ValueError):
    """A lens that does not fit where it is put, or a view to which no registered lenses lead."""


class SourceError(AtdataError, ValueError):
    """An address that is not opened (the message says which are), or a split that a dataset does not have."""


class UnknownSplitError(SourceError, KeyError):
    """A dataset has no split of this name; the message says which it has."""

    # KeyError's own would put the message in quotes.
    __str__ = Exception.__str__


class ArgumentError(AtdataError, TypeError):
    """An argument is of another kind than the one that is taken; the message says what to write."""


class ShardError(AtdataError):
    """A shard that cannot be read. *shard* is its URL, path or CID, `redacted`."""

    def __init__(self, shard: str, problem: str) -> None:
        super().__init__(shard, problem)
        self.shard: str
        self.problem: str
        self.shard, self.problem = self.args

    def __str__(self) -> str:
        return f"{self.shard}: {self.problem}"


class MissingShardError(ShardError, FileNotFoundError):
    """There is nothing at a shard's address."""

    def __init__(self, shard: str, problem: str) -> None:
        super().__init__(shard, problem)
        # OSError takes two arguments for errno and strerror.
        self.errno, self.strerror, self.filename = ENOENT, self.problem, self.shard

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError's own would give the file's name as a third argument.
        return type(self), (self.shard, self.problem)


class UnknownShardError(ShardError, KeyError):
    """A data source was asked for a shard that it does not list."""


class MissingExtraError(AtdataError, ImportError):
    """An optional package is not installed; the message says how to install it."""


def how_to_install(extra: str) -> str:
    """The end of a message that misses *extra*, true for a checkout and for an installed package."""
    return f"in a checkout pip install -e '.[{extra}]', else pip install 'atdata-network[{extra}]'"


class ConfigError(AtdataError):
    """An operator's mistake; the message is one sentence that says what to do next."""


class NetworkError(AtdataError):
    """A service did not answer, or not as its protocol says."""


class LoginError(NetworkError):
    """An account's server does not let us in, or nobody is logged in."""


class NotFoundError(NetworkError, LookupError):
    """There is no such account, record or label."""


class RateLimitError(NetworkError):
    """A server wants us to come back later, later than we wait for; the message says when."""
