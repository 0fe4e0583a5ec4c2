"""Reports lost processes, lost nodes and errors of the driver: one line each, and a file in `failures/` of the run folder."""

from __future__ import annotations

import dataclasses
import json
import re
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.text import Text

from experiments.command_line.terminal import visible
from experiments.tracking.heartbeat import Heartbeat
from experiments.tracking.run_folder import RunFolder
from learner.deadline import DeadlineError, LearnerLostError
from rollout.timeline import Timeline

FOLDER = "failures"
OUT_OF_MEMORY = ("MemoryError", "OutOfMemory", "OUT_OF_MEMORY", "out of memory", "Cannot allocate memory", "can't allocate memory")
LESS_MEMORY = "lower rollout.batch_tokens, rollout.slots or learner.tokens_per_micro_batch, or use nodes with more memory"
HANG = "raise learner.deadline_s if this takes longer; else a process hangs: with several GPUs look at NCCL (NCCL_DEBUG=INFO)"
RECENT_S = 5.0  # from where an error is raised to where it is described, at most
LOG_LINES, LOG_BYTES, LOG_S = 12, 16_384, 10.0  # of a log: lines shown, bytes read, seconds that another node may take to answer


@dataclass(frozen=True)
class Failure:
    role: str  # rollout worker 1, learner rank 0, knowledge base text, shard 2, node, driver, program, ...
    phase: str  # of the timelines: set_up, push, rollout, score, learn, checkpoint, validate, ...
    reason: str
    fatal: bool  # the run ended with it
    iteration: int
    policy_version: int
    when: str  # time of day
    process: int = 0  # from here on: what is not known is 0 or empty
    node: str = ""
    exit: str = ""  # exit type and detail, as Ray reports them
    then: str = ""  # what the run does now
    fix: str = ""
    log: tuple[str, ...] = ()
    traceback: str = ""  # of the driver; only in the file

    def line(self) -> str:
        process = f", process {self.process}" if self.process else ""
        node = f" on node {self.node}" if self.node else ""
        return f"{self.role} ({self.phase}{process}{node}): {'; '.join(filter(None, [self.reason, self.then]))}"

    def details(self) -> Text:
        """How the process ended, the last lines of its log, and what to try."""
        return Text(visible("\n".join(filter(None, [self.exit, *self.log, self.fix]))))

    def write(self, run_folder: Path) -> Path:
        folder = run_folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{len(list(folder.glob('*.json'))) + 1:03d}.json"
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return file


def fix_for(*said: str, hangs: bool = False, fatal: bool = False) -> str:
    """What to try; docs/12_troubleshooting.md says more. `said`: the reason, exit type and log lines of the failure."""
    memory = LESS_MEMORY if any(word in text for text in said for word in OUT_OF_MEMORY) else ""
    again = "run it again with train.resume=auto, which resumes from the last checkpoint" if fatal else ""
    return "; ".join(filter(None, [memory, HANG if hangs else "", again])) or "nothing, unless it happens often"


class Supervisor:
    """Watches the actors of a run: `check_actors`, called after every iteration, reports lost ones; `describe` explains an exception."""

    def __init__(self, folder: Path, console: Console):
        self.folder, self.console = folder, console
        self._iterations = deque([(0.0, 0)], maxlen=16)  # (seconds since the epoch when it began, number); 0: before the first
        self.timeline = Timeline()  # phases of the run; those within an iteration are the algorithm's
        self._algorithm: Any = None
        self._roles: Callable[[], Mapping[str, Any]] = dict
        self._last_seen: dict[str, Mapping[str, Any]] = {}  # role -> its actor in Ray's table, when it was last seen alive

    @property
    def iteration(self) -> int:
        return self._iterations[-1][1]

    @iteration.setter
    def iteration(self, number: int) -> None:
        self._iterations.append((time.time(), number))

    @classmethod
    @contextmanager
    def of(cls, folder: Path, console: Console) -> Iterator[Supervisor]:
        """For one driver. Reports first that an earlier driver of this run crashed, if one did."""
        supervisor = cls(folder, console)
        with Heartbeat(folder, supervisor.progress) as heartbeat:
            if last := heartbeat.crashed:
                known = {key: value for key, value in last.items() if key != "beat"}
                reason = "the last driver of this run crashed: killed (out of memory?), or its node was lost"
                supervisor.report(Failure("driver", reason=reason, fatal=True, fix=fix_for(fatal=True), **known))
            yield supervisor

    def watch(self, algorithm: Any, roles: Callable[[], Mapping[str, Any]]) -> None:
        """`roles`: role -> actor handle; called again after every iteration, as actors are replaced."""
        self._algorithm, self._roles = algorithm, roles
        self.check_actors()

    def forget(self, beginning: str) -> None:
        """Drop the roles whose names begin so: they were reported, and are being replaced."""
        self._last_seen = {role: seen for role, seen in self._last_seen.items() if not role.startswith(beginning)}

    def progress(self) -> dict[str, Any]:
        now = self._failure("driver", "")
        return {"phase": now.phase, "iteration": now.iteration, "policy_version": now.policy_version}

    def check_actors(self) -> list[Failure]:
        """Reports and returns the nodes that were lost since the last call, and the processes that ended and that Ray restarts."""
        table, found = actors(job_id=ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))), []
        dead = {node["NodeID"] for node in ray.nodes() if not node["Alive"]} if self._last_seen else set()
        for node in dead:
            if there := {role: seen for role, seen in self._last_seen.items() if seen["Address"]["NodeID"] == node}:
                then = "its processes are started elsewhere, where there is room"
                lost = self._failure("node", f"the node is gone, and with it {', '.join(there)}", then)
                found.append(replace(lost, node=next(iter(there.values()))["Address"]["IPAddress"]))
        for role, seen in self._last_seen.items():
            row = table.get(seen["ActorID"])
            if row and seen["Address"]["NodeID"] not in dead and (row["Pid"] != seen["Pid"] or row["State"] in ("RESTARTING", "DEAD")):
                found.append(self._failure(role, "its process ended", "it is being restarted, the iteration is complete", seen))
        for failure in found:
            self.report(failure)
        rows = {role: table.get(handle._actor_id.hex()) for role, handle in self._roles().items()}
        self._last_seen = {role: row for role, row in rows.items() if row and row["State"] == "ALIVE"}
        return found

    def report(self, failure: Failure, kind: str = "failure", style: str = "yellow") -> None:
        file = failure.write(self.folder)
        self.console.print(f"{kind}: {failure.line()} ({file})", style=style, soft_wrap=True, markup=False, highlight=False)

    def end(self, error: BaseException) -> Failure:
        """Reports the error that ends the run, with details; the traceback is in the file."""
        failure = self.describe(error, fatal=True, then=f"the run ends; {RunFolder(self.folder).next_start()}")
        self.report(failure, "error", "red")
        self.console.print(failure.details(), soft_wrap=True)
        return failure

    def describe(self, error: BaseException, fatal: bool, then: str) -> Failure:
        """The role behind an exception that reached the driver, the phase that it ended, and what to do."""
        role, cause = self._role_of(error), getattr(error, "cause", None) or error
        text = str(cause).strip().partition("\n")[0]
        named = isinstance(cause, LearnerLostError | DeadlineError | FloatingPointError)
        reason = text if named and text else f"{type(cause).__name__}: {text}".removesuffix(": ")
        hangs = isinstance(error, DeadlineError) or "no answer in" in getattr(error, "reason", "")
        inside = isinstance(error, RayTaskError)  # where it was raised says more than the log
        failure = self._failure(role, reason, then, self._last_seen.get(role), ended=not (hangs or inside))
        log = tuple(str(error).strip().splitlines()[-LOG_LINES:]) if inside else failure.log
        ended = [*([self._algorithm.failed_phase] if self._algorithm else []), self.timeline.failed]  # the innermost first
        recent = [phase for when, phase in ended if not failure.exit and time.time() - when < RECENT_S]
        fix = fix_for(reason, failure.exit, *log, hangs=hangs, fatal=fatal)
        trace = "".join(traceback.format_exception(error))
        return replace(failure, phase=[*recent, failure.phase][0], log=log, fix=fix, fatal=fatal, traceback=trace)

    def _failure(self, role: str, reason: str, then: str = "", seen: Mapping[str, Any] | None = None, ended: bool = True) -> Failure:
        """A failure at this time or, with `seen` and `ended`, at the time when that process ended."""
        when, exit, log = end_of(seen) if seen and ended else (time.time(), "", ())
        within, version = "", 0
        if self._algorithm:
            within, version = self._algorithm.phase_at(when, role.startswith("learner")), self._algorithm.policy_version
        phase, clock = within or self.timeline.at(when) or "train", time.strftime("%H:%M:%S", time.localtime(when))
        known = tuple(self._iterations)  # a copy, as the heartbeat asks from a thread of its own
        iteration = next((number for began, number in reversed(known) if began <= when), known[0][1])
        failure = Failure(role, phase, reason, False, iteration, version, clock, exit=exit, then=then, log=log)
        if seen is None:
            return failure
        return replace(failure, process=seen["Pid"], node=seen["Address"]["IPAddress"], fix=fix_for(exit, *log))

    def _role_of(self, error: BaseException) -> str:
        """The role that raised `error`; `program` where it was no actor."""
        if isinstance(error, LearnerLostError):
            return f"learner rank {error.ranks[0]}" if error.ranks else "learner"
        raised_in = re.search(r"\(pid=(\d+), ip=", str(error)) if isinstance(error, RayTaskError) else None
        actor = getattr(error, "actor_id", None) if isinstance(error, RayActorError) else None
        for role, seen in self._last_seen.items():
            if seen["ActorID"] == actor or (raised_in and seen["Pid"] == int(raised_in[1])):
                return role
        return "learner" if isinstance(error, FloatingPointError) else "program"


def end_of(seen: Mapping[str, Any]) -> tuple[float, str, tuple[str, ...]]:
    """When and how a process ended, and the last lines of its log, read on its node. `seen`: a row of Ray's table of actors."""
    pid, node = seen["Pid"], seen["Address"]["NodeID"]
    if node == ray.get_runtime_context().get_node_id():
        return read_end(pid)
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        return ray.get(ray.remote(num_cpus=0, scheduling_strategy=there)(read_end).remote(pid), timeout=LOG_S)
    except RayError:  # the node is gone, or busy
        return time.time(), "", ()


def read_end(pid: int, logs: Path | None = None) -> tuple[float, str, tuple[str, ...]]:
    """As `end_of`, in the log folder of this node's Ray session: events/ says why it ended, worker-*-PID.err (or .out) what it wrote."""
    logs = logs or Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    when, exit, lines = time.time(), "", list[str]()
    for line in [line for file in logs.glob("events/event_RAYLET*.log") for line in file.read_text(errors="replace").splitlines()]:
        if found := re.search(rf"Worker PID: {pid} Worker exit type: (\w+) Worker exit detail: (.*?\.)(\s|\")", line):
            when, exit = float(json.loads(line)["timestamp"]), f"{found[1]}: {found[2]}"
    for file in [*logs.glob(f"worker-*-{pid}.out"), *logs.glob(f"worker-*-{pid}.err")]:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - LOG_BYTES))
            text = log.read().decode("utf-8", "replace").replace("\r", "\n")
        # Ray marks jobs and actors by lines that begin with a colon.
        lines = [line.rstrip()[:240] for line in text.splitlines() if line.strip() and not line.startswith(":")] or lines
    return when, exit, tuple(lines[-LOG_LINES:])
