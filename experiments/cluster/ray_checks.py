"""Whether Ray can be started here, or joined at RAY_ADDRESS. Ray itself reports the same problems after minutes, or never."""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from experiments.cluster.findings import Finding
from experiments.command_line.reachable import CONNECT_S, existing, unwritable
from experiments.config import TrainConfig

SOCKET_BYTES = 107  # the longest path of a Unix socket, under Linux
TEMPORARY_MIB = 100  # what Ray and its logs need of the disk for temporary files
IS_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # takes no arguments, needs the right token; the reply has the head's version
ADDRESSES = "expected HOST:PORT of a head (`ray start --head` prints it), auto, local, or nothing"


def joined_address() -> str:
    """Address of the Ray that commands join instead of starting one; empty: none."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def start_findings(config: TrainConfig) -> Iterator[Finding]:
    """Whether Ray can be started here or, with RAY_ADDRESS, joined there."""
    if address := joined_address():
        yield check_head(address)
        return
    yield check_temporary_files()
    if Path("/dev/shm").is_dir():
        free, store = shutil.disk_usage("/dev/shm").free / 2**20, config.ray.object_store_mb
        fix = f"Ray will use slower files: raise the limit (docker: --shm-size={store + 512}m)" if free < store else ""
        yield Finding("shared memory", f"/dev/shm has {free / 1024:.1f} GiB free, ray.object_store_mb={store}", fix, fatal=False)


def check_output(folder: str, key: str) -> Finding:
    """Whether a command can write its results."""
    reason = unwritable(Path(folder))
    fix = f"set {key} to a folder that can be written" if reason else ""
    return Finding(key, f"{key} is {folder!r}: {reason or 'can be written'}", fix)


def check_temporary_files() -> Finding:
    """The folder of Ray's sockets and logs: its path has to be short, and its disk not full."""
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "")
    folder = Path(os.environ[variable] if variable else "/tmp")
    named = f"{variable}={folder}" if variable else str(folder)
    longest = folder.absolute() / f"ray/session_0000-00-00_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    excess, reason = len(os.fsencode(longest)) - SOCKET_BYTES, unwritable(folder)
    found = f"{named}: {reason}"
    if excess > 0:
        found = f"{named} is {excess} bytes too long: Ray's sockets lie below it, and a socket's path has at most {SOCKET_BYTES}"
    if excess > 0 or reason:
        return Finding("temporary files", found, "set RAY_TMPDIR to a folder of a short path that can be written, such as RAY_TMPDIR=/tmp")
    free = shutil.disk_usage(existing(folder)).free / 2**20
    fix = f"Ray needs {TEMPORARY_MIB} there: make room, or set RAY_TMPDIR to a folder on another disk" if free < TEMPORARY_MIB else ""
    return Finding("temporary files", f"{named}: {free:,.0f} MiB free", fix)


def check_head(address: str) -> Finding:
    """Whether a Ray head of this version answers at `address` and accepts our token."""
    import grpc
    import ray
    from ray._private import services
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray._private.gcs_utils import create_gcs_channel

    logging.getLogger("ray").setLevel(logging.ERROR)
    named = f"RAY_ADDRESS={address}" if joined_address() else "the Ray of this machine"
    if address == "auto":
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as ray.init does
    elif not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):\d+", address):
        return Finding("Ray", f"{named} is no address of a Ray cluster", ADDRESSES)
    try:
        where = services.canonicalize_bootstrap_address(address)  # as ray.init reads it
    except (ConnectionError, ValueError):
        where = None
    if where is None:
        return Finding("Ray", "no Ray runs here", "start a run or a head first (ray start --head), or set RAY_ADDRESS")
    token = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the token of the head"
    try:
        reply = create_gcs_channel(where).unary_unary(IS_ALIVE)(b"", timeout=CONNECT_S)
    except ray.exceptions.AuthenticationError:
        return Finding("Ray", f"{named}: RAY_AUTH_MODE=token is set, and no token is found", token)
    except grpc.RpcError as error:
        code, reason = error.code(), " ".join((error.details() or "").split()).rpartition("last error: ")[2][:160]
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return Finding("Ray", f"{named}: the cluster wants another token", token)
        if code is grpc.StatusCode.UNAVAILABLE:
            fix = "start a head there (ray start --head), correct RAY_ADDRESS, or unset it to start Ray with each run"
            return Finding("Ray", f"nothing answers at {named} ({reason})", fix)
        found = "a process listens there, but does not answer" if code is grpc.StatusCode.DEADLINE_EXCEEDED else "no Ray head"
        fix = f"{ADDRESSES}; not the port of Ray clients (10001) or of the dashboard (8265)"
        return Finding("Ray", f"{named}: {found} ({reason})", fix)
    version = re.search(rb"\d+\.\d+[\w.]*", reply)
    found = version[0].decode() if version else "unknown"
    fix = f"install the same Ray on both sides: {ray.__version__} is here" if found != ray.__version__ else ""
    return Finding("Ray", f"{named}: Ray {found} answers", fix)
