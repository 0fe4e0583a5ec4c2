"""One step off: while a batch is learned from, the next one is rolled out.

Both halves of the machine work all the time; the price is that every turn was sampled one policy version before the one that learns from it
(Noukhovitch et al. 2024, arXiv 2410.18252), which the learner corrects for (`learner.sampler_cap`). It is never more than one: workers are sent
the newest weights at the beginning of every iteration, when nothing is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from learner.experience import Experience


def one_step_off(
    ahead: Experience | None, version: int, gather: Callable[[int], Experience], learn: Callable[[Experience], dict[str, float]]
) -> tuple[Experience, list[Experience], dict[str, float]]:
    """Learn from `ahead`, which was rolled out beside the last update, and roll out what the next iteration learns from.

    Without it (the first iteration, or the first one after a restart) a batch is rolled out first. `gather` is told the version that will learn
    from the batch, which seeds it: two batches of one sampling version do not draw alike. Returns what was learned from, all that was rolled out
    meanwhile (the last one is for the next iteration), and the metrics of the learner. Raises what either half raises, when both have ended.
    """
    gathered = [gather(version)] if ahead is None else []
    experience = ahead or gathered[0]
    with ThreadPoolExecutor(1, thread_name_prefix="learn") as beside:
        learning = beside.submit(learn, experience)
        gathered.append(gather(version + 1))
        return experience, gathered, learning.result()
