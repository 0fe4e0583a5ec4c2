"""Settings of the service: where it listens, who may ask, how much at a time, how large it grows."""

from __future__ import annotations

import hashlib
import ipaddress
import os
from dataclasses import dataclass
from typing import Any

from experiments.config import RunConfigError

API_KEY_VARIABLE = "R1_ROUTER_API_KEY"


@dataclass
class ServeSettings:
    """Section `serve` of the command line."""

    host: str = "127.0.0.1"
    """Address to listen on. Any other than loopback needs an API key."""
    port: int = 8000
    api_key: str = ""
    """What clients have to send as `Authorization: Bearer KEY`; empty: the environment variable R1_ROUTER_API_KEY, or, on loopback, nobody asks."""
    require_api_key: bool = False
    """Ask for a key on loopback too. Always so on any other address."""
    model: str = ""
    """Name of the model, as clients say it; empty: the name of the run or policy folder."""
    replicas: int = 1
    """Router replicas that are always there; each holds the policy."""
    max_replicas: int = 0
    """Up to which Serve adds replicas under load; 0: as many as `replicas`."""
    gpus_per_replica: float = 0.0
    """GPUs that Ray sets aside for each; 0: CPU."""
    cpus_per_replica: float = 0.5
    """CPUs that Ray reserves for each."""
    slots: int = 32
    """Questions that one replica works on side by side (Serve's max_ongoing_requests)."""
    queue: int = 64
    """Questions that may wait for a slot; more are told to come back later (429)."""
    deadline_s: float = 120.0
    """Seconds that a question may take, waiting included; then the client gets a 504. A request may ask for less."""
    drain_s: float = 30.0
    """Seconds that questions under way get to end when the service is told to stop."""
    max_body_mb: int = 16
    """Larger requests are refused (413)."""
    max_megapixels: float = 16.0
    """Larger pictures are refused before they are decoded (413)."""
    request_log: str = ""
    """File that gets a line of JSON for each request; empty: standard error of the process that answers, which Ray keeps among its logs."""
    write_config: str = ""
    """Write the Serve configuration of this service into that file, for `serve deploy`, and start nothing."""

    def key(self) -> str:
        return self.api_key or os.environ.get(API_KEY_VARIABLE, "")

    @property
    def most_replicas(self) -> int:
        return max(self.replicas, self.max_replicas)


def check(settings: ServeSettings) -> None:
    """Raises RunConfigError, one line, for settings that cannot be used, or that would let anybody in."""
    rules = [
        (0 < settings.port < 65536, "port", settings.port, "1 to 65535"),
        (settings.replicas >= 1, "replicas", settings.replicas, "at least 1"),
        (settings.slots >= 1, "slots", settings.slots, "at least 1"),
        (settings.queue >= 0, "queue", settings.queue, "0 or more"),
        (settings.deadline_s > 0, "deadline_s", settings.deadline_s, "seconds above 0"),
        (settings.drain_s >= 0, "drain_s", settings.drain_s, "0 or more seconds"),
        (settings.max_body_mb >= 1, "max_body_mb", settings.max_body_mb, "at least 1"),
        (settings.max_megapixels > 0, "max_megapixels", settings.max_megapixels, "more than 0"),
    ]
    for holds, name, found, expected in rules:
        if not holds:
            raise RunConfigError(f"serve.{name} is {found!r}; expected {expected}")
    if not is_loopback(settings.host) and not settings.key():
        raise RunConfigError(
            f"serve.host={settings.host} lets others in: set serve.api_key or {API_KEY_VARIABLE}, which clients then have to send, "
            "or listen on 127.0.0.1"
        )
    if settings.require_api_key and not settings.key():
        raise RunConfigError(f"serve.require_api_key=true, and there is none: set {API_KEY_VARIABLE} or serve.api_key")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def key_digest(key: str) -> str:
    """What travels and is compared instead of the key itself; empty for no key."""
    return hashlib.sha256(key.encode()).hexdigest() if key else ""


def public(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what must not be written into a file."""
    return {name: value for name, value in settings.items() if name not in ("api_key", "write_config")}
