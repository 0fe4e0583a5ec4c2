"""Whether the learner's settings go with how a run samples. `LearnerConfig` itself checks what lies within its own section."""

from __future__ import annotations

from learner.config import LearnerConfig


def check_rollout(learner: LearnerConfig, mode: str, group_size: int) -> None:
    """Whether what is sampled can be learned from in this way. Raises ValueError with both keys, what was found and what is expected."""
    if group_size < 2 and learner.baseline != "shrunk":
        raise ValueError(
            f"rollout.group_size is {group_size} with learner.baseline={learner.baseline}: nothing to compare a turn with; expected "
            "at least 2, or learner.baseline=shrunk with learner.normalisation=none"
        )
    if mode == "chain":
        return
    if learner.step_weight == 0 and learner.baseline != "shrunk":
        raise ValueError(
            f"learner.step_weight is 0 with rollout.mode={mode}, which makes one episode of a question: nothing to compare it with; expected "
            "rollout.mode=chain"
        )
    for key, value in (("step_comparison", "return"), ("ratio", "sequence")):
        if getattr(learner, key) == value:
            raise ValueError(
                f"learner.{key}={value} needs whole episodes side by side, rollout.mode={mode} samples siblings; expected rollout.mode=chain"
            )


def check_overlap(overlap: int, learner: LearnerConfig) -> None:
    """Raises ValueError unless what is learned from old weights' turns is corrected for that."""
    if overlap not in (0, 1):
        raise ValueError(
            f"train.overlap is {overlap}; it must be 0 (each batch is sampled with the newest weights) or 1 (one version older)"
        )
    if overlap and not learner.sampler_cap:
        raise ValueError(
            "train.overlap is 1 with learner.sampler_cap=0: turns are sampled one policy version before they are learned from, which has to be "
            "corrected for; expected learner.sampler_cap of at least 1 (2 is usual)"
        )


def check_shares(learner: LearnerConfig, mode: str, questions: int, max_steps: int) -> None:
    """Raises ValueError where an iteration has fewer groups than it is dealt into: updates without a turn, or learners without one."""
    groups = most_groups(mode, questions, max_steps)
    if learner.updates_per_iteration > groups:
        raise ValueError(
            f"learner.updates_per_iteration is {learner.updates_per_iteration}; expected at most {groups}: {questions} questions "
            f"(train.questions_per_iteration) make no more groups to deal out"
        )
    if learner.num_learners > max(1, groups // learner.updates_per_iteration):
        raise ValueError(
            f"learner.num_learners is {learner.num_learners}; expected at most {groups // learner.updates_per_iteration}: an update has no more "
            f"groups ({groups} of train.questions_per_iteration={questions}, over learner.updates_per_iteration={learner.updates_per_iteration})"
        )


def most_groups(mode: str, questions: int, max_steps: int) -> int:
    """States that an iteration samples siblings from, at most: recorded turns, or of each question a plan and an answer for every step, and the
    final answer. In `chain` mode episodes part ways; counted is what one episode visits."""
    return questions if mode == "offline" else questions * (2 * max_steps + 1)
