"""A reward of your own: shorter final answers earn more.

    cd examples && r1-router train laptop.yaml reward.terms.step=1 reward.terms.my_reward:brevity=0.2

MODULE:NAME is looked up in the folder that the command is started in.
"""

from rewards.step_rewards import JudgedTurn


def brevity(turn: JudgedTurn) -> float | None:
    """1 for one word, 1/2 for two, ...; None: other turns are not scored."""
    return None if turn.state.kind != "final" or turn.answer is None else 1 / max(1, len(turn.answer.split()))
