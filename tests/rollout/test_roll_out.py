"""What a worker is given at a time, in slices or at once; and where its time went."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scripted import Library
from test_episode_pool import questions, told

from rollout.config import RolloutConfig
from rollout.engines.transformers_engine import TransformersEngine
from rollout.records import GoldStep, RecordedTurn
from rollout.roll_out import EngineTimeline, EpisodeRun
from rollout.timeline import Timeline


@pytest.mark.parametrize("mode", ["branch", "chain"])
def test_work_in_slices_gives_the_trajectories_of_work_at_once(fresh_policy, mode):
    config = RolloutConfig(mode=mode, group_size=2, max_new_tokens=6)

    def trajectories(seconds):
        engine, finished, calls = TransformersEngine(fresh_policy), [], 0
        run = EpisodeRun(questions(5), engine, Library(), config, 3, Timeline())
        while run.unfinished:
            finished += run.work(seconds)
            calls += 1
        assert [place for place, _ in sorted(finished, key=lambda done: done[0])] == list(range(5))
        assert {len(found) for _, found in finished} == {1 if mode == "branch" else 2}
        return told(t for _, found in sorted(finished, key=lambda done: done[0]) for t in found), calls

    (at_once, one), (sliced, several) = trajectories(60.0), trajectories(1e-4)
    assert at_once == sliced
    assert one == 1 < several


def test_a_recorded_turn_that_is_left_out_has_its_place(fresh_policy):
    asked = questions(3)
    recorded = [RecordedTurn(q, "final", "", "long " * n, GoldStep("", "", "a")) for q, n in zip(asked, (1, 500, 1), strict=True)]
    config = RolloutConfig(mode="offline", group_size=2, max_prompt_tokens=300, max_new_tokens=4)
    run = EpisodeRun(recorded, TransformersEngine(fresh_policy), None, config, 0, Timeline())
    assert [(place, len(found)) for place, found in run.work()] == [(0, 1), (1, 0), (2, 1)]
    assert run.unfinished == 0


def test_a_worker_s_seconds_add_up_to_the_clock_and_its_spans_cover_them(fresh_policy):
    engine = TransformersEngine(fresh_policy)
    timeline = EngineTimeline(engine, drawn=True)
    began = time.time()
    time.sleep(0.05)
    timeline.resume()
    run = EpisodeRun(questions(6), engine, Library(0.05), RolloutConfig(group_size=4, max_new_tokens=24), 3, timeline)
    run.work()
    report = timeline.report(3, 7, [], 0)
    passed = time.time() - began
    assert report.seconds["idle"] >= 0.05
    assert sum(report.seconds.values()) == pytest.approx(passed, rel=0.1)
    assert sum(span.end - span.start for span in report.spans) == pytest.approx(sum(report.seconds.values()), rel=0.1)
    ends = np.array([(span.start, span.end) for span in report.spans])
    assert (ends[1:, 0] >= ends[:-1, 1] - 1e-3).all()  # one thing at a time
    assert report.sampled_tokens > 6 * 4 * 2
    assert (report.worker, report.policy_version) == (3, 7)
    assert timeline.report(3, 7, [], 0).sampled_tokens == 0


def test_short_gaps_between_spans_of_one_name_are_closed():
    timeline = Timeline(drawn=True)
    timeline.did("decode", 10.0, 1.0)
    timeline.did("decode", 11.001, 1.0)
    timeline.did("search", 12.001, 0.5)
    timeline.did("decode", 12.6, 0.1)
    timeline.did("decode", 13.0, 0.1)
    seconds, spans = timeline.take()
    assert [(span.name, round(span.start, 3), round(span.end, 3)) for span in spans] == [
        ("decode", 10.0, 12.001), ("search", 12.001, 12.501), ("decode", 12.6, 12.7), ("decode", 13.0, 13.1)
    ]  # fmt: skip
    assert seconds["decode"] == pytest.approx(2.2)
    assert timeline.take() == ({}, [])
