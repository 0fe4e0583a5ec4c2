"""Settings of the learner: the objective, the optimizer, and the machines it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LearnerConfig:
    lr: float = 1e-4
    """Learning rate of AdamW after the warm-up."""
    warmup_iterations: int = 5
    """The learning rate rises linearly to `lr` over this many iterations."""
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
    normalisation: str = "std"
    """`std`: advantages are divided by the standard deviation of their group (GRPO). `none`: they are not (Dr. GRPO)."""
    clip_low: float = 0.2
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.2
    """The probability ratio is clipped above at 1 + clip_high (0.28 is DAPO's clip-higher)."""
    kl_weight: float = 0.0
    """Weight of the KL divergence to the policy that training began with; 0: no reference model is loaded."""
    kind_weights: dict[str, float] = field(default_factory=lambda: {"plan": 1.0, "answer": 1.0, "final": 1.0})
    """Weight of a token in the loss, by the kind of its turn."""
    updates_per_iteration: int = 1
    """Mini-batches, hence optimizer steps, that one iteration's turns are dealt into; every mini-batch mixes the kinds of turns."""

    tokens_per_micro_batch: int = 4096
    """Bound on the tokens (padding included) of one forward pass; it changes time and memory, never the gradient."""
    dtype: str = "float32"
    """Of the weights in the forward pass: `float32` or `bfloat16` (the optimizer keeps float32 either way)."""
    zero_stage: int = 0
    """DeepSpeed ZeRO: 0 nothing is partitioned, 1 optimizer state, 2 and gradients, 3 and weights."""
    num_learners: int = 1
    """Learner processes, each with a share of every mini-batch; the update is the same whatever their number."""
    threads: int = 1
    """CPU threads of one learner."""
    cpus_per_learner: float = 1.0
    """CPUs that Ray sets aside for one learner."""
    gpus_per_learner: float = 0.0
    """GPUs that Ray sets aside for one learner; 0: learn on the CPU."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the learner processes (`NCCL_SOCKET_IFNAME`, ...)."""
    seed: int = 0
    """Of the order in which turns are dealt into mini-batches, and of the learner's random numbers."""
    deadline_s: float = 600.0
    """Any wait for a learner (start, update, weights, checkpoint) ends with an error after this many seconds."""

    def __post_init__(self) -> None:
        """Raises ValueError, naming the key, what was found, and what is allowed."""
        _one_of("learner.normalisation", self.normalisation, ("std", "none"))
        _one_of("learner.dtype", self.dtype, ("float32", "bfloat16"))
        _one_of("learner.zero_stage", self.zero_stage, (0, 1, 2, 3))
        for kind in self.kind_weights:
            _one_of("a key of learner.kind_weights", kind, ("plan", "answer", "final"))
        for key in ("lr", "tokens_per_micro_batch", "updates_per_iteration", "num_learners", "threads", "deadline_s"):
            if not getattr(self, key) > 0:
                raise ValueError(f"learner.{key} is {getattr(self, key)}; it must be greater than 0")
        if self.step_weight == 0 and self.episode_weight == 0:
            raise ValueError("learner.step_weight and learner.episode_weight are both 0: nothing would be learned; set one of them")


def _one_of(key: str, found: object, allowed: tuple[object, ...]) -> None:
    if found not in allowed:
        raise ValueError(f"{key} is {found!r}; it must be one of {', '.join(map(repr, allowed))}")
