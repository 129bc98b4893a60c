"""A short run of the fuzzer: `python tests/benchmarks/fuzz_frames.py` is the long one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from benchmarks import fuzz_frames
from benchmarks.fuzz_frames import Corpus, corpus, fuzz

from atdata_indexer.events import Frame


@pytest.fixture(scope="module")
def frames() -> Corpus:
    return corpus(largest=30_000)


def test_nothing_that_a_relay_sends_breaks_the_parser(frames: Corpus) -> None:
    """Mutated frames become events, nothing, or `Rejected`, and their commits are proven or not: no exception."""
    report = fuzz(frames, 5000, seed=1, slow=math.inf)
    assert report.faults == []
    assert report.in_scope + report.out_of_scope + report.rejected == report.frames == 5000
    # Every path was taken, and not by one frame in a thousand.
    assert min(report.in_scope, report.out_of_scope, report.rejected, report.proofs["proven"]) > 100
    assert report.reasons.keys() >= {"not-cbor", "bad-frame", "bad-field", "bad-commit", "bad-car", "unknown-type"}


def test_a_seed_says_all(frames: Corpus) -> None:
    """The same seed makes the same frames: a fault can be met again."""
    one, other, same = fuzz(frames, 300, 7), fuzz(frames, 300, 8), fuzz(frames, 300, 7)
    assert replace(one, slowest=0, slowest_mutation="") == replace(same, slowest=0, slowest_mutation="")
    assert one.reasons != other.reasons


def test_faults_are_found(frames: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that raises is reported, and one that passes over what concerns us."""
    monkeypatch.setattr(fuzz_frames, "parse", lambda data, scope: {}["x"])
    assert "KeyError" in fuzz(frames, 10, 1).faults[0]
    monkeypatch.setattr(fuzz_frames, "parse", lambda data, scope: Frame(1, None))
    assert any("it concerns us, and nothing came out" in fault for fault in fuzz(frames, 100, 1).faults)
    monkeypatch.setattr(fuzz_frames, "parse", lambda data, scope: None)
    assert "a NoneType came out" in fuzz(frames, 10, 1).faults[0]
