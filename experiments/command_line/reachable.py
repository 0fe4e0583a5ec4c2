"""Whether folders can be written, ports are free and servers can be reached. Each check takes seconds at most."""

import errno
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from experiments.config import RunConfigError
from retrieval_actors.folder_lock import command_of

CONNECT_S = 3.0  # for an answer from a server that is there


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))


def unwritable(folder: Path) -> str:
    """Why nothing can be written into `folder`, or into the nearest one above it that exists; empty: it can."""
    place = existing(folder)  # a file is written, as permissions do not show a full disk
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2**20))
            return ""
    except OSError as error:
        return f"{place} cannot be written ({os.strerror(error.errno or errno.EIO)})"


def held_port(host: str, port: int) -> socket.socket:
    """A socket that holds this port against all but Ray Serve, which shares it (SO_REUSEPORT). Raises RunConfigError that names the holder."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family) as probe:  # without SO_REUSEPORT: fails if any process listens
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        ours = socket.socket(family)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(address)
        return ours
    except socket.gaierror as error:
        raise RunConfigError(f"serve.host is {host!r}: {error.strerror}; expected an address of this machine, such as 127.0.0.1") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            fix = "end it, or set serve.port to another port"
            raise RunConfigError(f"serve.port={port} on {host} is taken by {holder_of(port)}; {fix}") from None
        raise RunConfigError(f"serve.host={host} serve.port={port}: {error.strerror}; choose a port that this user may use") from None


def holder_of(port: int) -> str:
    """Describes the process that listens on a port; for a process of Ray, the command that started Ray."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                above = (one for one in (process, *process.parents()) if one.pid > 1 and one.name() != "raylet")
                process = next((one for one in above if not command_of(one).startswith("ray::")), process)
                return f"process {process.pid} ({command_of(process)})"
    return "an unknown process: a service that is starting, or one of another user"
