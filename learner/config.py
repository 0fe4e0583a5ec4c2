"""Settings of the learner: the objective, the optimizer, the machines it runs on; and checks of settings that exclude each other."""

import math
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from learner.collapse import CollapseConfig
from rollout.bfloat16 import multiplies_in_bfloat16
from rollout.config import RolloutConfig

Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass
class LearnerConfig:
    lr: PositiveFloat = 1e-4
    """Learning rate of AdamW after the warm-up."""
    warmup_iterations: NonNegativeInt = 5
    """The learning rate rises linearly to `lr` over this many iterations."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: `constant`, or a `linear` or `cosine` decay to a tenth of `lr`."""
    lr_decay_iterations: int = 0
    """`linear`, `cosine`: the iteration at which the decay ends, such as `train.iterations`."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients with a larger global norm are scaled down to it; 0: never."""

    step_weight: NonNegativeFloat = 1.0
    """Weight of the step advantage (turns from one state compared by their own rewards): Step-GRPO is step 1, episode 0."""
    episode_weight: NonNegativeFloat = 0.0
    """Weight of the episode advantage (episodes of one question compared by their outcome): plain GRPO is step 0, episode 1."""
    baseline: Literal["mean", "leave_one_out", "shrunk"] = "mean"
    """Subtracted from a reward: the `mean` of its group, of the others (`leave_one_out`: RLOO), or this, shrunk to other questions' (`shrunk`)."""
    normalisation: Literal["std", "batch_std", "none", "components"] = "std"
    """Advantages are divided by the `std` of their group, by `batch_std` or not at all (`none`); `components`: per part of the reward (GDPO)."""
    routes: Literal["sampled", "all"] = "sampled"
    """Credit of a knowledge base's name: by `sampled` siblings, as of other tokens; or the exact gradient over `all` names (docs/07_learner.md)."""
    routes_weight: PositiveFloat = 4.0
    """`routes=all`: weight of a turn's expected reward. 1: the mean of sampled credit with `normalisation=none`; 4: near that with `std`."""
    routes_temperature: NonNegativeFloat = 0.0
    """`routes=all`: 0: the exact gradient. Above 0: the target of a name with probability p is p exp(reward / this), scaled to sum 1 (MPO)."""
    routes_balanced: bool = True
    """`routes=all`: weigh turns so that every knowledge base counts as much as the others, however many turns it is the best for."""
    resample_limit: NonNegativeInt = 0
    """Rounds in which questions without variance are replaced by others (DAPO); 0: none."""

    surrogate: Literal["clip", "cispo", "dppo"] = "clip"
    """`clip`: of PPO and GRPO. `cispo`: policy gradient, weighted by the clipped ratio. `dppo`: bounds the change of probability instead."""
    ratio: Literal["token", "turn", "sequence"] = "token"
    """The probability ratio of each `token`, or its geometric mean over a `turn` (GSPO) or over a `sequence`: all turns of an episode."""
    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The probability ratio is clipped below at 1 - clip_low. `surrogate=dppo`: a token's probability may fall by this since it was sampled."""
    clip_high: NonNegativeFloat = 0.2
    """The ratio is clipped above at 1 + clip_high (0.28: DAPO; near 4e-4, below 3e-4: GSPO). `surrogate=dppo`: the probability may rise by this."""
    aggregation: Literal["token_mean", "turn_mean", "step_mean", "sequence_mean", "constant"] = "token_mean"
    """What has equal weight in the loss: each token, turn, step with its siblings, or episode; `constant`: tokens, divided by a fixed number."""
    constant_tokens: PositiveInt = 64
    """`aggregation=constant`: tokens assumed in every turn, for example `rollout.max_new_tokens`."""
    kl_weight: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the policy that training began with; 0: no reference model is loaded."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's `k1` (its gradient has mean zero), `k2` or `k3`, added to the loss token by token."""
    entropy_weight: NonNegativeFloat = 0.0
    """Weight of the entropy bonus; the entropy is reported either way."""
    sampler_correction: Literal["none", "truncate", "mask"] = "none"
    """Weight of a token by q = learner's probability / sampler's: 1 (`none`), min(q, sampler_high) (`truncate`: TIS), q or 0 (`mask`: IcePop)."""
    sampler_low: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`mask`: tokens whose q is below are not learned from."""
    sampler_high: Annotated[float, Field(ge=1)] = 2.0
    """`truncate`: q is at most this. `mask`: tokens whose q is above are not learned from (IcePop's paper: 5)."""
    max_staleness: NonNegativeInt = 0
    """`rollout.partial`: most updates between the sampling of a token and learning from it (at least `train.overlap` + 1); 0: no bound."""
    too_old: Literal["drop", "wait"] = "drop"
    """`max_staleness`: do not learn from turns with an older token (`drop`), or let the rollout `wait` for stragglers before they are too old."""
    overlong: Literal["keep", "mask"] = "keep"
    """Turns cut off at the token limit: `keep` them, or `mask` them in the loss (DAPO)."""
    updates_per_iteration: PositiveInt = 1
    """Mini-batches, hence optimizer steps, of one iteration; each mixes the kinds of turns."""

    tokens_per_micro_batch: PositiveInt = 4096
    """Bound on the tokens of one forward pass; it changes time and memory, never the gradient."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """Within packed rows: `sdpa` (two fused calls a row), `flex` (one compiled kernel for all rows, GPU only), `auto`: flex on a GPU."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the weights in the forward pass and in the rollout workers; the optimizer keeps float32 either way. `auto`: bfloat16 on a GPU,
    and on a CPU with instructions for it (that of the machine that reads the settings)."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed ZeRO partitions: 0 nothing, 1 the optimizer state, 2 also gradients, 3 also weights."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Kept in main memory: `none`; the `optimizer` state (ZeRO 1 to 3), whose step then runs on the CPU; or the `parameters` as well (ZeRO 3)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: a third more time, much less memory."""
    lora_rank: NonNegativeInt = 0
    """Rank of low-rank adapters (LoRA): only these are trained; 0: all weights are. Adapters are merged when weights are sent or saved."""
    lora_alpha: PositiveInt = 32
    """LoRA: the adapters' product is scaled by lora_alpha / lora_rank."""
    lora_targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    """LoRA: linear layers of the language model that get adapters; the vision tower gets none."""
    freeze_vision: bool = False
    """Do not train the vision tower; with LoRA it is always frozen."""
    num_learners: PositiveInt = 1
    """Learner processes, each with a share of every mini-batch; the update is the same whatever their number."""
    threads: PositiveInt = 1
    """CPU threads of one learner."""
    cpus_per_learner: NonNegativeFloat = 1.0
    """CPUs that Ray sets aside for one learner."""
    gpus_per_learner: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPUs that Ray sets aside for one learner; 0: learn on the CPU."""
    resource: str = ""
    """Custom Ray resource of the nodes for learners; empty: any node, or those with the resource `learner` where there are any."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the learner processes (`NCCL_SOCKET_IFNAME`, ...)."""
    seed: NonNegativeInt = 0
    """Seed of the order in which turns are split into mini-batches, and of the learner's random numbers."""
    deadline_s: PositiveFloat = 600.0
    """Any wait for a learner (start, update, weights, checkpoint) ends with an error after this many seconds."""
    transport: Literal["object_store", "collective"] = "object_store"
    """How weights reach rollout workers: through Ray's `object_store`, or by one `collective` broadcast (NCCL between GPUs, else gloo)."""
    bucket_bytes: PositiveInt = 268_435_456
    """Size of the buckets in which weights are sent: while one is sent, the next is gathered."""
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    """What counts as a sign that training goes wrong."""

    def __post_init__(self) -> None:
        if self.step_weight == self.episode_weight == 0:
            raise ValueError("learner.step_weight and learner.episode_weight are both 0: nothing would be learned; set one of them")
        if self.baseline == "shrunk" and self.normalisation == "std":
            raise ValueError("learner.baseline=shrunk does not go with learner.normalisation=std; expected none or batch_std")
        if self.normalisation == "components" and self.baseline != "mean":
            raise ValueError(f"learner.normalisation=components does not go with learner.baseline={self.baseline}; expected mean")
        if self.surrogate == "dppo" and (self.ratio, self.sampler_correction) != ("token", "none"):
            found = f"learner.surrogate=dppo with learner.ratio={self.ratio} and learner.sampler_correction={self.sampler_correction}"
            raise ValueError(f"{found}: it bounds the change of each token since it was sampled; expected token and none")
        lowest, expected = {"none": (0, ""), "optimizer": (1, "1 or higher"), "parameters": (3, "3")}[self.offload]
        if self.zero_stage < lowest:
            raise ValueError(f"learner.offload={self.offload} with learner.zero_stage={self.zero_stage}; expected zero_stage {expected}")
        if self.dtype == "auto":
            self.dtype = "bfloat16" if self.gpus_per_learner or multiplies_in_bfloat16() else "float32"
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            why = "DeepSpeed keeps no float32 weights there, so small steps would be rounded away"
            raise ValueError(f"learner.dtype=bfloat16 with learner.zero_stage=0: {why}; expected zero_stage 1 or higher")
        if self.attention == "flex" and not self.gpus_per_learner:
            raise ValueError("learner.attention=flex with learner.gpus_per_learner=0: it has no gradients on a CPU; expected auto or sdpa")
        if self.lr_schedule != "constant" and self.lr_decay_iterations <= self.warmup_iterations:
            found = f"learner.lr_decay_iterations is {self.lr_decay_iterations} with learner.lr_schedule={self.lr_schedule}"
            raise ValueError(f"{found}; expected more than learner.warmup_iterations={self.warmup_iterations}, such as train.iterations")


def check_rollout(learner: LearnerConfig, rollout: RolloutConfig) -> None:
    """Raises ValueError if this learner cannot learn from what these rollouts sample."""
    temperature, top_p, top_k, mode = rollout.temperature, rollout.top_p, rollout.top_k, rollout.mode
    if not 0 < temperature < math.inf:
        raise ValueError(f"rollout.temperature is {temperature}; expected more than 0: greedy siblings are all the same")
    if top_k == 1:
        raise ValueError("rollout.top_k is 1; expected 0 (no limit) or at least 2: greedy siblings are all the same")
    if rollout.engine == "vllm" and (temperature, top_p, top_k) != (1, 1, 0):
        found = f"rollout.temperature={temperature:g} rollout.top_p={top_p:g} rollout.top_k={top_k}"
        why = "it does not say which tokens could be drawn, nor how likely"
        raise ValueError(f"rollout.engine is 'vllm' with {found}: {why}; expected 1, 1 and 0, or rollout.engine=transformers")
    if rollout.group_size < 2 and learner.baseline != "shrunk":
        found = f"rollout.group_size is {rollout.group_size} with learner.baseline={learner.baseline}: nothing to compare a turn with"
        raise ValueError(f"{found}; expected at least 2, or baseline=shrunk with learner.normalisation=none")
    if learner.routes == "all" and mode != "branch":
        why = "another knowledge base's reward is known only for the turns of live siblings"
        raise ValueError(f"learner.routes is 'all' with rollout.mode={mode}: {why}; expected rollout.mode=branch, or routes=sampled")
    if learner.routes == "all" and not rollout.record_routes:
        raise ValueError("learner.routes is 'all' with rollout.record_routes=false: the names are not recorded; set it to true")
    if mode == "chain" and learner.step_weight and (learner.baseline == "mean" or learner.normalisation not in ("none", "batch_std")):
        of = f"learner.baseline={learner.baseline} and learner.normalisation={learner.normalisation}"
        found = f"learner.step_weight is {learner.step_weight:g} with rollout.mode=chain, {of}"
        why = "states that few episodes come to would count less than others (docs/07_learner.md)"
        expected = "baseline=leave_one_out with normalisation=none or batch_std, or step_weight=0, which compares whole episodes"
        raise ValueError(f"{found}: {why}; expected {expected}")
    if mode != "chain" and learner.episode_weight:
        found = f"learner.episode_weight is {learner.episode_weight:g} with rollout.mode={mode}"
        raise ValueError(f"{found}: siblings that the episode did not continue from have no outcome; expected 0, or rollout.mode=chain")
    if mode != "chain" and learner.ratio == "sequence":
        raise ValueError(f"learner.ratio=sequence needs whole episodes (rollout.mode={mode} samples siblings); expected rollout.mode=chain")


def check_overlap(overlap: int, learner: LearnerConfig, rollout: RolloutConfig) -> None:
    """Raises ValueError for an overlap or partial rollouts without the correction that they need (`learner.sampler_correction`, or
    `surrogate=dppo`), and for partial rollouts that cannot be."""
    if overlap not in (0, 1):
        raise ValueError(f"train.overlap is {overlap}; it must be 0 (a batch is sampled with the newest weights) or 1 (one version older)")
    if (overlap or rollout.partial) and learner.sampler_correction == "none" and learner.surrogate != "dppo":
        found = "train.overlap is 1" if overlap else "rollout.partial is true"
        why = "turns are sampled by an older policy version than the one that learns from them, which has to be corrected for"
        expected = "learner.sampler_correction=truncate or mask, or learner.surrogate=dppo"
        raise ValueError(f"{found} with learner.sampler_correction=none: {why}; expected {expected}")
    if learner.max_staleness and not (rollout.partial and learner.max_staleness > overlap):
        found = f"learner.max_staleness is {learner.max_staleness} with rollout.partial={str(rollout.partial).lower()}"
        raise ValueError(f"{found}; expected 0 without partial rollouts, at least train.overlap + 1 = {overlap + 1} with them")
    if rollout.partial and rollout.engine == "vllm":
        why = "it begins responses again when the weights change"
        raise ValueError(f"rollout.partial is true with rollout.engine=vllm: {why}; expected false, or rollout.engine=transformers")
    if rollout.partial and rollout.enough == 1 and not rollout.straggler_s:
        why = "every question is waited for, so no response is under way when the weights change"
        raise ValueError(f"rollout.partial is true with rollout.enough=1: {why}; expected less, such as 0.9, or rollout.straggler_s")


def check_shares(learner: LearnerConfig, mode: str, questions: int, max_steps: int) -> None:
    """Raises ValueError if an iteration has fewer groups than updates, or an update fewer groups than learners."""
    turns = 1 if mode == "offline" else 2 * max_steps + 1  # a plan and an answer for every step, and the final answer
    groups, updates = questions * turns, learner.updates_per_iteration
    if updates > groups:
        why = f"{questions} questions (train.questions_per_iteration) make no more groups"
        raise ValueError(f"learner.updates_per_iteration is {updates}; expected at most {groups}: {why}")
    if learner.num_learners > max(1, groups // updates):
        why = f"an update has no more groups ({groups} of {questions} questions, over learner.updates_per_iteration={updates})"
        raise ValueError(f"learner.num_learners is {learner.num_learners}; expected at most {groups // updates}: {why}")
