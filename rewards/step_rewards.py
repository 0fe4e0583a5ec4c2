"""The step reward: what each turn earns, as pure functions of its text and of the state it started from. A plan turn is compared with the needs
that are left (`rollout/needs.py`), an answer turn with the answer of the need that its query asks for, the final turn with the answers of the
question: section "Rewards" of the paper (arXiv 2505.22095), for policies that retrieve live."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from retrieval_actors.records import Passage
from rewards.answer_metrics import best_gold, f1_recall, overlap, tokens
from rewards.config import RewardConfig
from rollout.nan_check import largest
from rollout.need_matcher import entities, mentions, need_matcher
from rollout.needs import askable_needs, asked_need, holds_answer
from rollout.records import UNKNOWN, Action, GoldStep, PlanValues, State, Step, Trajectory, TurnReward
from rollout.turn_parser import STOP, is_unknown, parse_answer, parse_plan

Similarity = Callable[[str, str], float]  # cosine of the embeddings of two texts
Retrievers = Mapping[str, str]  # retriever name, as the policy writes it -> knowledge base


@dataclass(frozen=True)
class JudgedTurn:
    """One sibling, and all that a reward may look at."""

    text: str  # the response, decoded
    state: State  # with kind, question, the exchanges so far and, for answer turns, query and passages
    trajectory: Trajectory  # the episode: its trunk in `steps`
    step: Step | None  # of the trunk, with this turn; None where the trunk is another sibling, its search failed, and for final turns
    earlier: tuple[Step, ...]  # the steps of the trunk before it
    outcome: float | None  # reward of the final answer, in [0, 1]; of a final turn, its own; None where the trunk is another sibling
    gain: float | None  # answer turns: information gain of the sub-answer, in [-1, 1]; None where it was not measured
    similarity: Similarity
    retrievers: Retrievers
    config: RewardConfig
    values: PlanValues | None = None  # plan turns: of all routes of all siblings; None where they were not measured

    @cached_property
    def action(self) -> Action | None:
        """The decision of a plan turn; None when it is malformed, and for other turns."""
        return parse_plan(self.text, self.retrievers) if self.state.kind == "plan" else None

    @cached_property
    def answer(self) -> str | None:
        """The answer of an answer or final turn; None when it is malformed, and for plan turns."""
        return None if self.state.kind == "plan" else parse_answer(self.text)

    @property
    def well_formed(self) -> bool:
        return self.action is not None or self.answer is not None

    @cached_property
    def needs(self) -> list[GoldStep] | None:
        return plan_needs(self.state, self.config)

    def seen_before(self) -> list[Passage]:
        return [passage for step in self.earlier for passage in step.passages]


def plan_needs(state: State, config: RewardConfig) -> list[GoldStep] | None:
    """The needs that a plan turn may ask for, without those that wait for an earlier answer; empty: it should stop; None: it cannot be judged."""
    if state.target is not None:
        return [state.target] if state.target.kbs else []
    return askable_needs(state.question, state.history, need_matcher(config.need_calibration))


STOPPING = GoldStep(STOP, "", "")  # in the paper stopping is one more query, to one more retriever
MALFORMED = TurnReward(0.0, {"format": 0.0})


def plan_reward(text: str, needs: Sequence[GoldStep], similarity: Similarity, config: RewardConfig, retrievers: Retrievers) -> TurnReward:
    """Query, entity and routing part for the need that earns most; stopping is right without needs and wrong with them (`reward.paper_stops`: it is
    the query `None` to the retriever `None`). Components: with needs the parts and `premature` (it stopped), without needs `stop` (it stopped)."""
    action = parse_plan(text, retrievers)
    if action is None:
        return MALFORMED
    stops = float(action.kb is None)
    if not config.paper_stops and not needs:
        return _with_format({"stop": stops}, {"stop": stops}, config)
    if not config.paper_stops and stops:
        return _with_format({}, {"routing": 0.0, "premature": 1.0}, config)
    asked = STOP if stops else action.query
    weights = {"query": config.query_weight, "entity": config.entity_weight, "routing": config.routing_weight}

    def judged(need: GoldStep) -> tuple[dict[str, float], dict[str, float]]:
        query = largest((0.0, similarity(asked, need.query)))
        routed = float(action.kb in need.kbs or not (action.kb or need.kbs))
        names = entities(need)  # none if the query asks for what a picture shows
        parts = {"query": query, "entity": mentions(asked, names) if names else query, "routing": routed, "premature": stops}
        return {name: weight * parts[name] for name, weight in weights.items()}, parts

    earned, best = max(map(judged, needs or (STOPPING,)), key=lambda found: sum(found[0].values()))
    return _with_format(earned, best if needs else {"stop": stops}, config)


def answer_gold(state: State, config: RewardConfig) -> str | None:
    """What an answer turn of `state` should say: the answer if the passages hold it, else `unknown`; None: not judged."""
    if any(passage.error for passage in state.passages):
        return None
    if state.target is not None:
        return state.target.answer
    need = asked_need(state.query, state.question.gold_steps or (), need_matcher(config.need_calibration))
    if need is None:
        return None
    return need.answer if any(holds_answer(passage, need) for passage in state.passages) else UNKNOWN


def answer_reward(text: str, answers: Sequence[str], config: RewardConfig, component: str = "answer") -> TurnReward:
    """The paper's rule: 1 if all tokens of a gold answer are there, else 0; for one long answer, token recall. `component`: name in the metrics."""
    prediction = parse_answer(text)
    if prediction is None:
        return MALFORMED

    def recall_of(gold: str) -> float:
        if 0 <= config.spare_answer_tokens < len(tokens(prediction)) - len(tokens(gold)):
            return 0.0
        return f1_recall(prediction, answers) if config.paper_tokens else overlap(prediction, gold)[1]

    recall = max(map(recall_of, [best_gold(prediction, answers)] if config.paper_tokens else answers))
    graded = len(answers) == 1 and len(answers[0].split()) > config.short_answer_words
    return _with_format({component: recall if graded else float(recall == 1.0)}, {component: recall}, config)


def abstain_reward(text: str, config: RewardConfig) -> TurnReward:
    """For an answer turn whose passages do not hold the answer: 1 for `unknown`, else 0."""
    prediction = parse_answer(text)
    right = {"abstain": float(prediction is not None and is_unknown(prediction))}
    return MALFORMED if prediction is None else _with_format(right, right, config)


def judge_of(state: State, similarity: Similarity, config: RewardConfig, retrievers: Retrievers) -> Callable[[str], TurnReward] | None:
    """The reward of responses to `state`; None: they cannot be judged. What depends on the state alone is computed once."""
    if state.kind == "plan":
        needs = plan_needs(state, config)
        return None if needs is None else lambda text: plan_reward(text, needs, similarity, config, retrievers)
    if state.kind == "answer":
        gold = answer_gold(state, config)
        if gold is None:
            return None
        return (lambda text: abstain_reward(text, config)) if gold == UNKNOWN else lambda text: answer_reward(text, (gold,), config)
    answers = state.question.answers
    return (lambda text: answer_reward(text, answers, config, component="final")) if answers else None


def _with_format(earned: dict[str, float], components: dict[str, float], config: RewardConfig) -> TurnReward:
    """Reward of a well-formed turn: `format_weight` plus the sum of `earned` times (1 - `format_weight`)."""
    share = 1.0 - config.format_weight
    parts = {name: share * part for name, part in earned.items()} | {"format": config.format_weight}
    return TurnReward(share * sum(earned.values()) + config.format_weight, {"format": 1.0, **components}, parts)
