"""Settings of the learner: the objective, the optimizer, and the machines it runs on."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from learner.collapse import CollapseConfig


@dataclass
class LearnerConfig:
    lr: float = 1e-4
    """Learning rate of AdamW after the warm-up."""
    warmup_iterations: int = 5
    """The learning rate rises linearly to `lr` over this many iterations."""
    lr_schedule: str = "constant"
    """After the warm-up: `constant`, or down to the floor in a straight `linear` line or along half a `cosine`."""
    lr_decay_iterations: int = 0
    """`linear`, `cosine`: the iteration at which the floor is reached, such as `train.iterations`; 0 with `constant`."""
    lr_floor: float = 0.1
    """`linear`, `cosine`: share of `lr` that is left in the end."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it; 0: never."""

    step_weight: float = 1.0
    """Weight of the step advantage (turns from one state compared by their own rewards): Step-GRPO is step 1, episode 0."""
    episode_weight: float = 0.0
    """Weight of the episode advantage (episodes of one question compared by their outcome): plain GRPO is step 0, episode 1."""
    step_comparison: str = "reward"
    """What is compared between turns from one state. `reward`: of that very turn (Step-GRPO). `return`: what came of it, too (GiGPO)."""
    discount: float = 0.95
    """`step_comparison=return`: weight of the reward of the next turn of the episode."""
    baseline: str = "mean"
    """What a reward is measured against. `mean`: of its group (GRPO). `leave_one_out`: of the others of its group (RLOO). `shrunk`: that, drawn
    towards the mean of the other groups where groups are small (James-Stein)."""
    normalisation: str = "std"
    """`std`: advantages are divided by the standard deviation of their group (GRPO). `batch_std`: of the batch. `none`: they are not divided
    (Dr. GRPO). `components`: each part of the reward is normalised for itself, then their sum over the batch (GDPO)."""
    component_weights: dict[str, float] = field(default_factory=dict)
    """`normalisation=components`: weight of a part of the reward (`query`, `entity`, `routing`, `stop`, ...); 1 where it is not named."""
    resample_limit: int = 0
    """Rounds in which further questions are rolled out for those that taught nothing, as no group of theirs had variance (DAPO); 0: none."""

    surrogate: str = "clip"
    """`clip`: the clipped surrogate of PPO and GRPO. `cispo`: the policy gradient, weighed by the clipped ratio (CISPO)."""
    ratio: str = "token"
    """The probability ratio is that of each `token`, or the geometric mean over the tokens of a `turn` (GSPO; a turn is what is sampled in one
    piece) or of a `sequence` (all turns of an episode in the mini-batch; `rollout.mode=chain`)."""
    clip_low: float = 0.2
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.2
    """The probability ratio is clipped above at 1 + clip_high (0.28 is DAPO's clip-higher; GSPO's clips are near 3e-4 and 4e-4)."""
    dual_clip: float = 0.0
    """Where the advantage is negative, the ratio counts as at most this (3 in the paper); 0: no bound."""
    aggregation: str = "token_mean"
    """What counts equally in the loss: `token_mean` each token (DAPO); `turn_mean` each sampled turn (GRPO's 1 / |o|); `step_mean` each step of an
    episode, its siblings together; `sequence_mean` each episode. `constant`: each token, over a number of tokens that does not depend on what
    was sampled (Dr. GRPO)."""
    constant_tokens: int = 64
    """`aggregation=constant`: tokens that a turn counts as, such as `rollout.max_new_tokens`."""
    kl_weight: float = 0.0
    """Weight of the KL divergence to the policy that training began with; 0: no reference model is loaded."""
    kl_estimator: str = "k3"
    """`k1`, `k2` or `k3` (Schulman). In the loss, k1 has a gradient of mean zero; in the reward it is the unbiased one."""
    kl_in: str = "loss"
    """`loss`: added to it, token by token (GRPO). `reward`: its sum over the tokens of a turn is taken off the reward of the turn, that of an
    episode off its outcome (RLOO)."""
    entropy_weight: float = 0.0
    """Weight of the entropy bonus; the entropy is reported either way."""
    sampler_cap: float = 0.0
    """Truncated importance sampling: each token is weighed by min(this, its probability under the learner before the update / under the sampler),
    and ratios are those to the learner before the update; 0: ratios are those to the sampler (2 is usual)."""
    max_mismatch: float = 0.0
    """A run stops with an error when the log-probabilities of sampler and learner differ by more than this on average, in nats; 0: never."""
    kind_weights: dict[str, float] = field(default_factory=lambda: {"plan": 1.0, "answer": 1.0, "final": 1.0})
    """Weight of a token in the loss, by the kind of its turn."""
    overlong: str = "keep"
    """Turns that were cut off at their limit of tokens. `keep`: they are learned from like others. `mask`: they stay in the comparison, and out of
    the loss (DAPO's overlong filtering). `penalty`: what comes near the limit earns less (DAPO's soft overlong punishment)."""
    overlong_buffer: float = 0.25
    """`overlong=penalty`: the share of the limit over which the penalty grows from 0 to its full size."""
    overlong_weight: float = 1.0
    """`overlong=penalty`: its full size."""
    updates_per_iteration: int = 1
    """Mini-batches, hence optimizer steps, that one iteration's turns are dealt into; every mini-batch mixes the kinds of turns."""

    tokens_per_micro_batch: int = 4096
    """Bound on the tokens of one forward pass, which rows of several states fill; it changes time and memory, never the gradient."""
    attention: str = "auto"
    """How attention within packed rows is computed: `sdpa` (two fused calls a row), `flex` (one kernel for all rows, compiled, GPU only), or
    `auto`: flex on a GPU."""
    dtype: str = "float32"
    """Of the weights in the forward pass: `float32` or `bfloat16` (the optimizer keeps float32 either way)."""
    zero_stage: int = 0
    """DeepSpeed ZeRO: 0 nothing is partitioned, 1 optimizer state, 2 and gradients, 3 and weights."""
    offload: str = "none"
    """What lies in main memory instead of the GPU's: `none`; the `optimizer` state (ZeRO 1 to 3), whose step then runs on the CPU; or the weights
    (`parameters`, ZeRO 3) as well."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: a third more time, much less memory."""
    lora_rank: int = 0
    """Rank of low-rank adapters (LoRA), which are then all that is trained; 0: the weights themselves are. Sent and saved are merged weights."""
    lora_alpha: int = 32
    """LoRA: the adapters' product is scaled by lora_alpha / lora_rank."""
    lora_targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    """LoRA: names of the linear layers of the language model that get adapters; the vision tower gets none."""
    freeze_vision: bool = False
    """Leave the vision tower as it is; with LoRA it is frozen anyway."""
    num_learners: int = 1
    """Learner processes, each with a share of every mini-batch; the update is the same whatever their number."""
    threads: int = 1
    """CPU threads of one learner."""
    cpus_per_learner: float = 1.0
    """CPUs that Ray sets aside for one learner."""
    gpus_per_learner: float = 0.0
    """GPUs that Ray sets aside for one learner; 0: learn on the CPU."""
    resource: str = ""
    """Custom Ray resource of the nodes that learners should run on; empty: any node, or those with the resource `learner` where there are any."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the learner processes (`NCCL_SOCKET_IFNAME`, ...)."""
    seed: int = 0
    """Of the order in which turns are dealt into mini-batches, and of the learner's random numbers."""
    deadline_s: float = 600.0
    """Any wait for a learner (start, update, weights, checkpoint) ends with an error after this many seconds."""
    transport: str = "object_store"
    """How weights reach the rollout workers. `object_store`: through Ray's shared memory and its own network transfer. `collective`: by one
    broadcast, NCCL where learner and workers are on GPUs, gloo where they are not; both sides keep two buckets, or a second copy."""
    bucket_bytes: int = 256 * 2**20
    """Weights are sent in pieces of about this size: while one is on its way, the next is gathered."""
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    """What counts as a sign that training goes wrong."""

    def __post_init__(self) -> None:
        """Raises ValueError, naming the key, what was found, and what is allowed."""
        for key, allowed in CHOICES.items():
            _one_of(f"learner.{key}", getattr(self, key), allowed)
        for kind in self.kind_weights:
            _one_of("a key of learner.kind_weights", kind, ("plan", "answer", "final"))
        for key in POSITIVE:
            if not getattr(self, key) > 0:
                raise ValueError(f"learner.{key} is {getattr(self, key)}; it must be greater than 0")
        for key in NOT_NEGATIVE:
            if not getattr(self, key) >= 0:
                raise ValueError(f"learner.{key} is {getattr(self, key)}; it must not be negative")
        for key in ("clip_low", "discount", "lr_floor", "overlong_buffer"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"learner.{key} is {getattr(self, key)}; it must lie between 0 and 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"learner.betas is {list(self.betas)}; both must lie between 0 and 1, below 1")
        self._check_combinations()
        self._check_engine()

    def _check_combinations(self) -> None:
        if self.step_weight == 0 and self.episode_weight == 0:
            raise ValueError("learner.step_weight and learner.episode_weight are both 0: nothing would be learned; set one of them")
        if self.baseline == "shrunk" and self.normalisation == "std":
            raise ValueError(
                "learner.baseline=shrunk does not go with learner.normalisation=std: a group without variance has an advantage then, and no "
                "standard deviation; expected none or batch_std"
            )
        if self.normalisation == "components" and (self.baseline != "mean" or self.step_comparison != "reward"):
            raise ValueError(
                f"learner.normalisation=components does not go with learner.baseline={self.baseline} and learner.step_comparison="
                f"{self.step_comparison}; expected mean and reward"
            )
        if self.component_weights and self.normalisation != "components":
            raise ValueError(
                f"learner.component_weights are set, but learner.normalisation is {self.normalisation!r}; expected 'components'"
            )
        if self.dual_clip and (self.surrogate != "clip" or self.dual_clip <= 1 + self.clip_high):
            raise ValueError(
                f"learner.dual_clip is {self.dual_clip} with learner.surrogate={self.surrogate}; expected 0, or more than 1 + learner.clip_high "
                f"= {1 + self.clip_high} with surrogate=clip"
            )
        if self.sampler_cap and self.sampler_cap < 1:
            raise ValueError(
                f"learner.sampler_cap is {self.sampler_cap}; expected 0 (off) or at least 1: below 1 it would scale every token down"
            )

    def _check_engine(self) -> None:
        lowest = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < lowest:
            raise ValueError(
                f"learner.offload={self.offload} with learner.zero_stage={self.zero_stage}; expected "
                f"zero_stage {lowest}{' or higher' if lowest < 3 else ''}: what is not partitioned cannot be moved"
            )
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError(
                "learner.dtype=bfloat16 with learner.zero_stage=0: DeepSpeed keeps no float32 weights there, so small steps would be rounded "
                "away; expected zero_stage 1, which makes the same update with one learner, or higher"
            )
        if self.attention == "flex" and not self.gpus_per_learner:
            raise ValueError(
                "learner.attention=flex with learner.gpus_per_learner=0: it has no gradients on a CPU; expected auto or sdpa, or a GPU"
            )
        if self.lora_rank and not self.lora_targets:
            raise ValueError(
                f"learner.lora_targets is empty with learner.lora_rank={self.lora_rank}: nothing would be trained; expected names of linear "
                "layers such as [q_proj, v_proj]"
            )
        if self.lr_schedule != "constant" and self.lr_decay_iterations <= self.warmup_iterations:
            raise ValueError(
                f"learner.lr_decay_iterations is {self.lr_decay_iterations} with learner.lr_schedule={self.lr_schedule}; expected more than "
                f"learner.warmup_iterations={self.warmup_iterations}, such as train.iterations"
            )
        if self.lr_schedule == "constant" and self.lr_decay_iterations:
            raise ValueError(
                f"learner.lr_decay_iterations is {self.lr_decay_iterations}, but learner.lr_schedule is 'constant'; expected 0, or linear or "
                "cosine"
            )


POSITIVE = "lr constant_tokens updates_per_iteration tokens_per_micro_batch lora_alpha num_learners threads deadline_s bucket_bytes".split()
NOT_NEGATIVE = """warmup_iterations weight_decay max_grad_norm clip_low clip_high kl_weight entropy_weight max_mismatch resample_limit lora_rank
episode_weight step_weight overlong_weight cpus_per_learner gpus_per_learner seed""".split()
CHOICES: dict[str, tuple[object, ...]] = {
    "step_comparison": ("reward", "return"),
    "baseline": ("mean", "leave_one_out", "shrunk"),
    "normalisation": ("std", "batch_std", "none", "components"),
    "surrogate": ("clip", "cispo"),
    "ratio": ("token", "turn", "sequence"),
    "aggregation": ("token_mean", "turn_mean", "step_mean", "sequence_mean", "constant"),
    "kl_estimator": ("k1", "k2", "k3"),
    "kl_in": ("loss", "reward"),
    "lr_schedule": ("constant", "linear", "cosine"),
    "attention": ("auto", "sdpa", "flex"),
    "offload": ("none", "optimizer", "parameters"),
    "overlong": ("keep", "mask", "penalty"),
    "dtype": ("float32", "bfloat16"),
    "zero_stage": (0, 1, 2, 3),
    "transport": ("object_store", "collective"),
}
"""Key -> its values. The functions behind the names are in tables of their own; a test holds both together."""


def _one_of(key: str, found: object, allowed: tuple[object, ...]) -> None:
    if found not in allowed:
        near = difflib.get_close_matches(str(found), list(map(str, allowed)), n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{key} is {found!r}; it must be one of {', '.join(map(repr, allowed))}{meant}")
