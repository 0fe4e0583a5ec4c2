"""A knowledge base that fails again and again is left alone for a while."""

from __future__ import annotations

import pickle

from retrieval_actors.actors.circuit_breaker import CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_and_lets_one_search_through_after_the_cool_down():
    clock = Clock()
    breaker = CircuitBreaker(3, 30.0, clock)
    for answered in (False, False, True, False, False):
        assert breaker.allows()
        breaker.record(answered)
    assert breaker.allows()
    breaker.record(False)
    assert not breaker.allows()
    clock.now = 29.0
    assert not breaker.allows()
    assert breaker.seconds_left() == 1.0
    clock.now = 30.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.record(False)
    clock.now = 59.0
    assert not breaker.allows()
    clock.now = 60.0
    assert breaker.allows()
    breaker.record(True)
    assert [breaker.allows(), breaker.allows()] == [True, True]


def test_a_copy_in_another_process_counts_by_itself():
    breaker = CircuitBreaker(1, 30.0)
    breaker.record(False)
    copy = pickle.loads(pickle.dumps(breaker))
    assert (copy.failures_to_open, copy.cooldown_s) == (1, 30.0)
    assert copy.allows()
    assert not breaker.allows()
