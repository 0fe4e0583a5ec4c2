"""What Ray's control store knows of processes, dead ones too. It is asked directly: `ray.util.state` needs a dashboard, which a run on one machine
does not start. Whatever it does not answer in time is left out: a report of a failure must not become one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray._private.state import state
from ray.core.generated import common_pb2, gcs_pb2

PATIENCE_S = 5.0
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ActorFacts:
    """Where an actor runs, or ran last."""

    pid: int
    """0: it was never started."""
    node: str
    """Ray's id of the node."""
    state: str
    """ALIVE, RESTARTING, DEAD, ..."""
    restarts: int


@dataclass(frozen=True)
class Death:
    """The end of a process, as the node's raylet saw it."""

    pid: int
    node: str
    address: str
    kind: str
    """SYSTEM_ERROR, INTENDED_SYSTEM_EXIT, USER_ERROR, INTENDED_USER_EXIT, NODE_OUT_OF_MEMORY."""
    detail: str
    when: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class NodeFacts:
    address: str
    alive: bool


def actors() -> dict[str, ActorFacts]:
    """Those of this job, by their ids in hexadecimal digits; empty where nobody answers."""
    return _in_time(_actors) or {}


def deaths() -> list[Death]:
    return _in_time(_deaths) or []


def nodes() -> dict[str, NodeFacts]:
    return _in_time(_nodes) or {}


def _actors() -> dict[str, ActorFacts]:
    states = gcs_pb2.ActorTableData.ActorState.Name
    found = {}
    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    for raw in state._connect_and_get_accessor().get_actor_table(job, None):
        row = gcs_pb2.ActorTableData.FromString(raw)
        node = row.node_id or row.address.node_id
        found[row.actor_id.hex()] = ActorFacts(row.pid, node.hex(), states(row.state), row.num_restarts)
    return found


def _deaths() -> list[Death]:
    found = []
    for raw in state._connect_and_get_accessor().get_worker_table():
        row = gcs_pb2.WorkerTableData.FromString(raw)
        if not row.is_alive:
            kind, where = common_pb2.WorkerExitType.Name(row.exit_type), row.worker_address
            found.append(Death(row.pid, where.node_id.hex(), where.ip_address, kind, row.exit_detail, row.end_time_ms / 1000))
    return found


def _nodes() -> dict[str, NodeFacts]:
    return {row["NodeID"]: NodeFacts(row["NodeManagerAddress"], row["Alive"]) for row in state.node_table()}


def _in_time(ask: Callable[[], Answer]) -> Answer | None:
    """The answer, or None: too late, or a Ray whose inner parts are others."""
    asking: Any = ThreadPoolExecutor(1, thread_name_prefix="ask Ray")
    try:
        return asking.submit(ask).result(timeout=PATIENCE_S)
    except Exception:
        return None
    finally:
        asking.shutdown(wait=False)
