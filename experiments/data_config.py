"""Sections `data`, `evaluation` and `prompts` of the configuration: which questions, how they are measured, in which words they are asked."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class DataConfig:
    """Section `data`: which questions, and where they come from."""

    name: str = "atlas"
    """A data set of experiments/datasets: `atlas` (fictional worlds, made on the spot), `real_atlas`, `2wiki`, `ottqa`, `wikitables`; those
    that the paper is evaluated on: `paper_2wiki`, `infoseek`, `webqa`, `dynvqa`, `openwikitable`, `tabfact`; `recorded_steps` (for
    `rollout.mode=offline`); `questions` (a file of your own); or MODULE:FUNCTION. See docs/data.md."""
    path: str = ""
    """Folder or file of the data set; empty: where it lies in `data.folder`."""
    folder: str = "../shared/data"
    """Where published data sets lie that are named without a path, each as its README there says."""
    heldout_path: str = ""
    """`questions`: a second file for before and after; empty: they are taken from `path`."""
    kb_passages: int = 0
    """Passages of each knowledge base that a published data set brings, at most: those that its questions need first, then others. 0: all."""
    image_folder: str = ""
    """Where the pictures of a file lie, and the only place they may lie; empty: beside the file."""
    kb_folder: str = "kbs"
    """Where knowledge bases that a data set brings are built, once."""
    seed: int = 0
    """Of the worlds, or of which questions are held out."""
    train_questions: int = 2048
    """At most so many different training questions."""
    worlds: int = 4
    """`atlas`: worlds of each split."""
    countries: int = 24
    """`atlas`: countries of each world."""


@dataclass
class EvaluationConfig:
    questions: int = 512
    """Held-out questions that before, after and the baselines are measured on."""
    validation_questions: int = 96
    """Questions by which the best policy is chosen."""
    temperature: float = 0.0
    """Of sampling; 0: the most probable token."""
    baselines: list[str] = field(default_factory=lambda: ["random", "all", "oracle"])
    """Methods measured with the trained policy beside its own routing: `random`, `all` (static retrieval from every knowledge base), `oracle`, or
    another of rollout/methods."""
    start_baselines: list[str] = field(default_factory=lambda: ["oracle"])
    """The same, measured with the policy that training starts from."""
    methods: list[str] = field(default_factory=list)
    """What `experiments.evaluate` measures: methods as above, `sampled`, or `every`; empty: `policy` and `baselines`."""
    samples: int = 4
    """Episodes of each question that `sampled` is averaged over (avg@k), at `rollout.temperature`."""
    folder: str = "evaluations"
    """Where `experiments.evaluate` writes what it measures, question by question."""


@dataclass
class PromptsConfig:
    from_dataset: str = ""
    """A published step data set (r1router/grpo_dataset_valid_new.jsonl, from here or from `data.folder`): prompts as the released checkpoints were
    trained with them, system prompts and layout, in the place of `rollout.prompts`. Empty: `rollout.prompts`."""
