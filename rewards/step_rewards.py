"""What each turn earns, as pure functions of its text and of the state it started from.

A plan turn is compared with the needs that are left (`rollout/needs.py`), an answer turn with the answer of the need that its query asks
for, the final turn with the answers of the question: section "Rewards" of the paper (arXiv 2505.22095), for policies that retrieve live.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rewards import paper_evaluator
from rewards.config import RewardConfig
from rewards.judged_turn import Retrievers, Similarity, plan_needs
from rewards.metrics import best_gold, token_recall, tokens
from rollout.needs import asks_for, entities, holds_answer, mentions
from rollout.prompts import STOP, parse_answer, parse_plan
from rollout.records import UNKNOWN, GoldStep, State, Trajectory, TurnReward

STOPPING = GoldStep(STOP, "", "")
"""Stopping, as the paper has it: one more query, to one more retriever."""
MALFORMED = TurnReward(0.0, {"format": 0.0})


def plan_reward(text: str, needs: Sequence[GoldStep], similarity: Similarity, config: RewardConfig, retrievers: Retrievers) -> TurnReward:
    """Query, entity and routing part against the need that gives the most; without needs only stopping is right, with needs it is wrong
    (`reward.paper_stops`: stopping is the query `None` to the retriever `None`, and earns its parts like another).

    Components: with needs `query`, `entity`, `routing` and `premature` (it stopped), without needs `stop` (it stopped).
    """
    action = parse_plan(text, retrievers)
    if action is None:
        return MALFORMED
    stops = action.kb is None
    if not config.paper_stops:
        if not needs:
            return _with_format({"stop": float(stops)}, {"stop": float(stops)}, config)
        if stops:
            return _with_format({}, {"routing": 0.0, "premature": 1.0}, config)
    asked, kb = (STOP, STOPPING.kb) if stops else (action.query, action.kb)

    def parts(need: GoldStep) -> dict[str, float]:
        query = max(0.0, similarity(asked, need.query))
        named = entity_match(asked, need)
        entity = query if named is None else named
        if config.entity_gates_query:
            query *= entity
        return {"query": query, "entity": entity, "routing": float(kb == need.kb), "premature": float(stops)}

    weights = {"query": config.query_weight, "entity": config.entity_weight, "routing": config.routing_weight}

    def earned(parts: Mapping[str, float]) -> dict[str, float]:
        return {name: weight * parts[name] for name, weight in weights.items()}

    best = max((parts(need) for need in needs or (STOPPING,)), key=lambda parts: sum(earned(parts).values()))
    return _with_format(earned(best), best if needs else {"stop": float(stops)}, config)


def entity_match(query: str, need: GoldStep) -> float | None:
    """Fraction of the entities of `need` that `query` names as whole words; None when the need names none (what a picture shows)."""
    names = entities(need)
    return mentions(query, names) if names else None


def answer_gold(state: State) -> str | None:
    """What an answer turn of `state` should say: the answer that the passages hold, `unknown` if they do not, None when unjudged."""
    if any(passage.error for passage in state.passages):
        return None
    if state.target is not None:
        return state.target.answer
    for need in state.question.gold_steps or ():
        if asks_for(state.query, need):
            return need.answer if any(holds_answer(passage, need) for passage in state.passages) else UNKNOWN
    return None


def answer_reward(text: str, answers: Sequence[str], config: RewardConfig, component: str = "answer") -> TurnReward:
    """The paper's rule on the text between the answer tags: one short gold has to be there in full, one long gold earns its token recall,
    of several golds one has to be there in full. `component` names the figure in the metrics."""
    prediction = parse_answer(text)
    if prediction is None:
        return MALFORMED
    gold = best_gold(prediction, answers)
    recall = paper_evaluator.f1_recall(prediction, answers) if config.paper_tokens else token_recall(prediction, gold)
    if config.spare_answer_tokens >= 0 and len(tokens(prediction)) > len(tokens(gold)) + config.spare_answer_tokens:
        recall = 0.0
    graded = len(answers) == 1 and len(gold.split()) > config.short_answer_words
    return _with_format({component: recall if graded else float(recall == 1.0)}, {component: recall}, config)


def abstain_reward(text: str, config: RewardConfig) -> TurnReward:
    """The passages do not hold the answer: saying so, and only that, is right."""
    prediction = parse_answer(text)
    if prediction is None:
        return MALFORMED
    right = float(prediction.lower() == UNKNOWN)
    return _with_format({"abstain": right}, {"abstain": right}, config)


def judge_of(state: State, similarity: Similarity, config: RewardConfig, retrievers: Retrievers) -> Callable[[str], TurnReward] | None:
    """The reward of a response to `state`, or None when nobody can judge it. What depends on the state alone is worked out once."""
    if state.kind == "plan":
        needs = plan_needs(state)
        return None if needs is None else lambda text: plan_reward(text, needs, similarity, config, retrievers)
    if state.kind == "answer":
        gold = answer_gold(state)
        if gold is None:
            return None
        if gold == UNKNOWN:
            return lambda text: abstain_reward(text, config)
        return lambda text: answer_reward(text, (gold,), config)
    answers = state.question.answers
    return (lambda text: answer_reward(text, answers, config, component="final")) if answers else None


def outcome_of(trajectory: Trajectory, config: RewardConfig) -> float:
    """Reward of the final answer of the trunk; 0 without a final turn."""
    if trajectory.final is None or not trajectory.question.answers:
        return 0.0
    return answer_reward(trajectory.final.text, trajectory.question.answers, config).total


def _with_format(earned: dict[str, float], components: dict[str, float], config: RewardConfig) -> TurnReward:
    """A well-formed turn: the format's share in full, the rest of the reward by what `earned` adds up to."""
    share = 1.0 - config.format_weight
    parts = {name: share * part for name, part in earned.items()} | {"format": config.format_weight}
    return TurnReward(share * sum(earned.values()) + config.format_weight, {"format": 1.0, **components}, parts)
