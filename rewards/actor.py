"""The reward actor: turns trajectories into scored turns, with one call to the embedder for all. Every sibling gets its own reward."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from retrieval_actors.sharded_search import Retriever
from rewards.config import RewardConfig
from rewards.scored_summary import Route, ScoredSummary
from rewards.step_rewards import STOPPING, JudgedTurn, Retrievers, Similarity, answer_reward, judge_of, plan_needs
from rewards.terms import Term, composed_of, composed_reward
from rollout.nan_check import NotFiniteError
from rollout.need_matcher import need_matcher
from rollout.needs import prepare, right_kbs
from rollout.records import ScoredTurn, Trajectory, TurnGroup, TurnReward
from rollout.turn_parser import parse_plan, with_retriever

RETRIEVERS = {"Text Retriever": "text", "Text Image Retriever": "text_image", "Table Retriever": "table"}


def names_of(retriever: Retriever) -> dict[str, str]:
    """Retriever name, as the policy writes it -> knowledge base. Without knowledge bases: the paper's names, as in recorded plan turns."""
    return {card.retriever_name: card.name for card in retriever.catalog} or RETRIEVERS


def batched_similarity(texts: Sequence[str], retriever: Retriever) -> Similarity:
    """A function for the cosine of two texts. `texts` are embedded in one call; any other text (a user's reward may need one) in a further call."""
    rows: dict[str, np.ndarray] = {}

    def embed(distinct: list[str]) -> None:
        rows.update(zip(distinct, retriever.embed(distinct), strict=True))
        if wrong := [text for text in distinct if not np.isfinite(rows[text]).all()]:
            raise NotFiniteError(f"the embedder gave NaN or infinity for {wrong[0][:100]!r} and {len(wrong) - 1} others; choose another")

    def row(text: str) -> np.ndarray:
        if text not in rows:
            embed([text])
        return rows[text]

    if texts:
        embed(sorted(set(texts)))
    return lambda a, b: float(row(a) @ row(b))


def score_trajectory(
    trajectory: Trajectory, similarity: Similarity, config: RewardConfig, retrievers: Retrievers, episode: str | None = None
) -> list[ScoredTurn]:
    """One `ScoredTurn` for every sibling of `trajectory` that can be judged. Left out: plan turns of questions without gold steps, answer turns
    whose query asks for no gold step, final turns without gold answers; and, whatever the reward, turns after a failed search."""
    outcome, question = _outcome(trajectory, config), trajectory.question.id
    name = question if episode is None else episode
    found = []
    for group, place, judge in _judges(trajectory, similarity, config, retrievers):
        turn = group.turns[place]
        reward = None if group.state.after_failure else judge(turn.text)
        if reward is not None:
            names = turn.routes.names if turn.routes else ()
            routes = [judge(with_retriever(turn.text, other)) for other in names]
            rewards = tuple(route.total for route in routes if route is not None)
            seen = group.state.key, group.state.prompt_ids, group.state.image, turn
            found.append(ScoredTurn(*seen, reward, name, outcome, question, rewards if len(rewards) == len(names) else ()))
    return found


def texts_to_compare(trajectory: Trajectory, retrievers: Retrievers, config: RewardConfig) -> Iterator[str]:
    """Every text whose embedding `score_trajectory` will need, for one call to the embedder."""
    for group in trajectory.groups:
        needs = plan_needs(group.state, config) if group.state.kind == "plan" and not group.state.after_failure else None
        if needs is None or not (needs or config.paper_stops):
            continue
        yield from (need.query for need in needs or (STOPPING,))
        for action in (parse_plan(turn.text, retrievers) for turn in group.turns):
            if action is not None and (action.kb is not None or config.paper_stops):
                yield STOPPING.query if action.kb is None else action.query


def judged_turns(
    trajectory: Trajectory, similarity: Similarity, config: RewardConfig, retrievers: Retrievers
) -> Iterator[tuple[TurnGroup, int, JudgedTurn]]:
    """(group, place of the sibling in it, what a reward may look at) for every sibling."""
    steps = tuple(step for step in trajectory.steps if step.plan is not None)
    plans = 0
    for group in trajectory.groups:
        plans += group.state.kind == "plan"
        number = plans - 1 if group.state.kind != "final" else len(steps)
        searched = 0 <= number < len(steps) and not any(passage.error for passage in steps[number].passages)
        for place, turn in enumerate(group.turns):
            trunk = place == group.trunk
            outcome = _outcome(trajectory, config) if trunk else None
            if group.state.kind == "final" and trajectory.question.answers:
                outcome = answer_reward(turn.text, trajectory.question.answers, config).total
            step, gain = steps[number] if trunk and searched else None, group.gains[place] if group.gains else None
            seen = turn.text, group.state, trajectory, step, steps[: max(number, 0)], outcome, gain
            yield group, place, JudgedTurn(*seen, similarity, retrievers, config, group.values)


def count_routes(trajectories: Iterable[Trajectory], config: RewardConfig, retrievers: Retrievers) -> Counter[Route]:
    """Of all sampled plan turns that ask, siblings included. Knowledge bases that are needed, but not in `retrievers`, do not count."""
    found: Counter[Route] = Counter()
    for trajectory in trajectories:
        for group in trajectory.groups:
            actions = [parse_plan(turn.text, retrievers) for turn in group.turns] if group.state.kind == "plan" else []
            if kbs := [action.kb for action in actions if action is not None and action.kb is not None]:
                needed = set(right_kbs(plan_needs(group.state, config) or ())) & set(retrievers.values())
                found.update(Route(tuple(sorted(needed)), trajectory.question.family, kb) for kb in kbs)
    return found


def _outcome(trajectory: Trajectory, config: RewardConfig) -> float | None:
    """Reward of the final answer; None if it cannot be judged: an episode that failed did not answer wrongly."""
    if not trajectory.whole or trajectory.final is None or not trajectory.question.answers:
        return None
    return answer_reward(trajectory.final.text, trajectory.question.answers, config).total


def _judges(
    trajectory: Trajectory, similarity: Similarity, config: RewardConfig, retrievers: Retrievers
) -> Iterator[tuple[TurnGroup, int, Callable[[str], TurnReward | None]]]:
    """(group, place of the sibling in it, the reward of a text in its place: None if not judged)."""
    if not config.terms:
        for group in trajectory.groups:
            judge = None if group.state.after_failure else judge_of(group.state, similarity, config, retrievers)
            rewarded = functools.cache(judge) if judge else lambda text: None
            yield from ((group, place, rewarded) for place in range(len(group.turns)))
        return
    terms = composed_of(config.terms)
    for group, place, judged in judged_turns(trajectory, similarity, config, retrievers):
        if len(group.turns) > 1 and group.state.kind != "final":  # only the trunk's step and outcome are known: do not use them
            judged = replace(judged, step=None, outcome=None)
        yield group, place, functools.partial(_composed, judged, terms)


def _composed(turn: JudgedTurn, terms: tuple[Term, ...], text: str) -> TurnReward | None:
    return composed_reward(replace(turn, text=text), terms)


class RewardActor:
    def __init__(self, retriever: bytes, config: RewardConfig):
        self._retriever: Retriever = ray.cloudpickle.loads(retriever)
        self._config, self._retrievers = config, names_of(self._retriever)

    def score(self, trajectories: Sequence[Trajectory]) -> list[ScoredTurn]:
        """Every turn that can be judged. Episodes are numbered by their place in `trajectories`."""
        prepare(trajectories, need_matcher(self._config.need_calibration))
        texts = [text for trajectory in trajectories for text in texts_to_compare(trajectory, self._retrievers, self._config)]
        similarity = batched_similarity(texts, self._retriever)
        turns: list[ScoredTurn] = []
        for number, trajectory in enumerate(trajectories):
            turns += score_trajectory(trajectory, similarity, self._config, self._retrievers, f"{trajectory.question.id}#{number}")
        return turns

    @ray.method(num_returns=2)
    def score_references(
        self, order: Sequence[tuple[int, int]], with_parts: bool, *trajectories: Sequence[Trajectory]
    ) -> tuple[ScoredSummary, list[ScoredTurn]]:
        """As `score`, for trajectories in lists that are passed by reference. `order`: (list, place in it) of each trajectory. The caller fetches
        the summary, and passes on the reference to the turns. Raises `NotFiniteError`."""
        asked = [trajectories[number][place] for number, place in order]
        turns, routes = self.score(asked), count_routes(asked, self._config, self._retrievers)
        return replace(ScoredSummary.of(turns, with_parts), routes=routes), turns


def start_reward_actor(retriever: Retriever, config: RewardConfig, num_cpus: float = 0.1) -> Any:
    """A new `RewardActor`. Ray restarts it when it dies, but only if no argument holds actor handles, so the retriever is passed as bytes."""
    resources = {config.resource: 0.001} if config.resource else {}
    actor = ray.remote(RewardActor).options(num_cpus=num_cpus, resources=resources, max_restarts=-1, max_task_retries=2)
    return actor.remote(ray.cloudpickle.dumps(retriever), config)
