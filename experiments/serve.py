"""`r1-router serve [RUN_OR_POLICY] [CONFIG.yaml] [key=value ...]`: serve a policy over HTTP: OpenAI's API, MCP, a page that shows each step.

RUN_OR_POLICY is a run folder, whose configuration, best policy and knowledge bases are used, or a policy folder; without it, the newest run, or the
policy that comes with the repository.

    r1-router serve runs/laptop serve.port=8000
"""

import os
import signal
from contextlib import suppress
from dataclasses import replace

from rich.text import Text

from experiments.cluster.ray_session import start_ray
from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.serving.application import prepare, serving


@command
def main(arguments: list[str]) -> int:
    console = Console()
    with console.status("knowledge bases") as status:
        spec, config = prepare(arguments, lambda what, done, total: status.update(Text(f"{what} {done}/{total}")))
    # Ray starts a process for every CPU that it counts; the service needs few of them.
    config = replace(config, ray=replace(config.ray, num_cpus=config.ray.num_cpus or max(2, os.cpu_count() or 2)))
    with (
        start_ray(config),
        console.status("starting") as now,
        serving(spec, lambda line: now.update(Text(line))) as address,
    ):
        now.stop()
        with suppress(KeyboardInterrupt):  # SIGTERM raises it, too
            addresses = f"{address}/ in a browser, {address}/v1 for OpenAI's clients, {address}/mcp for agents"
            console.print(f"ready: {addresses}; Ctrl-C ends it", soft_wrap=True)
            while True:
                signal.pause()
    return 0
