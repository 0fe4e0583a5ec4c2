"""Chunks, stragglers and the questions' ledger, with workers that sleep behind real Ray calls."""

from __future__ import annotations

import copy
import functools
import json
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from experiments.benchmarks.simulated_workers import SimulatedGroup, SimulatedHandle, sleepers, sleeping_workers
from learner.question_ledger import QuestionLedger, ShuffledQuestions
from learner.rollout_batch import NOWHERE, RolloutBatch
from learner.rollout_workers import ATTEMPTS, RolloutWorkers
from rollout.records import Question


def questions(*seconds: float) -> list[Question]:
    return [Question(f"q{i}", str(s), ()) for i, s in enumerate(seconds)]


@pytest.fixture(scope="module")
def workers(ray_cluster):
    process = sleepers()
    workers = RolloutWorkers(sleeping_workers(3, [process]), chunk=2, deadline_s=60)
    workers.push(4, [])
    workers.process = process
    yield workers
    ray.kill(process)


def ids(found):
    """Of trajectories, or of what was rolled out."""
    return [
        name for part in found for name in ([s.question_id for s in part.summaries] if hasattr(part, "summaries") else [part.question.id])
    ]


def test_chunks_are_handed_out_as_they_finish_and_trajectories_keep_the_order_of_the_questions(workers):
    batch = RolloutBatch(questions(0.6, 0.6, 0.0, 0.0, 0.1, 0.1, 0.0), 2, seed=0)
    chunks = [number for number, _ in workers.work(batch)]
    assert sorted(chunks) == [0, 1, 2, 3]
    assert chunks[-1] == 0
    assert ids(batch.rolled_out()) == [f"q{i}" for i in range(7)]


@pytest.mark.parametrize("patience", [{"enough": 0.75}, {"straggler_s": 1.2}])
def test_stragglers_are_cut_off_by_count_or_by_time_and_what_the_others_of_their_chunk_did_is_kept(workers, patience):
    batch = RolloutBatch(questions(0.0, 30.0, 0.1, 0.0, 0.0, 0.1, 0.0, 30.0), 2, seed=0, **patience)
    found = dict(workers.work(batch))
    assert ids(batch.rolled_out()) == ["q0", "q2", "q3", "q4", "q5", "q6"]
    assert batch.unfinished() == [1, 7]
    assert {number: ids(trajectories) for number, trajectories in found.items()} == {
        0: ["q0"], 1: ["q2", "q3"], 2: ["q4", "q5"], 3: ["q6"]
    }  # fmt: skip
    assert ids(workers.roll_out(questions(0.0, 0.0, 0.0), seed=1)) == ["q0", "q1", "q2"]  # the workers are free again


def test_a_question_that_was_cut_off_often_is_waited_for(workers):
    batch = RolloutBatch(questions(0.0, 2.0, 30.0), 1, seed=0, straggler_s=0.3, waited_for=[1])
    list(workers.work(batch))
    assert batch.unfinished() == [2]


def test_without_a_limit_everything_is_waited_for(workers):
    batch = RolloutBatch(questions(0.0, 1.5), 1, seed=0)
    list(workers.work(batch))
    assert batch.unfinished() == []


class Asking(SimulatedGroup):
    """Two simulated workers; `asked`: ids of the questions that either was asked to begin."""

    def __init__(self, process):
        self.asked: list[str] = []
        handles = {i: SimulatedHandle(process, i, ("receive", "use_weights", "sample", "go_on")) for i in (21, 22)}
        super().__init__(handles)
        for handle in handles.values():
            handle.sample = SimpleNamespace(remote=functools.partial(self._note, handle.sample))

    def _note(self, call, questions, *rest):
        self.asked += [question.id for question in questions]
        return call.remote(questions, *rest)


def test_partial_rollouts_go_on_in_the_next_batch_and_are_not_begun_again(workers):
    group = Asking(workers.process)
    partial = RolloutWorkers(group, chunk=2, deadline_s=60, partial=True)
    partial.push(0, [])
    first = questions(0.0, 4.0, 0.1, 5.0)
    batch = RolloutBatch(first, 2, seed=0, enough=0.5)
    list(partial.work(batch))
    late = [first[place] for place in batch.unfinished()]
    assert [question.id for question in late] == ["q1", "q3"]
    partial.push(1, [])
    more = [Question("more", "0.0", ())]
    then = RolloutBatch([*late[::-1], *more], 2, seed=1, straggler_s=600)
    found = [part for _, parts in partial.work(then) for part in parts]
    assert sorted(ids(found)) == sorted([question.id for question in [*late, *more]])
    assert ids(then.rolled_out()) == [question.id for question in [*late[::-1], *more]]
    assert group.asked.count("q1") == group.asked.count("q3") == 1
    assert partial.held == []


def test_after_a_measurement_or_a_restored_checkpoint_they_begin_again(workers):
    group = Asking(workers.process)
    partial = RolloutWorkers(group, chunk=1, deadline_s=60, partial=True)
    partial.push(0, [])
    slow = questions(0.0, 1.0)
    list(partial.work(RolloutBatch(slow, 1, seed=0, enough=0.5)))
    assert len(partial.held) == 1
    partial.version = -1
    partial.push(0, [])
    list(partial.work(RolloutBatch(slow[1:], 1, seed=0)))
    assert group.asked == ["q0", "q1", "q1"]


@given(st.integers(0, 9), st.integers(1, 4), st.lists(st.lists(st.integers(0, 12) | st.none(), max_size=4), max_size=3))
def test_whatever_workers_hold_every_question_is_in_one_chunk(n, size, held):
    asked = [Question(f"q{i}", "0", ()) for i in range(13)]
    batch = RolloutBatch(asked[:n], size, seed=0)
    carried = batch.carry_on([[None if i is None else asked[i] for i in part] for part in held])
    assert sorted(place for chunk in batch.chunks for place in chunk.places) == list(range(n))
    assert [chunk.number for chunk in batch.chunks] == list(range(len(batch.chunks)))
    assert batch.chunks == [*carried, *batch.waiting]
    for chunk, part in zip(carried, held, strict=True):
        assert len(chunk.given) == len(part)
        assert [place for place in chunk.given if place != NOWHERE] == chunk.places
        assert all(place in (i, NOWHERE) for place, i in zip(chunk.given, part, strict=True))


@ray.remote(num_cpus=0)
class Ended:
    @ray.method(num_returns=2)
    def call(self) -> None:
        pass


class DyingGroup(SimulatedGroup):
    """One simulated worker; of its calls those die on which this list says so."""

    def __init__(self, process, dies: list[bool]):
        ended, fates = Ended.remote(), iter(dies)
        ray.kill(ended)

        def instead_of(call):
            return SimpleNamespace(remote=lambda *arguments: ended.call.remote() if next(fates) else call.remote(*arguments))

        handle: Any = SimulatedHandle(process, 1, ("receive", "use_weights", "sample", "go_on"))
        handle.sample, handle.go_on = instead_of(handle.sample), instead_of(handle.go_on)
        super().__init__({1: handle})


def test_a_chunk_that_makes_headway_between_losses_is_rolled_out_however_many_workers_it_has_lost(workers):
    three, begins, goes_on = [True] * 3, [False], [False] * 9
    group = DyingGroup(workers.process, [*three, *begins, *three, *begins, *goes_on])
    dying = RolloutWorkers(group, chunk=2, deadline_s=60)
    dying.push(1, [])
    batch = RolloutBatch(questions(0.0, 0.7), 2, seed=0, straggler_s=600)
    list(dying.work(batch))
    assert ids(batch.rolled_out()) == ["q0", "q1"]
    assert dying.requeued_chunks == 6 > ATTEMPTS


def test_a_chunk_of_which_nothing_comes_back_ends_the_run_and_names_its_questions(workers):
    dying = RolloutWorkers(DyingGroup(workers.process, [True] * 9), chunk=2, deadline_s=60)
    dying.push(1, [])
    with pytest.raises(RuntimeError, match=r"4 rollout workers died of the same questions \(q0, q1\)"):
        dying.roll_out(questions(0.0, 0.0), seed=0)
    assert dying.requeued_chunks == ATTEMPTS


class Numbers(ShuffledQuestions):
    """Seven questions in shuffled order, again and again."""

    def __init__(self):
        super().__init__(range(7), seed=3)


@given(st.lists(st.tuples(st.integers(1, 6), st.lists(st.sampled_from(["learned", "late", "open"]), min_size=6, max_size=6)), max_size=8))
def test_every_question_of_the_source_is_learned_once_whatever_is_cut_off_and_wherever_the_run_is_restarted(plan):
    ledger, learned = QuestionLedger(Numbers()), []
    for n, fates in plan:
        taken = ledger.take(n)
        assert len(taken) == n
        by_fate = {fate: [entry for entry, its in zip(taken, fates, strict=False) if its == fate] for fate in ("learned", "late", "open")}
        ledger.settle(by_fate["learned"])
        learned += [entry.question for entry in by_fate["learned"]]
        ledger.cut_off(by_fate["late"])
        if by_fate["open"]:  # on their way when the run ended
            state = json.loads(json.dumps(ledger.get_state()))
            ledger = QuestionLedger(Numbers())
            ledger.set_state(state)
    drawn = ledger.source.position
    ahead = copy.deepcopy(ledger).take(drawn - len(learned)) if drawn > len(learned) else []
    assert ledger.source.get_state()["position"] == drawn
    expected = Numbers().next(drawn)
    assert sorted(learned + [entry.question for entry in ahead]) == sorted(expected)


def test_a_ledger_with_nothing_on_its_way_goes_through_the_source_in_its_order():
    ledger, source = QuestionLedger(Numbers()), Numbers()
    for n in (3, 5, 4):
        taken = ledger.take(n)
        assert [entry.question for entry in taken] == source.next(n)
        ledger.settle(taken)
    assert ledger.get_state() == {"source": source.get_state(), "again": [], "asked_again": 0}
