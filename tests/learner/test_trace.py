"""The trace of an iteration: a file that the viewers open, with spans that nest and cover it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import shared_algorithm

from learner.iteration_data import worker_metrics
from rollout.roll_out import WorkReport
from rollout.timeline import Span, chrome_trace, write_trace


def rows(trace):
    names = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    found = {name: [] for name in names.values()}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            assert event["dur"] >= 0 <= event["ts"]
            found[names[event["tid"]]].append((event["name"], event["ts"], event["ts"] + event["dur"]))
    return found


def test_an_iteration_leaves_a_trace_whose_spans_nest_and_cover_it(ray_cluster, policy_path, tmp_path):
    algorithm = shared_algorithm(policy_path)
    before = algorithm.config
    algorithm.config = before.copy(copy_frozen=False).training(trace=True)
    result = algorithm.train()
    algorithm.config = before
    write_trace(tmp_path / "trace.json", algorithm.timelines)
    found = rows(json.loads((tmp_path / "trace.json").read_text()))
    assert set(found) == {"driver", "learner"}  # workers draw only if they were started to
    (whole, *phases) = found["driver"]
    assert whole[0] == "iteration"
    assert [name for name, _, _ in phases] == ["push", "rollout", "score"]
    assert all(whole[1] <= start <= end <= whole[2] for _, start, end in phases)
    assert sum(end - start for _, start, end in phases) >= 0.9 * (whole[2] - whole[1])
    learn, *steps = found["learner"]
    assert learn[0] == "learn"
    assert [name for name, _, _ in steps] == ["step"]
    assert all(learn[1] <= start <= end <= learn[2] for _, start, end in steps)
    assert learn[1] >= whole[2] - 1000  # microseconds: not overlapped
    assert result["workers"]["decode_s"] > 0
    assert {f"{worker}/policy_version" for worker in (1, 2)} <= set(result["workers"])
    assert result["workers"]["1/memory_mb"] > 50


def test_every_row_of_a_trace_has_its_name_and_its_own_times():
    trace = chrome_trace({"driver": [Span("push", 10.0, 10.5), Span("rollout", 10.5, 12.0)], "worker": [Span("decode", 10.6, 11.9)]})
    assert rows(trace) == {
        "driver": [("iteration", 0, 2_000_000), ("push", 0, 500_000), ("rollout", 500_000, 2_000_000)],
        "worker": [("decode", 600_000, 1_900_000)],
    }
    assert chrome_trace({})["traceEvents"] == []


@given(st.lists(st.floats(0, 1e-5), min_size=1, max_size=6))
def test_spans_that_nest_still_nest_when_their_times_are_rounded(lengths):
    ends = [0.3e-6 + 1e9]
    for length in lengths:
        ends.append(ends[-1] + length)
    (whole, *parts) = rows(chrome_trace({"driver": [Span("part", start, end) for start, end in pairwise(ends)]}))["driver"]
    assert min(start for _, start, _ in parts) == whole[1]
    assert max(end for _, _, end in parts) == whole[2]
    assert all(before[2] <= after[1] for before, after in pairwise(sorted(parts, key=lambda part: part[1:])))


def test_figures_of_the_workers_are_sums_and_shares():
    first = WorkReport(1, 5, [], 0, 100.0, {"prefill": 1.0, "decode": 5.0, "search": 2.0, "idle": 10.0}, 400, 60, 100)
    second = WorkReport(2, 5, [], 0, 120.0, {"decode": 2.0}, 100, 30, 50)
    figures = worker_metrics([first, second])
    assert figures["tokens_per_second"] == pytest.approx(500 / 10)
    assert figures["search_share"] == pytest.approx(0.2)
    assert figures["slots_in_use"] == pytest.approx(0.6)
    assert (figures["idle_s"], figures["2/memory_mb"], figures["1/policy_version"]) == (10.0, 120.0, 5.0)
