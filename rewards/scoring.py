"""From a trajectory to scored turns: every sibling gets its reward, group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rewards.composition import composed_of, composed_reward
from rewards.config import RewardConfig
from rewards.judged_turn import JudgedTurn, Retrievers, Similarity, plan_needs
from rewards.step_rewards import STOPPING, answer_reward, judge_of, outcome_of
from rollout.prompts import parse_plan
from rollout.records import ScoredTurn, Trajectory, TurnGroup, TurnReward

Judge = Callable[[TurnGroup, int], TurnReward | None]
"""The reward of a sibling, by its group and place; None when nobody can judge it."""


def score_trajectory(
    trajectory: Trajectory, similarity: Similarity, config: RewardConfig, retrievers: Retrievers, episode: str | None = None
) -> list[ScoredTurn]:
    """One `ScoredTurn` for every sibling of `trajectory` that can be judged, group by group.

    Left out are turns that nobody can judge: plan turns of questions without gold steps, answer turns whose query asks for nothing that the
    gold steps know or whose search failed, final turns without gold answers. `episode` (default: the id of the question) is the id of the
    episode, and its outcome that of its trunk: siblings from which it did not go on are judged by their own reward alone.
    """
    episode = trajectory.question.id if episode is None else episode
    outcome = outcome_of(trajectory, config)
    judge = _by_terms(trajectory, similarity, config, retrievers) if config.terms else _by_steps(similarity, config, retrievers)
    return [
        ScoredTurn(
            state_key=group.state.key,
            prompt_ids=group.state.prompt_ids,
            image=group.state.image,
            turn=turn,
            reward=reward,
            episode=episode,
            outcome=outcome,
            episode_group=trajectory.question.id,
        )
        for group in trajectory.groups
        for place, turn in enumerate(group.turns)
        if (reward := judge(group, place)) is not None
    ]


def texts_to_compare(trajectory: Trajectory, retrievers: Retrievers, stops: bool = False) -> Iterator[str]:
    """Every text whose embedding `score_trajectory` will ask for: one batch of them saves a call for each turn. `stops`: `reward.paper_stops`."""
    for group in trajectory.groups:
        needs = plan_needs(group.state) if group.state.kind == "plan" else None
        if needs is None or not (needs or stops):
            continue
        yield from (need.query for need in needs or (STOPPING,))
        for turn in group.turns:
            action = parse_plan(turn.text, retrievers)
            if action is not None and action.kb is not None:
                yield action.query
            elif action is not None and stops:
                yield STOPPING.query


def judged_turns(
    trajectory: Trajectory, similarity: Similarity, config: RewardConfig, retrievers: Retrievers
) -> Iterator[tuple[TurnGroup, int, JudgedTurn]]:
    """(group, place, what a reward is told) of every sibling."""
    steps = tuple(step for step in trajectory.steps if step.plan is not None)
    plans = 0
    for group in trajectory.groups:
        plans += group.state.kind == "plan"
        number = plans - 1 if group.state.kind != "final" else len(steps)
        for place, turn in enumerate(group.turns):
            trunk = place == group.trunk
            went_on = trunk and 0 <= number < len(steps)
            yield (
                group,
                place,
                JudgedTurn(
                    text=turn.text,
                    state=group.state,
                    trajectory=trajectory,
                    step=steps[number] if went_on else None,
                    earlier=steps[: max(number, 0)],
                    outcome=_outcome(trajectory, group, turn.text, trunk, config),
                    gain=group.gains[place] if group.gains else None,
                    similarity=similarity,
                    retrievers=retrievers,
                    config=config,
                ),
            )


def _outcome(trajectory: Trajectory, group: TurnGroup, text: str, trunk: bool, config: RewardConfig) -> float | None:
    if not trajectory.question.answers:
        return None
    if group.state.kind == "final":
        return answer_reward(text, trajectory.question.answers, config).total
    return outcome_of(trajectory, config) if trunk and trajectory.final is not None else None


def _by_steps(similarity: Similarity, config: RewardConfig, retrievers: Retrievers) -> Judge:
    """The built-in step reward. What depends on the state alone is worked out once for all of its siblings."""
    judges: dict[int, Callable[[str], TurnReward] | None] = {}

    def judge(group: TurnGroup, place: int) -> TurnReward | None:
        if id(group) not in judges:
            judges[id(group)] = judge_of(group.state, similarity, config, retrievers)
        found = judges[id(group)]
        return None if found is None else found(group.turns[place].text)

    return judge


def _by_terms(trajectory: Trajectory, similarity: Similarity, config: RewardConfig, retrievers: Retrievers) -> Judge:
    """What `reward.terms` says."""
    terms = composed_of(config.terms)
    rewards = {
        (id(group), place): composed_reward(turn, terms) for group, place, turn in judged_turns(trajectory, similarity, config, retrievers)
    }
    return lambda group, place: rewards[id(group), place]
