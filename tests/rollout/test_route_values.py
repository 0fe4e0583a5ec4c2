"""What every knowledge base would have brought: values that are measured beside an episode."""

from __future__ import annotations

import random
import re
import time
from dataclasses import replace

import pytest
from scripted import Card, OneByOne, Script
from valued_atlas import AtlasLibrary

from experiments.config import RunConfigError, load_config
from experiments.datasets import training_dataset
from experiments.evaluation.evaluator import rollout_as_measured
from experiments.worlds.atlas import Atlas
from experiments.worlds.teacher import answer_response, plan_response
from retrieval_actors.records import Passage
from rollout.config import RolloutConfig, ValueConfig
from rollout.engines.transformers_engine import TransformersEngine
from rollout.episode_pool import EpisodePool
from rollout.information_gain import gold_probabilities
from rollout.needs import askable_needs
from rollout.policies import load_policy
from rollout.prompts import find_prompts
from rollout.record_files import read_rollouts, write_rollouts
from rollout.records import GoldStep, Question
from rollout.roll_out import roll_out
from rollout.route_values import is_right, taken
from rollout.trajectory_summary import summary_of

QUESTION = Question("q", "Which river crosses the capital of Kormu?", ("Arun",))
CAPITAL, RIVER = "What is the capital of Kormu?", "Which river crosses Tasla?"
MEASURED = ValueConfig(measured=True, best_trunk=0.0)
CONFIG = RolloutConfig(group_size=2, max_steps=2, values=MEASURED)
FROM_THE_BEST = replace(CONFIG, values=replace(MEASURED, best_trunk=1.0))


class Shelves:
    """`text` and `twin` hold the same passages, and hold all; `table` holds nothing. `broken`: whose searches fail."""

    catalog = (Card(), Card("twin", "Twin Retriever"), Card("table", "Table Retriever"))

    def __init__(self, broken: str = ""):
        self.broken = broken

    def search_routed(self, asked, k):
        found = {CAPITAL: "The capital of Kormu is Tasla.", RIVER: "The Arun crosses Tasla."}
        nothing = Passage("0", "Nothing is known of it.")
        return [
            [Passage(f"{kb}-{i}", text, kb=kb, error="down" if kb == self.broken else "") for i, text in enumerate(texts)]
            for kb, query in asked
            for texts in [[found.get(query.text, nothing.text) if kb != "table" else nothing.text, nothing.text]]
        ]


def traveller(luck: float = 1.0, leak: str = ""):
    """Asks for the capital, then for the river; reads what stands there. Its final turn repeats the river if it knows it, with some luck."""
    random_ = random.Random(3)

    def say(kind, prompt, sibling):
        if kind == "plan":
            if "Arun" in prompt:
                return plan_response("t", "None", "None")
            retriever = "Table Retriever" if sibling else "Text Retriever"
            return plan_response("t", leak or (RIVER if "Tasla" in prompt else CAPITAL), retriever)
        if kind == "answer":
            return answer_response("t", next((name for name in ("Arun", "Tasla") if f" {name}" in prompt.split("Question:")[0]), "unknown"))
        return answer_response("t", "Arun" if "Arun" in prompt and random_.random() < luck else "Ob")

    return say


def valued(policy, config=CONFIG, library=None, **how):
    (trajectory,) = roll_out([QUESTION], Script(policy, traveller(**how)), library or Shelves(), config, seed=4)
    return trajectory


def test_the_right_knowledge_base_is_worth_the_right_answer_less_two_searches_and_a_wrong_one_nothing(fresh_policy, tmp_path):
    trajectory = valued(fresh_policy)
    first, *_ = [group for group in trajectory.groups if group.state.kind == "plan"]
    (query,) = first.values.queries
    assert (first.values.kbs, query.query, query.answers) == (("text", "twin", "table"), CAPITAL, ("Tasla", "Tasla", "unknown"))
    assert query.values == pytest.approx((0.96, 0.96, -0.02))
    assert (query.unknown, first.values.stop) == (0.0, 0.0)
    assert first.values.spread == pytest.approx(0.98)
    write_rollouts(tmp_path / "rollouts", [trajectory], [])
    assert [group.values for group in read_rollouts(tmp_path / "rollouts")[0][0].groups] == [group.values for group in trajectory.groups]


def test_two_identical_knowledge_bases_have_bit_equal_values_as_a_state_is_valued_once(fresh_policy):
    trajectory = valued(fresh_policy, luck=0.5)
    found = [query for group in trajectory.groups if group.values for query in group.values.queries]
    assert found
    assert all(query.values[0] == query.values[1] for query in found)
    first = trajectory.groups[0].values
    # Asked: stopping, three knowledge bases, `unknown`. One reads the same as its twin, one nothing.
    assert (first.asked, first.sampled, first.reused, first.failed) == (5, 3, 2, 0)


def test_a_state_that_an_earlier_turn_has_valued_is_not_valued_again(fresh_policy):
    trajectory = valued(fresh_policy, FROM_THE_BEST)
    _, second = [group for group in trajectory.groups if group.state.kind == "plan"]
    assert second.state.history[0].answer == "Tasla"
    assert (second.values.asked, second.values.reused) == (5, 3)  # stopping here, which the first turn has valued; the twin; nothing read
    counts = summary_of(trajectory).counts
    assert counts["values_asked"] == counts["values_reused"] + counts["values_sampled"] + counts["values_failed"]
    turns = sum(len(turn.response_ids) for group in trajectory.groups for turn in group.turns)
    assert counts["sampled_tokens"] == turns + counts["value_tokens"]


def test_a_query_that_gives_the_answer_away_gains_nothing_over_its_unknown_branch(fresh_policy):
    trajectory = valued(fresh_policy, leak="Is it the Arun?")
    (query,) = trajectory.groups[0].values.queries
    assert query.unknown == 1.0
    assert max(query.values) - query.unknown <= 0.02


def test_with_best_trunk_the_episode_goes_on_from_the_best_route_though_no_sibling_took_it(fresh_policy):
    say = traveller()
    script = Script(fresh_policy, lambda kind, prompt, sibling: say(kind, prompt, sibling or 1))
    (trajectory,) = roll_out([QUESTION], script, Shelves(), FROM_THE_BEST, seed=4)
    assert [step.action.kb in ("text", "twin") for step in trajectory.steps] == [True, True]
    assert trajectory.answer == "Arun"
    assert all("Table Retriever" in step.plan.text for step in trajectory.steps)
    drawn = valued(fresh_policy)  # never the best: a sibling is drawn
    assert all(step.action.kb in ("text", "table", None) for step in drawn.steps)


def test_after_a_failed_search_there_are_no_values_and_the_failure_is_counted(fresh_policy):
    for broken in ("table", "twin"):
        values = valued(fresh_policy, library=Shelves(broken)).groups[0].values
        assert values.queries == ()
        assert (values.asked, values.failed) == (5, 4)
        assert values.spread == 0.0


def test_a_branch_that_does_not_fit_fails_alone_and_its_query_has_no_values(fresh_policy):
    fits = valued(fresh_policy)
    longest = max(len(group.state.prompt_ids) for group in fits.groups if group.state.kind == "answer")
    (trajectory,) = roll_out(
        [QUESTION], Script(fresh_policy, traveller()), Shelves(), replace(CONFIG, max_prompt_tokens=longest - 1), seed=4
    )
    assert "max_prompt_tokens" in trajectory.error  # of the episode's own turn, after its values
    values = trajectory.groups[0].values
    assert (values.queries, values.failed) == ((), 4)
    assert values.tokens > 0


def test_an_episode_that_is_cancelled_takes_its_branches_with_it(fresh_policy):
    engine = OneByOne(fresh_policy, traveller(), at_once=1)
    pool = EpisodePool(engine, Shelves())
    ticket, end = pool.add(QUESTION, CONFIG, seed=4), time.monotonic() + 60
    while not (pool.unfinished > 2 and engine.unfinished) and time.monotonic() < end:  # the first, and two readings at least
        pool.advance(wait_s=0.01)
    assert engine.unfinished
    pool.cancel(ticket)
    assert [event.kind for event in pool.advance()] == ["failed"]
    assert (pool.unfinished, engine.unfinished) == (0, 0)
    pool.close()


def test_a_search_costs_what_its_knowledge_base_costs(fresh_policy):
    values = valued(fresh_policy, replace(CONFIG, values=replace(MEASURED, prices={"twin": 0.2}))).groups[0].values
    assert values.queries[0].values == pytest.approx((0.96, 0.78, -0.02))  # the continuation asks `text`
    with pytest.raises(
        RunConfigError, match=r"rollout.values.prices.laws: no such knowledge base; expected some of text, text_image, table"
    ):
        training_dataset(load_config(["smoke.yaml", "rollout.values.prices.laws=0.1"]))


def test_with_the_belief_leaf_a_state_is_worth_the_probability_of_the_gold_answer_and_no_final_turn_is_sampled(fresh_policy):
    sampled = valued(fresh_policy).groups[0].values
    values = valued(fresh_policy, replace(CONFIG, values=replace(MEASURED, leaf="belief"))).groups[0].values
    message = find_prompts(CONFIG.prompts).final(QUESTION.text, False, ())
    product, mean = (gold_probabilities(fresh_policy, [message], None, QUESTION.answers, each)[0] for each in (False, True))
    assert values.stop == pytest.approx(product, rel=1e-4)
    assert 0 < product < mean
    (query,) = values.queries
    assert query.values[0] == query.values[1]
    assert query.unknown >= 0.0
    assert (values.asked, values.sampled, values.reused, values.failed) == (5, 3, 2, 0)
    assert 0 < values.tokens < sampled.tokens


def test_a_guess_that_stands_in_no_passage_or_is_long_counts_as_unknown():
    passages = [Passage("1", "Tasla | year 2003 | people 1,250", kb="table")]
    assert taken("1250", passages) == "1250"
    assert taken("Tasl", passages) == taken("Unknown.", passages) == taken("", passages) == "unknown"
    everything = "Tasla year 2003 people 1250 and a b c d"
    assert taken(everything, [Passage("1", everything)]) == "unknown"


def test_an_answer_is_right_as_the_final_reward_says():
    assert is_right("the Arun river", ["Ob", "Arun"], 3)
    assert not is_right("the Arun, Ob, Don, Inn or Po", ["Arun"], 3)
    assert is_right("the Arun, Ob, Don, Inn or Po", ["Arun"], -1)
    assert not is_right("", ["Arun"], 3)


def test_rewards_turn_the_measurement_on_and_evaluations_turn_it_off():
    config = load_config(["reward.terms.query_value.plan=1", "reward.terms.route_regret=1", "reward.spare_answer_tokens=1"])
    assert (config.rollout.values.measured, config.rollout.values.spare_answer_tokens, config.rollout.record_routes) == (True, 1, True)
    assert not rollout_as_measured(config).values.measured
    assert not load_config([]).rollout.values.measured
    for setting in ("rollout.mode=chain", "rollout.routing=ircot", "learner.normalisation=components"):
        with pytest.raises(RunConfigError, match=re.escape(setting.partition("=")[0])):
            load_config(["reward.terms.route_regret=1", setting])


@pytest.fixture(scope="module")
def travelled():
    """The cold-start policy in an atlas with pictures: (policy, library, questions)."""
    atlas = Atlas("train", seed=5, worlds=1, countries=24)
    return load_policy("experiments/worlds/cold_start_policy"), AtlasLibrary(atlas), atlas.questions(16)


@pytest.mark.slow
def test_values_depend_neither_on_the_slots_of_the_engine_nor_on_the_other_questions(travelled):
    policy, library, questions = travelled
    config = RolloutConfig(group_size=3, plan_siblings=2, max_steps=2, values=ValueConfig(measured=True, samples=1))
    few, many = (roll_out(questions[4:8], TransformersEngine(policy, slots), library, config, seed=1) for slots in (16, 256))
    alone = roll_out(questions[5:6], TransformersEngine(policy), library, config, seed=1)
    assert any(question.image for question in questions[4:8])
    assert any(group.values for trajectory in few for group in trajectory.groups)
    for one, other in zip([*few, few[1]], [*many, *alone], strict=True):
        for a, b in zip(one.groups, other.groups, strict=True):
            assert (a.values, a.trunk, a.state.key) == (b.values, b.trunk, b.state.key)
            assert all(x.logprobs.tobytes() == y.logprobs.tobytes() for x, y in zip(a.turns, b.turns, strict=True))


@pytest.mark.slow
def test_on_the_atlas_the_best_value_is_a_gold_knowledge_base_and_costs_at_most_a_third_more_tokens(travelled):
    policy, library, questions = travelled
    plain = roll_out(questions, TransformersEngine(policy), library, RolloutConfig(), seed=1)
    config = RolloutConfig(plan_siblings=4, values=ValueConfig(measured=True))
    found = roll_out(questions, TransformersEngine(policy), library, config, seed=1)
    tokens, before = (sum(summary_of(trajectory).counts["sampled_tokens"] for trajectory in each) for each in (found, plain))
    assert tokens <= 1.3 * before
    right, best = 0, 0
    for group in (group for trajectory in found for group in trajectory.groups if group.values):
        open_needs = askable_needs(group.state.question, group.state.history) or ()
        needs = {kb: need.answer for need in open_needs for kb in need.kbs}
        for query in group.values.queries:
            values = dict(zip(group.values.kbs, query.values, strict=True))
            read = dict(zip(group.values.kbs, query.answers, strict=True))
            if any(read[kb] == answer for kb, answer in needs.items()):
                right += 1
                best += max(values[kb] for kb in needs) == max(values.values())
    assert right >= 5
    assert best >= 0.9 * right


def test_turns_that_nothing_judges_have_no_siblings(fresh_policy):
    """Without gold steps; a term of any kind of turn, or gold steps, bring them back."""

    def widths(*settings: str, question: Question = QUESTION) -> dict[str, set[int]]:
        config = load_config(["rollout.group_size=3", "rollout.plan_siblings=2", *settings]).rollout
        pool = EpisodePool(OneByOne(fresh_policy, traveller()), Shelves())
        pool.add(question, config, seed=0)
        found: dict[str, set[int]] = {}
        while pool.unfinished:
            for event in pool.advance():
                for group in event.trajectory.groups if event.trajectory else ():
                    found.setdefault(group.state.kind, set()).add(len(group.turns))
        return found

    assert widths() == {"plan": {1}, "answer": {1}, "final": {3}}
    assert widths("reward.terms.format=0.1") == {"plan": {2}, "answer": {3}, "final": {3}}
    assert widths("reward.terms.route_regret.plan=1", "reward.terms.step=1") == {"plan": {2}, "answer": {1}, "final": {3}}
    known = replace(QUESTION, gold_steps=(GoldStep(CAPITAL, "text", "Tasla"), GoldStep(RIVER, "text", "Arun")))
    assert widths(question=known) == {"plan": {2}, "answer": {3}, "final": {3}}
