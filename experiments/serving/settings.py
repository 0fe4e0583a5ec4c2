"""Settings of the service: address, API key, replicas, limits."""

from __future__ import annotations

import hashlib
import ipaddress
import os
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

API_KEY_VARIABLE = "R1_ROUTER_API_KEY"


@dataclass
class ServeSettings:
    """Section `serve` of the command line."""

    host: str = "127.0.0.1"
    """Address to listen on. Any other than loopback needs an API key."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """TCP port."""
    api_key: str = ""
    """Clients send it as `Authorization: Bearer KEY`; empty: the environment variable R1_ROUTER_API_KEY, or, on loopback, no key."""
    model: str = ""
    """Name of the model in the API; empty: the name of the run or policy folder."""
    replicas: PositiveInt = 1
    """Router replicas that always run; each holds the policy."""
    max_replicas: NonNegativeInt = 0
    """Most replicas that Serve starts under load; 0: as many as `replicas`."""
    gpus_per_replica: NonNegativeFloat = 0.0
    """GPUs that Ray reserves for each; 0: CPU."""
    slots: PositiveInt = 32
    """Questions that one replica answers at the same time (Serve's max_ongoing_requests)."""
    queue: NonNegativeInt = 64
    """Questions that may wait for a slot; more are refused (429)."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Answers with less confidence become `unknown`, with a reason; a policy that was never calibrated has no confidence, and always answers."""
    deadline_s: PositiveFloat = 120.0
    """Seconds that a question may take, waiting included; then it is refused (504). A request may ask for less."""
    drain_s: NonNegativeFloat = 30.0
    """Seconds that running questions get to finish when the service is stopped."""
    max_body_mb: PositiveInt = 16
    """Larger requests are refused (413)."""
    max_megapixels: PositiveFloat = 16.0
    """Larger pictures are refused before they are decoded (413)."""
    trace: bool = False
    """Each question and its episode becomes an MLflow trace, in `tracking.uri` and `tracking.experiment`; these hold the questions."""
    request_log: str = ""
    """File that gets a line of JSON for each request; empty: standard error of the endpoint, which Ray keeps among its logs."""

    def key(self) -> str:
        return (self.api_key or os.environ.get(API_KEY_VARIABLE, "")).strip()

    @property
    def most_replicas(self) -> int:
        return max(self.replicas, self.max_replicas)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def key_digest(key: str) -> str:
    """SHA-256 of the key in hex, stored and compared instead of the key; empty for no key."""
    return hashlib.sha256(key.encode()).hexdigest() if key else ""
