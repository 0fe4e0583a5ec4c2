"""Many episodes side by side: what they share never shows in what they sample."""

from __future__ import annotations

import re
import time

import pytest
from scripted import Library, OneByOne, Script

from experiments.worlds.teacher import answer_response, plan_response
from rollout.config import RolloutConfig
from rollout.engines.transformers_engine import TransformersEngine
from rollout.episode import derive_seed
from rollout.episode_pool import EpisodePool
from rollout.policies import load_policy
from rollout.records import Question
from rollout.roll_out import roll_out

CONFIG = RolloutConfig(group_size=2, max_steps=2, passages=2)


def questions(n):
    return [Question(f"q{i}", f"Which city has flag {i} ?", (f"city {i}",)) for i in range(n)]


def add_all(pool, asked):
    return pool.add_all(asked, CONFIG, seed=1, repeats=[0] * len(asked))


def asks_as_often_as_its_number_says(kind, prompt, sibling):
    """Question i asks i % 3 times; siblings say the same thing in different ways."""
    number = int(re.search(r"flag (\d+)", prompt)[1])
    met = prompt.count("Sub-question")
    if kind == "plan":
        query, retriever = (f"flag {number} part {met} {sibling}", "Text Retriever") if met < number % 3 else ("None", "None")
        return plan_response("t", query, retriever)
    return answer_response("t", f"{kind} {number} {met} {sibling}")


def run(pool, tickets):
    """Events and trajectories; at most a minute."""
    events, end = [], time.monotonic() + 60
    while pool.unfinished and time.monotonic() < end:
        events += pool.advance(wait_s=0.05)
    assert not pool.unfinished
    pool.close()
    return events, {event.ticket: event.trajectory for event in events if event.trajectory}


def told(trajectories):
    """Everything but the seconds."""
    return [
        (t.question.id, t.answer, t.error, [(g.state.key, g.trunk, [turn.response_ids.tolist() for turn in g.turns]) for g in t.groups])
        for t in trajectories
    ]


def test_searches_that_answer_late_or_in_another_order_change_neither_trajectories_nor_batches(fresh_policy):
    found = []
    for delays in ((0.0,), (0.05, 0.0, 0.02), (0.0, 0.0, 0.08, 0.01)):
        engine, library = OneByOne(fresh_policy, asks_as_often_as_its_number_says), Library(*delays)
        pool = EpisodePool(engine, library, slots=6)
        tickets = add_all(pool, questions(20))
        _, trajectories = run(pool, tickets)
        found.append((told(trajectories[t] for t in tickets), sorted(library.asked), engine.waited_with))
    assert found[0] == found[1] == found[2]
    assert {len(t[3]) for t in found[0][0]} == {2, 4, 5}  # plan, final; plan, answer, plan, final; ... up to max_steps


def test_however_episodes_share_the_engine_they_are_the_same(fresh_policy):
    def rolled(engine, join="in_order", slots=0, tokens=262144):
        pool = EpisodePool(engine, Library(0.01, 0.0), tokens, join, slots)
        tickets = add_all(pool, questions(12))
        _, trajectories = run(pool, tickets)
        return told(trajectories[t] for t in tickets)

    expected = rolled(Script(fresh_policy, asks_as_often_as_its_number_says))
    for settings in ({"slots": 4}, {"join": "as_they_come"}, {"tokens": 1}, {"tokens": 500, "slots": 30}):
        assert rolled(OneByOne(fresh_policy, asks_as_often_as_its_number_says), **settings) == expected


def test_searches_are_made_while_the_engine_goes_on(fresh_policy):
    engine, library = OneByOne(fresh_policy, asks_as_often_as_its_number_says, at_once=1), Library(0.05)
    collect = engine.collect
    engine.collect = lambda wait_s=0.0: (time.sleep(0.01), collect())[1]
    pool = EpisodePool(engine, library, slots=16)
    run(pool, add_all(pool, questions(30)))
    assert len(library.asked) > 3
    assert pool.timeline.seconds["generate"] > 1.0
    assert pool.timeline.seconds["search"] < 0.5 * 0.05 * len(library.asked)


def test_what_happens_in_an_episode_is_told_in_its_order(fresh_policy):
    pool = EpisodePool(Script(fresh_policy, asks_as_often_as_its_number_says), Library(), join="as_they_come")
    (ticket,) = add_all(pool, questions(2)[1:])
    events, trajectories = run(pool, [ticket])
    assert [event.kind for event in events] == ["planned", "searched", "answered", "planned", "finished"]
    planned, searched, answered, stopped, finished = events
    assert planned.step.action.kb == "text"
    assert planned.group.chosen is planned.step.plan
    assert [p.id for p in searched.step.passages] == ["p0", "p1"]
    assert answered.step == trajectories[ticket].steps[0]
    assert stopped.step.action.kb is None
    assert finished.trajectory.answer.startswith("final 1 1")
    assert finished.group.chosen is finished.trajectory.final


def test_episodes_wait_for_room_and_all_get_it(fresh_policy):
    most = 0

    class Watched(OneByOne):
        def collect(self, wait_s=0.0):
            nonlocal most
            most = max(most, self.unfinished)
            return super().collect(wait_s)

    pool = EpisodePool(Watched(fresh_policy, asks_as_often_as_its_number_says), Library(), tokens=3 * 400)
    tickets = add_all(pool, questions(40))
    _, trajectories = run(pool, tickets)
    assert sorted(trajectories) == tickets
    assert 2 <= most <= 16  # 2 siblings of at least 150 tokens each


def test_a_deadline_ends_an_episode_with_what_it_had_and_the_others_go_on(fresh_policy):
    library = Library(0.4, 0.0)
    pool = EpisodePool(OneByOne(fresh_policy, asks_as_often_as_its_number_says), library, join="as_they_come")
    asks, answers = questions(4)[1], questions(4)[3]
    late = pool.add(asks, CONFIG, 1, deadline_s=0.1)
    fine = pool.add(answers, CONFIG, 1, deadline_s=60)
    events, trajectories = run(pool, [late, fine])
    assert [event.kind for event in events if event.ticket == late] == ["planned", "failed"]
    assert trajectories[late].error == "question q1: no answer within its deadline"
    assert [group.state.kind for group in trajectories[late].groups] == ["plan"]
    assert trajectories[fine].answer.startswith("final")


def test_a_cancelled_episode_leaves_the_engine_at_once(fresh_policy):
    engine = OneByOne(fresh_policy, asks_as_often_as_its_number_says, at_once=1)
    pool = EpisodePool(engine, Library())
    first, second, third = (pool.add(q, CONFIG, 1) for q in questions(3))
    pool.advance()
    assert engine.unfinished == 5
    pool.cancel(second)
    assert engine.unfinished == 3
    events, trajectories = run(pool, [first, second, third])
    assert trajectories[second].error == "cancelled"
    assert not trajectories[first].error + trajectories[third].error
    assert [event.kind for event in events if event.ticket == second] == ["failed"]


def test_a_prompt_that_the_engine_refuses_fails_its_question_alone(fresh_policy):
    class Narrow(Script):
        def submit(self, request):
            if "flag 1 " in self.policy.tokenizer.decode(request.prompt_ids):
                raise ValueError("the prompt has 300 tokens, the context 200")
            return super().submit(request)

    refused, fine = roll_out(questions(3)[1:], Narrow(fresh_policy, asks_as_often_as_its_number_says), Library(), CONFIG, 0)
    assert refused.error == "question q1: the prompt has 300 tokens, the context 200"
    assert fine.answer


def test_only_the_knowledge_bases_that_are_allowed_are_shown_and_asked(fresh_policy):
    engine = Script(fresh_policy, asks_as_often_as_its_number_says)
    pool = EpisodePool(engine, Library())
    ticket = pool.add(questions(3)[2], CONFIG, 1, kbs=())
    _, trajectories = run(pool, [ticket])
    assert trajectories[ticket].steps[0].action is None  # the retriever it names does not exist for it
    assert not any("Text Retriever" in prompt for prompt in engine.prompts)


def test_new_weights_between_two_batches_take_effect_and_old_trajectories_stay_reproducible(fresh_policy, tmp_path):
    fresh_policy.save(tmp_path)
    engine = TransformersEngine(load_policy(tmp_path))
    before = {name: parameter.clone() for name, parameter in engine.policy.model.named_parameters()}
    config = RolloutConfig(group_size=2, max_new_tokens=6)
    first = roll_out(questions(3), engine, Library(), config, seed=5)
    engine.update_weights(1, {name: 1.5 * tensor for name, tensor in before.items()})
    other = roll_out(questions(3), engine, Library(), config, seed=5)
    engine.update_weights(2, before)
    again = roll_out(questions(3), engine, Library(), config, seed=5)
    assert told(first) == told(again) != told(other)
    assert {turn.policy_version for t in other for g in t.groups for turn in g.turns} == {1}


@pytest.mark.parametrize("mode", ["branch", "chain"])
def test_every_question_has_its_own_random_stream(fresh_policy, mode):
    config = RolloutConfig(mode=mode, group_size=2, max_new_tokens=6)
    engine = TransformersEngine(fresh_policy)
    together = told(roll_out(questions(4), engine, Library(), config, seed=2))
    alone = [told(roll_out([question], engine, Library(), config, seed=2)) for question in questions(4)]
    assert together == [t for found in alone for t in found]
    assert derive_seed(2, "q0", 0) != derive_seed(2, "q1", 0)


def drawn(trajectories):
    """What was sampled, episode by episode."""
    return [tuple(tuple(turn.response_ids.tolist()) for g in t.groups for turn in g.turns) for t in trajectories]


@pytest.mark.parametrize("mode", ["branch", "chain"])
def test_a_question_that_stands_twice_draws_other_episodes_and_the_first_time_those_it_draws_alone(fresh_policy, mode):
    config = RolloutConfig(mode=mode, group_size=2, max_new_tokens=6)
    engine, (first, second) = TransformersEngine(fresh_policy), questions(2)
    asked = [first, second, first, first]
    found = drawn(roll_out(asked, engine, Library(), config, seed=2))
    assert len(set(found)) == len(found) == len(asked) * (2 if mode == "chain" else 1)
    assert found == drawn(roll_out(asked, engine, Library(), config, seed=2))
    copies = len(found) // len(asked)
    assert found[: 2 * copies] == drawn(roll_out([first, second], engine, Library(), config, seed=2))


def test_a_search_that_raises_leaves_the_engine_to_the_next_questions(fresh_policy):
    class Broken(Library):
        def search_routed(self, asked, k):
            raise RuntimeError("the shards are gone")

    engine = OneByOne(fresh_policy, asks_as_often_as_its_number_says)
    with pytest.raises(RuntimeError, match="the shards are gone"):
        roll_out(questions(9), engine, Broken(), CONFIG, 0)
    assert engine.unfinished == 0
    assert all(trajectory.answer for trajectory in roll_out(questions(3), engine, Library(), CONFIG, 0))
