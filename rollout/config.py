"""Settings of a rollout: how turns are sampled and how an episode goes on."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RolloutConfig:
    mode: str = "branch"
    """`branch`: `group_size` siblings at every turn, one becomes the trunk. `chain`: `group_size` independent episodes a question.
    `offline`: recorded turns, no retrieval."""
    group_size: int = 8
    """Siblings sampled from each state (`branch`, `offline`), or episodes a question (`chain`)."""
    max_steps: int = 3
    """Retrievals an episode may make before it has to answer."""
    passages: int = 3
    """Top-k passages that an answer turn reads."""
    shuffle_passages: bool = True
    """Show passages in random order: with gold at rank 1 a policy learns to copy the first."""
    max_passage_chars: int = 400
    """Longer passages are cut in the prompt."""
    routing: str = "policy"
    """Who names the knowledge base: `policy`; or, for comparison, `random`, `oracle` (the gold one, or stop when nothing is needed, where gold
    steps are known), and the
    methods that have no router: `all`, `single:KB`, `direct`, `ircot`, `never_stop` (rollout/methods)."""
    temperature: float = 1.0
    """0: greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    max_new_tokens: int = 64
    """Of each turn; a turn that is cut off there is marked (finish reason `length`)."""
    max_new_tokens_by_kind: dict[str, int] = field(default_factory=dict)
    """The same for one kind of turn (`plan`, `answer`, `final`), where it is another."""
    max_prompt_tokens: int = 4096
    """A question with a longer prompt fails and is counted; recorded (offline) ones are left out."""
    prompts: str = "short"
    """`short` (tiny policy), `paper` (instructions in full, for instruction-tuned models), a YAML file with the keys of rollout/prompt_files, or a
    published step data set (see `prompts.from_dataset`)."""
    engine: str = "transformers"
    """`transformers`: anywhere. `vllm`: on GPUs, with the extra `[vllm]`."""
    slots: int = 256
    """Responses that are generated side by side; on a GPU as many as `batch_tokens` allows."""
    batch_tokens: int = 65536
    """Bound on the tokens, of prompts and responses, whose keys and values are kept. Siblings share those of their prompt."""
    compile_decode: bool = False
    """On a GPU: compile the decode step (`torch.compile`)."""
    tokens_in_flight: int = 262144
    """Bound on the tokens of all episodes under way on one worker, generating, waiting to, or searching: further ones begin when there is room."""
    gold_gains: bool = False
    """Measure by how much each sub-answer raises the policy's probability of the gold answer; set by `reward.terms.information_gain`."""
    episode_s: float = 0.0
    """Seconds, since its worker was given it, after which an episode is broken off and counted as failed; 0: never."""
    enough: float = 1.0
    """Share of an iteration's questions after which the others, the stragglers, are cut off and asked again in the next iteration; 1: none."""
    straggler_s: float = 0.0
    """Seconds after which they are cut off; 0: never. A question that was cut off twice is waited for: long episodes are never biased away."""
    threads: int = 1
    """CPU threads of one rollout worker."""

    def longest(self, kind: str) -> int:
        """Tokens after which a turn of this kind is cut off."""
        return self.max_new_tokens_by_kind.get(kind, self.max_new_tokens)
