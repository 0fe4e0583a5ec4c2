from __future__ import annotations

import re
from dataclasses import replace

import pytest
from scripted import Script

from experiments.worlds.teacher import answer_response, plan_response
from retrieval_actors.records import Query
from rollout.config import RolloutConfig
from rollout.records import Exchange, GoldStep, RecordedTurn
from rollout.roll_out import roll_out


def asks_the_gold_then_stops(question):
    """A perfect policy for one question: its gold steps in order, then the answer."""

    def say(kind, prompt, sibling):
        met = prompt.count("Sub-question")
        steps = question.gold_steps
        if kind == "plan":
            names = {"text": "Text Retriever", "text_image": "Text Image Retriever", "table": "Table Retriever"}
            return (
                plan_response("t", steps[met].query, names[steps[met].kbs[0]]) if met < len(steps) else plan_response("t", "None", "None")
            )
        if kind == "answer":
            return answer_response("t", next(step.answer for step in steps if step.query in prompt))
        return answer_response("t", question.answers[0])

    return say


@pytest.fixture
def two_steps(atlas):
    return next(q for q in atlas.questions(16) if q.family == "image_table")


def test_an_episode_plans_searches_answers_and_finishes(fresh_policy, retriever, two_steps):
    engine = Script(fresh_policy, asks_the_gold_then_stops(two_steps))
    (trajectory,) = roll_out([two_steps], engine, retriever, RolloutConfig(group_size=3), seed=0)
    flag, value = two_steps.gold_steps
    assert [step.exchange for step in trajectory.steps] == [Exchange(s.query, s.kbs[0], s.answer) for s in (flag, value)] + [None]
    assert trajectory.answer == two_steps.answers[0]
    assert trajectory.retrievals == 2
    assert [group.state.kind for group in trajectory.groups] == ["plan", "answer", "plan", "answer", "plan", "final"]
    assert all(len(group.turns) == 3 and group.turns[0].policy_version == 3 for group in trajectory.groups)
    assert all(passage.kb == step.exchange.kb for step in trajectory.steps if step.exchange for passage in step.passages)


def test_passages_of_a_step_are_read_once_and_forgotten(fresh_policy, retriever, two_steps):
    (trajectory,) = roll_out(
        [two_steps], Script(fresh_policy, asks_the_gold_then_stops(two_steps)), retriever, RolloutConfig(group_size=1), 0
    )
    passages = [passage.text for step in trajectory.steps for passage in step.passages]
    prompts = {group.state.kind: fresh_policy.tokenizer.decode(group.state.prompt_ids) for group in trajectory.groups}
    assert passages
    assert all(
        text in "".join(fresh_policy.tokenizer.decode(g.state.prompt_ids) for g in trajectory.groups if g.state.kind == "answer")
        for text in passages
    )
    assert not any(text in prompts["final"] for text in passages)


def test_passages_are_shuffled_but_the_same_for_the_same_seed(fresh_policy, retriever, two_steps):
    def orders(config):
        engine = Script(fresh_policy, asks_the_gold_then_stops(two_steps))
        return [
            [passage.id for step in roll_out([two_steps], engine, retriever, config, seed)[0].steps for passage in step.passages]
            for seed in (0, 0, *range(1, 9))
        ]

    shuffled = orders(RolloutConfig(group_size=1))
    assert shuffled[0] == shuffled[1]
    assert len({tuple(order) for order in shuffled}) > 2
    as_found = orders(RolloutConfig(group_size=1, shuffle_passages=False))
    assert len({tuple(order) for order in as_found}) == 1


def test_the_trunk_is_drawn_from_the_well_formed_siblings(fresh_policy, retriever, two_steps):
    good = asks_the_gold_then_stops(two_steps)
    engine = Script(fresh_policy, lambda kind, prompt, sibling: good(kind, prompt, sibling) if sibling == 2 else "nonsense")
    (trajectory,) = roll_out([two_steps], engine, retriever, RolloutConfig(group_size=4), seed=0)
    assert {group.trunk for group in trajectory.groups} == {2}


def test_a_malformed_plan_ends_the_retrieval_and_a_malformed_answer_is_unknown(fresh_policy, retriever, two_steps):
    (trajectory,) = roll_out([two_steps], Script(fresh_policy, lambda *_: "nonsense"), retriever, RolloutConfig(group_size=2), seed=0)
    assert [group.state.kind for group in trajectory.groups] == ["plan", "final"]
    assert trajectory.steps[0].action is None
    assert trajectory.answer == ""
    good = asks_the_gold_then_stops(two_steps)
    half = Script(fresh_policy, lambda kind, prompt, sibling: "nonsense" if kind == "answer" else good(kind, prompt, sibling))
    (trajectory,) = roll_out([two_steps], half, retriever, RolloutConfig(group_size=2), seed=0)
    assert trajectory.steps[0].exchange.answer == "unknown"


def test_an_episode_stops_asking_after_max_steps(fresh_policy, retriever, two_steps):
    query = two_steps.gold_steps[0].query
    engine = Script(
        fresh_policy, lambda kind, *_: plan_response("t", query, "Text Retriever") if kind == "plan" else answer_response("t", "x")
    )
    (trajectory,) = roll_out([two_steps], engine, retriever, RolloutConfig(group_size=1, max_steps=2), seed=0)
    assert trajectory.retrievals == 2
    assert [group.state.kind for group in trajectory.groups] == ["plan", "answer"] * 2 + ["final"]


def test_chain_mode_samples_whole_episodes_whose_equal_states_have_equal_keys(engine, retriever, atlas):
    questions = atlas.questions(4)
    chains = roll_out(questions, engine, retriever, RolloutConfig(mode="chain", group_size=3, max_new_tokens=8), seed=0)
    assert [trajectory.question.id for trajectory in chains] == [question.id for question in questions for _ in range(3)]
    assert all(len(group.turns) == 1 for trajectory in chains for group in trajectory.groups)
    first = [trajectory.groups[0] for trajectory in chains]
    assert [len({group.state.key for group in first[i : i + 3]}) for i in (0, 3, 6, 9)] == [1, 1, 1, 1]
    assert len({group.state.key for group in first}) == 4
    assert len({group.turns[0].response_ids.tobytes() for group in first[:3]}) > 1


def test_a_trajectory_does_not_depend_on_its_batch(engine, retriever, atlas):
    questions = atlas.questions(6)
    config = RolloutConfig(group_size=2, max_new_tokens=8)
    together = roll_out(questions, engine, retriever, config, seed=4)
    for question, expected in zip(questions, together, strict=True):
        (alone,) = roll_out([question], engine, retriever, config, seed=4)
        assert [t.response_ids.tolist() for g in alone.groups for t in g.turns] == [
            t.response_ids.tolist() for g in expected.groups for t in g.turns
        ]


def test_oracle_routing_asks_the_gold_knowledge_base_and_stops_when_nothing_is_needed(fresh_policy, retriever, two_steps):
    good = asks_the_gold_then_stops(two_steps)
    blind = Script(fresh_policy, lambda *args: good(*args).replace("Table Retriever", "Text Retriever"))
    (trajectory,) = roll_out([two_steps], blind, retriever, RolloutConfig(group_size=1, routing="oracle"), seed=0)
    assert [step.exchange.kb for step in trajectory.steps if step.exchange] == ["text_image", "table"]
    (trajectory,) = roll_out([two_steps], blind, retriever, RolloutConfig(group_size=1), seed=0)
    assert [step.exchange.kb for step in trajectory.steps if step.exchange] == ["text_image", "text"]


def test_static_retrieval_reads_every_knowledge_base_at_once(fresh_policy, retriever, two_steps):
    engine = Script(fresh_policy, lambda *_: answer_response("t", "x"))
    (trajectory,) = roll_out([two_steps], engine, retriever, RolloutConfig(group_size=1, routing="all", passages=2), seed=0)
    assert sorted(p.kb for p in trajectory.groups[0].state.passages) == ["table"] * 2 + ["text"] * 2 + ["text_image"] * 2
    assert (trajectory.retrievals, trajectory.answer, len(engine.prompts)) == (3, "x", 1)


def test_a_question_with_a_picture_finds_it_in_the_image_knowledge_base(retriever, atlas):
    for question in (q for q in atlas.questions(32) if q.family == "image"):
        (found,) = retriever.search("text_image", [Query(question.text, question.image.data)], 1)
        assert question.answers[0] in found[0].text


def test_recorded_turns_become_one_group_each_and_too_long_prompts_are_left_out(engine, atlas):
    question = atlas.questions(1)[0]
    target = GoldStep("q", "text", "a")
    recorded = [RecordedTurn(question, "plan", "System.", text, target) for text in ("short", "long " * 500)]
    config = RolloutConfig(mode="offline", group_size=4, max_prompt_tokens=300, max_new_tokens=4)
    (trajectory,) = roll_out(recorded, engine, None, config, 0)
    assert len(trajectory.groups[0].turns) == 4
    assert trajectory.groups[0].state.target == target


def test_a_question_whose_prompt_is_too_long_fails_with_what_to_change_and_the_others_go_on(engine, retriever, atlas):
    long, short = atlas.questions(2)
    long = replace(long, text=long.text + " or not" * 300)
    config = RolloutConfig(max_prompt_tokens=300, group_size=2, max_new_tokens=4, max_passage_chars=40)
    failed, answered = roll_out([long, short], engine, retriever, config, 0)
    assert re.match(
        rf"question {long.id}: its plan prompt has \d+ tokens, more than rollout\.max_prompt_tokens=300; raise it", failed.error
    )
    assert (failed.question, failed.groups, failed.final, failed.answer) == (long, (), None, "")
    assert answered.final is not None
    assert not answered.error
