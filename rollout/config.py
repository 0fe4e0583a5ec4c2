"""Settings of a rollout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt


@dataclass
class ValueConfig:
    measured: bool = False
    """Value all routes of plan turns (route_values.py); set by `reward.terms.query_value` and `reward.terms.route_regret`."""
    samples: PositiveInt = 2
    """Final turns, and continuations, that are sampled from every distinct state."""
    price: NonNegativeFloat = 0.02
    """Of every search, in right answers. With 0, the maximum over noisy values favours asking."""
    prices: dict[str, NonNegativeFloat] = field(default_factory=dict)
    """Knowledge base -> price of a search in it, where that is not `price`."""
    leaf: Literal["sampled", "belief"] = "sampled"
    """How much a state is worth without further searches: `sampled`: how many of `samples` final turns are right; `belief`: the policy's
    probability of the gold answer after an empty thought, which needs no samples."""
    best_trunk: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of plan turns after which the episode continues with the best route: later steps are then seen behind a whole chain."""
    asks_again: bool = False
    """Whether a continuation may ask again what was asked. With true, a spare step repairs every wrong route, and all values are alike."""
    spare_answer_tokens: Annotated[int, Field(ge=-1)] = 3
    """Set by `reward.spare_answer_tokens`."""

    def price_of(self, kb: str) -> float:
        return self.prices.get(kb, self.price)


@dataclass
class RolloutConfig:
    mode: Literal["branch", "chain", "offline"] = "branch"
    """`branch`: siblings at every turn, one becomes the trunk. `chain`: independent episodes. `offline`: recorded turns, no retrieval."""
    group_size: PositiveInt = 8
    """Siblings sampled from each state (`branch`, `offline`), or episodes a question (`chain`)."""
    plan_siblings: NonNegativeInt = 0
    """`branch`: siblings of plan turns; 0: `group_size`."""
    unjudged_without_gold: list[str] = field(default_factory=list)
    """Set by `reward.terms`. `branch`: kinds of turns of which a question without gold steps has no siblings, as nothing judges them."""
    max_steps: PositiveInt = 3
    """Most searches of an episode; then it has to answer."""
    passages: PositiveInt = 3
    """Passages that an answer turn reads (top k)."""
    shuffle_passages: bool = True
    """Show passages in random order: with gold at rank 1 a policy learns to copy the first."""
    max_passage_chars: PositiveInt = 400
    """Longer passages are cut in the prompt."""
    routing: str = "policy"
    """Who names the knowledge base: `policy`; or, for comparison, `random`, `oracle` (by the gold steps), `never_stop`, `ircot`, `all`,
    `single:KB`, `direct` (rollout/methods.py)."""
    temperature: NonNegativeFloat = 1.0
    """0: greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: NonNegativeInt = 0
    """0: no limit."""
    max_new_tokens: PositiveInt = 64
    """Of each turn; a longer response is cut off (finish reason `length`)."""
    max_prompt_tokens: PositiveInt = 4096
    """A question with a longer prompt fails and is counted; a recorded turn (`offline`) with a longer prompt is left out."""
    prompts: str = "short"
    """`short` (tiny policy), `listed` (the same, with the list of retrievers), `paper` (in full, for instruction-tuned models), a YAML file like
    those of rollout/prompt_files, or a published step data set: the prompts that the released checkpoints were trained with. A path is relative to
    the working folder or to `data.folder`."""
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """`transformers`: anywhere. `vllm`: with the extra `[vllm]` on GPUs, or in the environment of `make vllm-cpu`. `auto`: `vllm` on GPUs where it
    is installed and the settings suit it, else `transformers`."""
    slots: PositiveInt = 256
    """Responses decoded at the same time; on a GPU use as many as `batch_tokens` allows."""
    batch_tokens: PositiveInt = 65536
    """Size of the key-value cache in tokens: prompts, which siblings share, and responses."""
    tokens_in_flight: PositiveInt = 262144
    """Bound on the tokens of all running episodes of one worker; the next episode begins when there is room."""
    gold_gains: bool = False
    """Measure information gains (information_gain.py); set by `reward.terms.information_gain`."""
    support: bool = False
    """Measure what each passage adds to the sub-answer (rollout/confidence.py); set by evaluations and the service."""
    record_routes: bool = False
    """Record the tokens that plan turns would have with each knowledge base's name (route_names.py); set by `learner.routes`."""
    values: ValueConfig = field(default_factory=ValueConfig)
    """Values of all routes of a plan turn (docs/17_route_regret.md)."""
    need_calibration: str = ""
    """Set by `reward.need_calibration`."""
    episode_s: NonNegativeFloat = 0.0
    """Seconds after which an episode fails, counted from when its worker got it (with `partial` also between two iterations); 0: never."""
    enough: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Once this share of an iteration's questions is finished, the others (stragglers) are moved to the next iteration; 1: none are."""
    straggler_s: NonNegativeFloat = 0.0
    """Seconds after which stragglers are moved; 0: never. A question is moved at most twice, so that long episodes are learned from, too;
    with `learner.too_old=wait` until its tokens would be too old."""
    partial: bool = False
    """Stragglers go on in the next iteration with its weights, from the last token that they have (partial rollouts); else they begin again."""
    threads: PositiveInt = 1
    """CPU threads of one rollout worker."""
    resource: str = ""
    """Custom Ray resource of the nodes for rollout workers; empty: any node, or those with `rollout` where there are any."""
