"""`make resolve`: do all extras resolve with constraints.txt, for each Python? Half a minute; downloads metadata and no wheels.

Exits with 1 and uv's explanation, which names the requirements that are in conflict.
"""

import ast
import itertools
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS, EXTRAS = ("3.11", "3.12", "3.13"), ("cpu", "gpu", "gpu,vllm")
NO_WHEELS = ("3.13", "gpu,vllm")  # vLLM 0.32 needs flashinfer-python, whose cuda-python has none for Python 3.13


def settings_of_pip() -> dict[str, str]:
    """What pip.conf and the environment set for pip, which uv does not read; the environment wins."""
    lines = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout.splitlines()
    pairs = [line.partition("=") for line in sorted(lines, reverse=True)]  # `:env:` comes last
    return {key.rpartition(".")[2]: ast.literal_eval(value) for key, _, value in pairs}


def main() -> int:
    pip, environment = settings_of_pip(), dict(os.environ)
    if "cert" in pip:
        environment.setdefault("SSL_CERT_FILE", pip["cert"])
    common = ["pyproject.toml", "--constraint=constraints.txt", "--no-python-downloads", "--quiet"]
    common += [f"--default-index={pip['index-url']}"] if "index-url" in pip else []

    def resolved(python: str, extras: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "uv", "pip", "compile", *common, f"--python-version={python}", f"--cache-dir={cache}"]
        command += [f"--extra={name}" for name in (*extras.split(","), "dev")]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    failed, rows = False, [row for row in itertools.product(PYTHONS, EXTRAS) if row != NO_WHEELS]
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(max_workers=3) as pool:
        for (python, extras), done in zip(rows, pool.map(resolved, *zip(*rows, strict=True)), strict=True):
            result = "does not resolve" if done.returncode else f"{done.stdout.count('==')} packages"
            print(f"Python {python}  .[{extras},dev]  {result}", done.stderr.rstrip(), sep="\n" if done.stderr else "", flush=True)
            failed |= done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
