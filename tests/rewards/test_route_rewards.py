"""What a plan turn would have earned with another knowledge base's name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_episode import CAPITAL, FIRST, PEOPLE, QUESTION, RETRIEVERS, STOP, episode, group, plan, same

from rewards.actor import score_trajectory
from rewards.config import RewardConfig
from rewards.scored_summary import ScoredSummary
from rewards.step_rewards import JudgedTurn
from rollout.records import Exchange, GoldStep, RouteNames, Trajectory, TurnGroup

NAMES = tuple(RETRIEVERS)
KB = st.sampled_from(list(RETRIEVERS.values()))
QUERIES = st.sampled_from([CAPITAL.query, PEOPLE.query, "What is the capital of Belsi?", "Tasla?", "Where is it, Text Retriever?"])
NEEDS = st.lists(
    st.builds(GoldStep, QUERIES, KB, st.sampled_from(["Tasla", "41"]), st.sampled_from([(), ("Kormu",), ("Tasla",)])), max_size=3
)
HISTORY = st.sampled_from([(), (FIRST,), (FIRST, Exchange(PEOPLE.query, "table", "41"))])
CONFIGS = st.sampled_from(
    [
        RewardConfig(),
        RewardConfig(query_weight=0.5, entity_weight=0.0, routing_weight=0.5, paper_stops=True, format_weight=0.2),
        RewardConfig(terms={"step": 1.0, "guarded_query": 0.3, "retrieval_cost": {"plan": 0.1}}),
        RewardConfig(terms={"test_route_rewards:prefers_tables": 1.0}),
    ]
)


def prefers_tables(turn: JudgedTurn) -> float | None:
    """A reward of one's own, which looks at the text itself."""
    return float("<ret>Table" in turn.text) if turn.state.kind == "plan" else None


def with_routes(siblings: TurnGroup) -> TurnGroup:
    """As recorded in a rollout, with made-up tokens."""
    ids = tuple(np.array([10 + i, 6], np.int32) for i in range(len(NAMES)))

    def routes(text: str) -> RouteNames | None:
        named = [i for i, name in enumerate(NAMES) if f"<ret>{name}</ret>" in text]
        return RouteNames(1, NAMES, ids, *named) if named else None

    turns = [replace(turn, routes=routes(turn.text)) for turn in siblings.turns]
    return replace(siblings, turns=tuple(turns))


@settings(deadline=None, max_examples=60)
@given(QUERIES, NEEDS, HISTORY, CONFIGS)
def test_the_reward_of_a_route_is_what_the_sibling_that_took_it_earned(query, needs, history, config):
    question = replace(QUESTION, gold_steps=tuple(needs))
    siblings = with_routes(group("plan", *(plan(query, name) for name in NAMES), STOP, "Tasla!", history=history, question=question))
    scored = score_trajectory(Trajectory(question, (), None, "", (siblings,)), same, config, RETRIEVERS)
    assert len(scored) in (0, 5)
    for turn in scored[:3]:
        assert turn.route_rewards == tuple(sibling.reward.total for sibling in scored[:3])
    assert all(turn.route_rewards == () for turn in scored[3:])


def test_the_summary_counts_equal_prefixes_once_and_none_whose_routes_earn_the_same():
    asked = with_routes(group("plan", *(plan(CAPITAL.query, name) for name in NAMES), STOP))
    done = with_routes(
        group("plan", *(plan(CAPITAL.query, name) for name in NAMES), history=(FIRST, Exchange(PEOPLE.query, "table", "41")))
    )
    scored = score_trajectory(replace(episode(), groups=(asked, done)), same, RewardConfig(), RETRIEVERS)
    other = replace(scored[1], state_key="another state")
    summary = ScoredSummary.joined([ScoredSummary.of(scored), ScoredSummary.of([other])])
    assert summary.prefixes.tolist() == [1, 1, 1, 0, 0, 0, 0, 2]
    assert summary.name_tokens.tolist() == [2, 2, 2, 0, 2, 2, 2, 2]
    assert summary.route_tokens.tolist() == [2, 2, 2, 0, 2, 2, 2, 2]
