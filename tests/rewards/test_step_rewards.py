"""Every rule of the step rewards, on turns written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_episode import CAPITAL, PEOPLE, QUESTION, RETRIEVERS, plan, said, same, turn
from scored_episode import episode as whole_episode

from experiments.datasets.paper_sets import read_recorded_steps
from retrieval_actors.records import Passage
from rewards.actor import count_routes, score_trajectory, texts_to_compare
from rewards.config import RewardConfig
from rewards.scored_summary import Route
from rewards.step_rewards import abstain_reward, answer_gold, answer_reward, plan_needs, plan_reward
from rollout.records import Exchange, GoldStep, Question, State, Trajectory, TurnGroup

STEPS = (Path(__file__).parents[2] / "../shared/data/r1router/grpo_dataset_valid_new.jsonl").resolve()


def state(kind: str, question: Question = QUESTION, **seen) -> State:
    return State(kind, np.array([1, 2, 3], np.int32), None, question, **seen)


def earned(text: str, needs, config: RewardConfig | None = None) -> float:
    return plan_reward(text, needs, same, config or RewardConfig(), RETRIEVERS).total


def test_the_gold_query_to_the_gold_knowledge_base_earns_one():
    assert earned(plan(CAPITAL.query, "Text Retriever"), [CAPITAL]) == pytest.approx(1.0)


def test_each_part_of_a_plan_turn_is_worth_its_weight():
    reward = plan_reward(plan("What is the capital of Belsi?", "Table Retriever"), [CAPITAL], same, RewardConfig(), RETRIEVERS)
    assert reward.components == {"format": 1.0, "query": 0.9, "entity": 0.0, "routing": 0.0, "premature": 0.0}
    assert reward.total == pytest.approx(0.2 * 0.9)
    assert earned(plan("What is the capital of Kormu now?", "Table Retriever"), [CAPITAL]) == pytest.approx(0.2 * 0.9 + 0.3)
    assert earned(plan("How many people lived in Tasla?", "Table Retriever"), [PEOPLE]) == pytest.approx(0.2 * 0.9 + 0.3 * 0.5 + 0.5)


def test_the_weights_of_the_paper_are_one_line_of_configuration():
    paper = RewardConfig(query_weight=0.5, entity_weight=0.0, routing_weight=0.5)
    assert earned(plan("What is the capital of Belsi?", "Text Retriever"), [CAPITAL], paper) == pytest.approx(0.5 * 0.9 + 0.5)


def test_a_need_without_entities_lends_their_weight_to_the_query():
    flag = GoldStep("which country has this flag?", "text_image", "Kormu")
    reward = plan_reward(plan("whose flag is it?", "Text Image Retriever"), [flag], same, RewardConfig(), RETRIEVERS)
    assert reward.total == pytest.approx((0.2 + 0.3) * 0.9 + 0.5)


def test_a_plan_turn_is_compared_with_the_best_need_that_is_left():
    other = GoldStep("What is the capital of Belsi?", "text", "Runo", ("Belsi",))
    assert earned(plan(other.query, "Text Retriever"), [CAPITAL, other]) == pytest.approx(1.0)


@given(
    st.lists(st.sets(st.sampled_from(list(RETRIEVERS.values())), min_size=1), min_size=1, max_size=3),
    st.sampled_from([*RETRIEVERS, "None"]),
    st.sampled_from([CAPITAL.query, PEOPLE.query, "Who?"]),
    st.booleans(),
)
def test_a_need_with_several_knowledge_bases_is_worth_as_much_as_one_need_for_each(kbs, retriever, query, paper_stops):
    text, config = plan("None" if retriever == "None" else query, retriever), RewardConfig(paper_stops=paper_stops)
    needs = [replace(need, kbs=tuple(found)) for need, found in zip((CAPITAL, PEOPLE, CAPITAL), kbs, strict=False)]
    apart = [replace(need, kbs=(kb,)) for need in needs for kb in need.kbs]
    assert earned(text, needs, config) == earned(text, apart, config)


def test_any_of_its_knowledge_bases_is_right_for_a_need():
    both = replace(CAPITAL, kbs=("text", "table"))
    assert [earned(plan(CAPITAL.query, name), [both]) for name in ("Text Retriever", "Table Retriever")] == pytest.approx([1.0, 1.0])
    assert earned(plan(CAPITAL.query, "Text Image Retriever"), [both]) == pytest.approx(0.5)


def test_stopping_is_right_only_when_no_need_is_left():
    stop = plan("None", "None")
    assert earned(stop, [CAPITAL]) == 0.0
    assert earned(stop, []) == 1.0
    assert earned(plan(CAPITAL.query, "Text Retriever"), []) == 0.0


@pytest.mark.parametrize(
    "text",
    ["", "Kormu", plan("None", "Text Retriever"), plan(CAPITAL.query, "None"), plan(CAPITAL.query, "Map Retriever"), said("41")],
)
def test_a_malformed_plan_turn_earns_nothing(text: str):
    for needs in ([CAPITAL], []):
        reward = plan_reward(text, needs, same, RewardConfig(), RETRIEVERS)
        assert (reward.total, reward.components) == (0.0, {"format": 0.0})


def test_a_need_that_waits_for_an_answer_cannot_be_asked_for_yet():
    assert plan_needs(state("plan"), RewardConfig()) == [CAPITAL]


def test_a_need_counts_as_met_when_anything_but_unknown_came_back():
    asked = Exchange(CAPITAL.query, "text", "Tasla")
    assert plan_needs(state("plan", history=(asked,)), RewardConfig()) == [PEOPLE]
    assert plan_needs(state("plan", history=(Exchange(CAPITAL.query, "table", "unknown"),)), RewardConfig()) == [CAPITAL]
    misread = plan_needs(state("plan", history=(Exchange(CAPITAL.query, "text", "Runo"),)), RewardConfig())
    assert [need.query for need in misread] == ["How many people lived in Runo in 2003?"]
    assert plan_needs(state("plan", history=(asked, Exchange(PEOPLE.query, "table", "41"))), RewardConfig()) == []


def test_a_plan_turn_of_a_question_without_known_needs_is_not_judged():
    assert plan_needs(state("plan", Question("q2", "Who?", ("Bela",))), RewardConfig()) is None


def test_an_answer_turn_should_say_what_the_passages_hold_and_unknown_otherwise():
    holds = Passage("1", "The capital of Kormu is Tasla.")
    other = Passage("2", "The capital of Belsi is Runo.")
    assert answer_gold(state("answer", query=CAPITAL.query, kb="text", passages=(other, holds)), RewardConfig()) == "Tasla"
    assert answer_gold(state("answer", query=CAPITAL.query, kb="table", passages=(other,)), RewardConfig()) == "unknown"


def test_an_answer_turn_that_nobody_can_judge_is_left_out():
    wrong_entity = state("answer", query="How many people lived in Runo in 2003?", passages=(Passage("2", "Runo 2003: 17"),))
    failed = state("answer", query=CAPITAL.query, passages=(Passage("error", "", error="no answer within 60 s"),))
    assert answer_gold(wrong_entity, RewardConfig()) is None
    assert answer_gold(failed, RewardConfig()) is None


def test_a_short_answer_is_right_or_wrong_and_a_long_one_earns_its_recall():
    config = RewardConfig()
    assert answer_reward(said("It is Frank Wisbar"), ["Frank Wisbar"], config).total == 1.0
    assert answer_reward(said("Frank"), ["Frank Wisbar"], config).total == 0.0
    long = "ships that carried grain from northern Belsi"
    assert answer_reward(said("ships carried grain"), [long], config).total == pytest.approx(3 / 7)


def test_of_several_golds_one_has_to_be_there_in_full():
    config = RewardConfig()
    assert answer_reward(said("Runo"), ["Tasla", "Runo"], config).total == 1.0
    assert answer_reward(said("Frank"), ["Frank Wisbar", "Frank Robert Wisbar"], config).total == 0.0


def test_any_of_several_golds_counts_not_the_one_with_the_best_f1():
    golds = ["New York City area", "New York"]
    assert answer_reward(said("New York City"), golds, RewardConfig()).total == 1.0
    assert (
        answer_reward(said("New York City"), golds, RewardConfig(paper_tokens=True)).total == 0.0
    )  # the paper's rule looks at the best F1
    spam = said("New York Boston Chicago Houston Dallas")
    assert answer_reward(spam, golds, RewardConfig()).total == 0.0


def test_listing_everything_earns_nothing_unless_the_paper_s_rule_is_asked_for():
    spam = said("Tasla Runo Kormu Belsi Ankor Melta")
    assert answer_reward(spam, ["Tasla"], RewardConfig()).total == 0.0
    assert answer_reward(spam, ["Tasla"], RewardConfig(spare_answer_tokens=-1)).total == 1.0


def test_answers_can_be_compared_by_the_tokens_of_the_paper_s_evaluator():
    paper = RewardConfig(paper_tokens=True)
    assert answer_reward(said("Film"), ["A film"], RewardConfig()).total == 1.0
    assert answer_reward(said("Film"), ["A film"], paper).total == 0.0  # `a` is no article there
    assert answer_reward(said("The film"), ["film"], paper).total == 1.0


def test_saying_unknown_is_right_only_where_the_passages_do_not_hold_the_answer():
    config = RewardConfig()
    assert abstain_reward(said("unknown"), config).total == 1.0
    assert abstain_reward(said("Unknown."), config).total == 1.0
    assert abstain_reward(said("Tasla"), config).total == 0.0
    assert abstain_reward("unknown", config).components == {"format": 0.0}
    assert answer_reward(said("unknown"), ["Tasla"], config).total == 0.0


def test_the_format_can_be_given_a_share():
    config = RewardConfig(format_weight=0.1)
    assert answer_reward(said("Runo"), ["Tasla"], config).total == pytest.approx(0.1)
    assert answer_reward(said("Tasla"), ["Tasla"], config).total == pytest.approx(1.0)
    assert answer_reward("Tasla", ["Tasla"], config).total == 0.0


def test_weights_that_do_not_add_up_name_their_key():
    with pytest.raises(ValueError, match="query_weight"):
        RewardConfig(query_weight=0.5)


def episode() -> Trajectory:
    first = state("plan")
    read = state("answer", query=CAPITAL.query, kb="text", passages=(Passage("1", "The capital of Kormu is Tasla."),))
    unjudged = state("answer", query="Who rules Kormu?", kb="text")
    groups = (
        TurnGroup(first, (turn("plan", plan("None", "None")), turn("plan", plan(CAPITAL.query, "Text Retriever"))), trunk=1),
        TurnGroup(read, (turn("answer", said("Tasla")), turn("answer", "Tasla")), trunk=0),
        TurnGroup(unjudged, (turn("answer", said("Bela")),)),
        TurnGroup(state("final"), (turn("final", said("17")), turn("final", said("41"))), trunk=1),
    )
    return Trajectory(QUESTION, (), groups[-1].chosen, "41", groups)


def test_a_trajectory_is_scored_sibling_by_sibling():
    scored = score_trajectory(episode(), same, RewardConfig(), RETRIEVERS, episode="q1#0")
    assert [turn.reward.total for turn in scored] == pytest.approx([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    assert {(turn.episode, turn.outcome, turn.episode_group) for turn in scored} == {("q1#0", 1.0, "q1")}
    assert scored[0].state_key == scored[1].state_key
    assert scored[-1].reward.components == {"format": 1.0, "final": 1.0}


def outcomes(trajectory: Trajectory) -> set[float | None]:
    return {turn.outcome for turn in score_trajectory(trajectory, same, RewardConfig(), RETRIEVERS)}


def test_only_an_episode_that_came_to_its_end_has_an_outcome():
    whole = episode()
    assert outcomes(whole) == {1.0}
    assert outcomes(replace(whole, final=None, answer="", error="no answer within its deadline")) == {None}
    assert outcomes(replace(whole, search_errors=1)) == {None}
    assert outcomes(replace(whole, question=replace(QUESTION, answers=()))) == {None}
    assert outcomes(replace(whole, final=turn("final", "no tags"))) == {0.0}  # it answered, wrongly


def test_what_follows_a_failed_search_is_not_judged_and_a_search_that_found_nothing_is_no_failure():
    whole = episode()

    def judged(exchange: Exchange, read: TurnGroup) -> list[str]:
        plan, _, _, last = whole.groups
        groups = (plan, read, *(replace(g, state=replace(g.state, history=(exchange,))) for g in (plan, last)))
        return [turn.turn.kind for turn in score_trajectory(replace(whole, groups=groups), same, RewardConfig(), RETRIEVERS)]

    nothing = replace(whole.groups[1], state=replace(whole.groups[1].state, passages=()))
    failed = replace(whole.groups[1], state=replace(whole.groups[1].state, passages=(Passage("error", "", error="away"),)))
    assert judged(Exchange("Who?", "text", "unknown"), nothing) == ["plan"] * 2 + ["answer"] * 2 + ["plan"] * 2 + ["final"] * 2
    assert judged(Exchange("Who?", "text", "unknown", failed=True), failed) == ["plan"] * 2


@pytest.mark.parametrize("config", [RewardConfig(), RewardConfig(format_weight=0.2), RewardConfig(query_weight=0.5, entity_weight=0.0)])
def test_the_parts_of_a_reward_add_up_to_it(config):
    scored = score_trajectory(episode(), same, config, RETRIEVERS)
    for judged in scored:
        assert sum(judged.reward.parts.values()) == pytest.approx(judged.reward.total)
    assert {name for judged in scored for name in judged.reward.parts} == {"query", "entity", "routing", "answer", "final", "format"}


def test_only_texts_that_will_be_compared_are_embedded():
    assert set(texts_to_compare(episode(), RETRIEVERS, RewardConfig())) == {CAPITAL.query}


PAPER = RewardConfig(query_weight=0.5, entity_weight=0.0, routing_weight=0.5, paper_stops=True)


def test_as_in_the_paper_none_is_a_query_and_a_retriever_like_others():
    stop, ask = plan("None", "None"), plan(CAPITAL.query, "Text Retriever")
    assert earned(stop, [], PAPER) == pytest.approx(1.0)
    assert earned(ask, [], PAPER) == pytest.approx(0.5 * 0.9)
    assert earned(stop, [CAPITAL], PAPER) == pytest.approx(0.5 * 0.9)
    assert earned(ask, [CAPITAL], PAPER) == pytest.approx(1.0)
    assert earned(plan("None", "Text Retriever"), [], PAPER) == 0.0  # malformed
    assert plan_reward(stop, [CAPITAL], same, PAPER, RETRIEVERS).components["premature"] == 1.0
    assert plan_reward(ask, [], same, PAPER, RETRIEVERS).components == {"format": 1.0, "stop": 0.0}


def test_texts_of_stops_are_embedded_where_they_are_compared():
    done = TurnGroup(
        state("plan", Question("q", "?", ("a",), gold_steps=())),
        (turn("plan", plan("Who?", "Text Retriever")), turn("plan", plan("None", "None"))),
    )
    found = Trajectory(QUESTION, (), None, "", (done,))
    assert set(texts_to_compare(found, RETRIEVERS, RewardConfig())) == set()
    assert set(texts_to_compare(found, RETRIEVERS, PAPER)) == {"None", "Who?"}


@pytest.mark.skipif(not STEPS.is_file(), reason="the published step data set is not beside the repository")
def test_every_recorded_plan_turn_earns_what_the_released_rule_gives():
    """Against the rule as it is written down, on the gold of every recorded turn: each is answered with its own gold, a stop, and another's."""
    names = {"text": "Text Retriever", "text_image": "Text Image Retriever", "table": "Table Retriever", "": "None"}
    golds = [t.target for found in read_recorded_steps(STEPS)[0] for t in found if t.kind == "plan"]
    assert (len(golds), sum(not gold.kbs for gold in golds)) == (346, 53)

    def letters(a: str, b: str) -> float:
        return len(set(a) & set(b)) / max(len(set(a)), len(set(b)))

    for gold, other in zip(golds, golds[1:] + golds[:1], strict=True):
        for asked in (gold, other, GoldStep("None", "", "")):
            (judged,) = score_trajectory(recorded("plan", gold, plan(asked.query, names["".join(asked.kbs)])), letters, PAPER, RETRIEVERS)
            released = 0.5 * letters(asked.query, gold.query) + 0.5 * (asked.kbs == gold.kbs)
            assert judged.reward.total == pytest.approx(released)


def recorded(kind: str, target: GoldStep, *texts: str) -> Trajectory:
    question = Question("r1", "", (target.answer,) if kind == "final" else ())
    group = TurnGroup(state(kind, question, target=target), tuple(turn(kind, text) for text in texts))
    return Trajectory(question, (), None, "", (group,))


def test_recorded_turns_are_compared_with_their_recorded_gold():
    def rewards(trajectory: Trajectory) -> list[float]:
        return [turn.reward.total for turn in score_trajectory(trajectory, same, RewardConfig(), RETRIEVERS)]

    ask = GoldStep("who directed the silenced?", "text", "")
    assert rewards(recorded("plan", ask, plan(ask.query, "Text Retriever"), plan("None", "None"))) == pytest.approx([1.0, 0.0])
    stop = GoldStep("None", "", "")
    assert rewards(recorded("plan", stop, plan(ask.query, "Text Retriever"), plan("None", "None"))) == pytest.approx([0.0, 1.0])
    assert rewards(recorded("answer", GoldStep("", "", "lee hae-young"), said("Lee Hae-young"), said("Wise"))) == [1.0, 0.0]
    assert rewards(recorded("final", GoldStep("", "", "yes"), said("yes"), said("no"))) == [1.0, 0.0]


def test_routes_are_counted_sibling_by_sibling_with_what_was_needed_and_without_stops():
    whole, config = whole_episode(), RewardConfig()
    asked = {Route(("text",), "", "text"): 1, Route(("table",), "", "table"): 1, Route((), "", "table"): 1}
    assert count_routes([whole, whole], config, RETRIEVERS) == {route: 2 * number for route, number in asked.items()}
    elsewhere = {"Text Retriever": "facts"}  # gold steps name other knowledge bases
    assert count_routes([whole], config, elsewhere) == {Route((), "", "facts"): 1}
