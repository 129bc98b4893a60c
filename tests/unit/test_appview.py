"""The AppView's pure parts: limits, numbers, descriptions, and what makes links and highlights safe."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from atdata_appview import docs, pages, search
from atdata_appview.commands import run
from atdata_appview.limits import RateLimiter
from atdata_appview.metrics import RequestMetrics
from atdata_appview.settings import AppViewSettings

README = Path(__file__).parents[2] / "appview" / "README.md"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- Limits


def test_a_bucket_empties_and_refills() -> None:
    """A client may ask so often at once, then as fast as its bucket refills."""
    clock = Clock()
    limiter = RateLimiter(60, clock)
    assert [limiter.take("192.0.2.1").retry_after for _ in range(60)] == [None] * 60
    refused = limiter.take("192.0.2.1")
    assert (refused.remaining, refused.retry_after, refused.reset) == (0, 1, 1060.0)
    clock.now += 2
    assert [limiter.take("192.0.2.1").retry_after for _ in range(3)] == [None, None, 1]
    clock.now += 3600
    assert limiter.take("192.0.2.1").remaining == 59


def test_a_clock_that_is_set_back_takes_nothing_away() -> None:
    """Tokens come with time and do not go with it."""
    clock = Clock()
    limiter = RateLimiter(60, clock)
    limiter.take("192.0.2.1")
    clock.now -= 500
    assert limiter.take("192.0.2.1").remaining == 58


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("", "unix", False),
    ],
)
def test_who_is_one_client(one: str, other: str, is_same: bool) -> None:
    """An IPv4 address, or the network that an IPv6 client usually has to itself."""
    limiter = RateLimiter(2, Clock())
    limiter.take(one)
    assert limiter.take(other).remaining == (0 if is_same else 1)


def test_memory_for_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too many clients, those seen least lately are forgotten; whoever asks on is not."""
    monkeypatch.setattr("atdata_appview.limits._MAX_CLIENTS", 3)
    limiter = RateLimiter(10, Clock())
    for i in range(10):
        limiter.take("192.0.2.1")
        limiter.take(f"198.51.100.{i}")
    assert limiter.take("192.0.2.1").retry_after == 6
    assert len(limiter._buckets) == 3


# --- Metrics


def test_metrics_are_what_prometheus_reads() -> None:
    """Cumulative buckets, sum and count for each label set, and gauges."""
    metrics = RequestMetrics()
    for seconds in (0.0005, 0.01, 20.0):
        metrics.observe("m", 200, seconds)
    lines = metrics.render({"g": ("A gauge.", 31_500_000_001)}).splitlines()
    name = "atdata_appview_request_seconds"
    assert lines[1] == f"# TYPE {name} histogram"
    buckets = [line for line in lines if line.startswith(f"{name}_bucket")]
    assert buckets[0] == f'{name}_bucket{{method="m",status="200",le="0.001"}} 1'
    assert f'{name}_bucket{{method="m",status="200",le="0.01"}} 2' in buckets
    assert buckets[-1] == f'{name}_bucket{{method="m",status="200",le="+Inf"}} 3'
    assert f'{name}_count{{method="m",status="200"}} 3' in lines
    assert lines[-3:] == ["# HELP g A gauge.", "# TYPE g gauge", "g 31500000001"]


# --- Pages


@pytest.mark.parametrize(
    ("url", "is_safe"),
    [
        ("https://example.org/a.tar", True),
        ("http://example.org:8080/a?b=c#d", True),
        ("HTTPS://EXAMPLE.ORG/", True),
        ("https://example.org/{00..07}.tar", False),
        ("javascript:alert(1)", False),
        ("java\nscript:alert(1)", False),
        ("data:text/html,x", False),
        ("//example.org", False),
        ("https://", False),
        ("https://exa mple.org", False),
        ("https://[", False),
        ("https://example.org:port/", False),
        ("s3://bucket/key", False),
        ("", False),
        (None, False),
    ],
)
def test_what_pages_may_link_to(url: str | None, is_safe: bool) -> None:
    """One http or https address, and nothing else."""
    assert pages.safe_url(url) == (url if is_safe else None)


@pytest.mark.parametrize(
    ("highlight", "html"),
    [
        ("a <mark>b</mark> &lt;c&gt;", "a <mark>b</mark> &lt;c&gt;"),
        ("<script>x</script><mark onclick=x>b</mark>", None),
        ("<mark>", "<mark>"),
        ("\ue000script\ue001", "script"),
        ("&lt;mark&gt;", "&lt;mark&gt;"),
        ("&amp;lt;", "&amp;lt;"),
    ],
)
def test_highlights_hold_marks_and_nothing_else(highlight: str, html: str | None) -> None:
    """What an engine let through stays text."""
    shown = pages.marked(highlight)
    if html is not None:
        assert shown == html
    assert set(re.findall(r"<[^>]*>?", shown)) <= {"<mark>", "</mark>"}


@given(st.text() | st.text(alphabet="<mark>/&lt;\ue000\ue001\"'"))
def test_no_text_becomes_an_element(text: str) -> None:
    """Neither in a highlight nor in a description."""
    assert set(re.findall(r"<[^>]*>?", pages.marked(text))) <= {"<mark>", "</mark>"}
    assert set(re.findall(r"<[^>]*>?", pages.with_code(text))) <= {"<code>", "</code>"}


@given(st.integers(0, 2**63))
def test_sizes_are_short(size: int) -> None:
    """Three digits and a unit are enough, and no amount reads as a thousand of a smaller unit."""
    number, unit = pages.in_bytes(size).split()
    assert unit in ("B", "kB", "MB", "GB", "TB", "PB")
    assert unit == "PB" or float(number) < 1000


# --- Documents


def test_openapi_says_what_the_lexicons_say() -> None:
    """Limits, defaults, requirement, repetition and statuses."""
    paths = docs.openapi("https://x.test")["paths"]
    get = paths["/xrpc/ac.foundation.dataset.getDatasets"]["get"]
    (uris,) = get["parameters"]
    assert (uris["required"], uris["explode"]) == (True, True)
    assert uris["schema"] == {
        "type": "array",
        "items": {"type": "string", "format": "at-uri"},
        "minItems": 1,
        "maxItems": 100,
    }
    responses = paths["/xrpc/ac.foundation.dataset.getRecord"]["get"]["responses"]
    assert set(responses) == {"200", "304", "400", "401", "404", "414", "429", "503"}
    named = {status: responses[status]["content"]["application/json"]["schema"] for status in ("400", "404")}
    assert {status: schema["properties"]["error"]["enum"] for status, schema in named.items()} == {
        "400": ["InvalidRequest"],
        "404": ["RecordNotFound"],
    }


@pytest.mark.parametrize("module", [docs, pages, search])
def test_examples_in_docstrings_are_true(module: Any) -> None:
    """They run as they stand."""
    assert doctest.testmod(module).failed == 0


def settings_table() -> str:
    """The README's table of settings."""
    rows = ["| Variable | Default | |", "|---|---|---|"]
    for name, field in AppViewSettings.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`" if field.default not in (None, "") else ""
        rows.append(f"| `ATDATA_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_readme_lists_every_setting() -> None:
    """The table is the settings class, word for word."""
    assert settings_table() in README.read_text(encoding="utf-8")


def test_every_flag_is_a_setting() -> None:
    """What the command line offers are settings, each under its name; and the help names its variable."""
    assert {parameter.name for parameter in run.params} <= set(AppViewSettings.model_fields)
    text = CliRunner().invoke(run, ["--help"]).output
    for parameter in run.params:
        assert f"ATDATA_{str(parameter.name).upper()}" in text
