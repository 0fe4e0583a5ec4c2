"""One place that hears of everything that fails in a run, and tells it so that it can be read."""

from __future__ import annotations

import os
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayError
from rich.console import Console

from experiments.failures import ray_facts
from experiments.failures.advice import mend_of
from experiments.failures.driver_file import DriverFile
from experiments.failures.exit_status import ExitStatus
from experiments.failures.failure import Failure
from experiments.failures.judgement import clock_time, from_inside, is_hang, memory_of, of_driver, out_of_memory, process_of, said, whose
from experiments.failures.node_watch import LOG_LINES
from experiments.failures.ray_facts import ActorFacts, Death
from experiments.failures.roles import phase_of
from experiments.failures.watches import Watches
from learner.lost_learner import LearnerLostError
from rollout.timeline import REMEMBERED, Timeline

RECENT_S = 5.0
"""From where something is raised to where it is explained."""
SETTLE_S = 2.0
"""Ray hears of the end of a process a little after those who had called it."""


class Supervisor:
    """`oversee` the actors of a run, `look` after every iteration, `explain` what was raised."""

    def __init__(self, folder: Path, console: Console):
        self.folder, self.console = folder, console
        self.clock = Timeline()
        """What the run is busy with, apart from what the algorithm does within an iteration."""
        self.iteration = 0
        """That is going on, or was the last one."""
        self._begun: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)], maxlen=REMEMBERED)
        """When, which iteration, with which policy version."""
        self.failures: list[Failure] = []
        self._algorithm: Any = None
        self._parts: Callable[[], Mapping[str, Any]] = dict
        self._known: dict[str, tuple[str, ActorFacts]] = {}
        """Role -> id of its actor, and where it was last seen alive."""
        self._watches = Watches()
        self._lost_nodes: set[str] = set()

    @classmethod
    @contextmanager
    def of(cls, folder: Path, console: Console) -> Iterator[Supervisor]:
        """For one driver. Tells of an earlier driver of this run that was lost without a word."""
        supervisor = cls(folder, console)
        with DriverFile(folder, supervisor.now) as file:
            if file.before:
                supervisor.tell(of_driver(file.before))
            try:
                yield supervisor
            finally:
                supervisor.close()

    def oversee(self, algorithm: Any, roles: Callable[[], Mapping[str, Any]]) -> None:
        """`roles`: asked again after every iteration, as actors are replaced."""
        self._algorithm, self._parts = algorithm, roles
        self._register()

    def begin(self, iteration: int) -> None:
        self.iteration = iteration
        self._begun.append((time.time(), iteration, self.policy_version))

    def forget(self, beginning: str) -> None:
        """Roles whose names begin so were told already, and are being replaced."""
        self._known = {role: known for role, known in self._known.items() if not role.startswith(beginning)}

    def close(self) -> None:
        self._watches.close()

    def phase(self, role: str = "driver", when: float | None = None) -> str:
        """What was done then, seen by this role."""
        when = time.time() if when is None else when
        within = self._algorithm.doing_at(when, role.startswith("learner")) if self._algorithm else ""
        return phase_of(role, within or self.clock.at(when))

    def _phase_of_error(self, role: str) -> str:
        """In which phase what just reached the driver was raised: the innermost that it broke."""
        now, (when, outer), (before, inner) = time.time(), self.clock.broken, self._algorithm.broken if self._algorithm else (0.0, "")
        if now - when > RECENT_S:
            return self.phase(role)
        return phase_of(role, inner if 0 <= when - before < RECENT_S else outer)

    @property
    def policy_version(self) -> int:
        return self._algorithm.policy_version if self._algorithm else 0

    def now(self) -> dict[str, Any]:
        """For the file of the driver."""
        return {"phase": self.phase(), "iteration": self.iteration, "policy_version": self.policy_version}

    def look(self) -> list[Failure]:
        """Processes that ended since the last look though Ray restarted them, or nobody needed them: told, written, counted."""
        facts, found = ray_facts.actors(), []
        gone = {
            role: (actor, before)
            for role, (actor, before) in self._known.items()
            if before.pid and actor in facts and (facts[actor].pid != before.pid or facts[actor].state in ("RESTARTING", "DEAD"))
        }
        if gone or self._lost():
            deaths = {(death.node, death.pid): death for death in ray_facts.deaths()}
            found = [self._of_node(node) for node in self._lost()]
            found += [
                self._of_process(role, before, deaths.get((before.node, before.pid)), "it is being restarted, the iteration is complete")
                for role, (_, before) in gone.items()
                if before.node not in self._lost_nodes
            ]
            for failure in found:
                self.tell(failure)
        self._register(facts)
        return found

    def tell(self, failure: Failure) -> None:
        """In one line, and in a file."""
        self.failures.append(failure)
        file = failure.write(self.folder)
        self.console.print(f"failure: {failure.line()} ({file})", style="yellow", soft_wrap=True, markup=False, highlight=False)

    def end(self, error: BaseException) -> Failure:
        """The run ends with this: the panel that stands in the place of a traceback, which is in the file."""
        failure = self.explain(error, fatal=True, then="the run ends; train.resume=auto goes on from the last checkpoint")
        self.failures.append(failure)
        file = failure.write(self.folder)
        self.console.print(failure.panel())
        self.console.print(f"error: {failure.line()} (all of it: {file})", style="red", soft_wrap=True, markup=False, highlight=False)
        return failure

    def interrupted(self) -> None:
        """The driver was told twice to stop: it ends in the middle of an iteration."""
        self.tell(
            Failure(
                role="driver",
                phase=self.phase(),
                reason="it was told twice to stop, and ended within the iteration",
                fatal=True,
                iteration=self.iteration,
                policy_version=self.policy_version,
                when=clock_time(time.time()),
                process=os.getpid(),
                then="train.resume=auto goes on from the last checkpoint",
                mend=mend_of("driver", False, False),
            )
        )

    def explain(self, error: BaseException, fatal: bool, then: str) -> Failure:
        """Who is behind an exception that reached the driver."""
        trace, role = "".join(traceback.format_exception(error)), self._role_of(error)
        phase = self._phase_of_error(role)
        if role:
            before = self._known[role][1]
            death = self._death_of(before) if not from_inside(error) else None
            failure = self._of_process(role, before, death, then, fatal, reason=said(error), hang=is_hang(error) and death is None)
            failure = failure if death else replace(failure, phase=phase)
        else:
            role = whose(error)
            failure = Failure(
                role=role,
                phase=phase,
                reason=said(error),
                fatal=fatal,
                iteration=self.iteration,
                policy_version=self.policy_version,
                when=clock_time(time.time()),
                then=then,
                mend=mend_of(role, False, fatal, is_hang(error)),
                log=tuple(traceback.format_exception_only(error)[-1].splitlines()[:3]) if not isinstance(error, RayError) else (),
            )
        if from_inside(error):  # where it was raised says more than what the process wrote
            failure = replace(failure, log=tuple(str(error).strip().splitlines()[-LOG_LINES:]))
        return replace(failure, traceback=trace)

    def _of_process(
        self,
        role: str,
        before: ActorFacts,
        death: Death | None,
        then: str,
        fatal: bool = False,
        reason: str = "",
        hang: bool = False,
    ) -> Failure:
        seen = self._watches.last_seen(before.node, before.pid)
        when = death.when if death and death.when else time.time()
        oom = out_of_memory(seen, death)
        _, iteration, version = next(begun for begun in reversed(self._begun) if begun[0] <= when)
        ended = str(seen.exit) if death or seen.exit != ExitStatus() else "it still runs" if hang else "unknown"
        node = ray_facts.nodes().get(before.node)
        address = node.address if node else (death.address if death else before.node[:12])
        return Failure(
            role=role,
            phase=self.phase(role, when),
            reason=reason or f"its process ended ({ended})",
            fatal=fatal,
            iteration=iteration,
            policy_version=version,
            when=clock_time(when),
            process=before.pid,
            node=address,
            exit=ended,
            memory=memory_of(seen),
            out_of_memory=oom,
            ray=f"{death.kind}: {death.detail.partition('. ')[0]}" if death else "",
            then=then,
            mend=mend_of(role, oom.startswith(("yes", "possibly")), fatal, hang),
            log=seen.log,
        )

    def _of_node(self, node: str) -> Failure:
        self._lost_nodes.add(node)
        there = [role for role, (_, before) in self._known.items() if before.node == node]
        facts = ray_facts.nodes().get(node)
        self._watches.drop(node)
        return Failure(
            role="node",
            phase=self.phase(),
            reason=f"the node is gone, and with it {', '.join(there) or 'nothing of this run'}",
            fatal=False,
            iteration=self.iteration,
            policy_version=self.policy_version,
            when=clock_time(time.time()),
            node=facts.address if facts else node[:12],
            then="its processes are started elsewhere where there is room",
            mend=mend_of("node", False, False),
        )

    def _lost(self) -> list[str]:
        """Nodes of this run that are gone and were not told yet."""
        ours = {before.node for _, before in self._known.values()}
        return sorted(node for node, facts in ray_facts.nodes().items() if node in ours - self._lost_nodes and not facts.alive)

    def _role_of(self, error: BaseException) -> str:
        """Empty where no actor is behind it."""
        if isinstance(error, LearnerLostError):
            return next((role for role in (f"learner rank {rank}" for rank in error.ranks) if role in self._known), "")
        if from_inside(error):
            pid = process_of(error)
            return next((role for role, (_, before) in self._known.items() if before.pid == pid), "")
        actor = getattr(error, "actor_id", "") if isinstance(error, RayActorError) else ""
        return next((role for role, (known, _) in self._known.items() if actor and known == actor), "")

    def _death_of(self, before: ActorFacts) -> Death | None:
        """Waits a little for it."""
        end = time.monotonic() + SETTLE_S
        while True:
            found = next((d for d in ray_facts.deaths() if (d.node, d.pid) == (before.node, before.pid)), None)
            if found or time.monotonic() > end:
                return found
            time.sleep(0.2)

    def _register(self, facts: Mapping[str, ActorFacts] | None = None) -> None:
        """Note where every actor runs, and have its process watched."""
        facts = facts or ray_facts.actors()
        pids = defaultdict(list)
        known = {}
        for role, handle in self._parts().items():
            actor = handle._actor_id.hex()
            if actor in facts and facts[actor].state == "ALIVE":
                known[role] = (actor, facts[actor])
                pids[facts[actor].node].append(facts[actor].pid)
        self._known = known
        for node, its in pids.items():
            self._watches.watch(node, its)
