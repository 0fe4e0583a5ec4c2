"""`make size`: files and lines of Python by room. Exits with 1 if a room is over its budget."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("retrieval_actors", "rollout", "rewards", "learner", "experiments")
PRODUCT_LINES, PRODUCT_FILES = 26_930, 225
"""All five rooms without the benchmarks."""
BUDGETS = {
    "retrieval_actors": 3440,
    "rollout": 4940,
    "rewards": 1020,
    "learner": 3530,
    "experiments/worlds": 1240,
    "experiments/published": 640,
    "experiments/datasets": 1100,
    "experiments/run": 1230,
    "experiments/evaluation": 1890,
    "experiments/report": 930,
    "experiments/tracking": 1310,
    "experiments/cluster": 1210,
    "experiments/serving": 1750,
    "experiments/studies": 580,
    "experiments/benchmarks": 3070,
    "experiments": 17080,
}
"""Lines at most, of a folder and all below it."""


def main() -> int:
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    product = [path for path in counts if "benchmarks" not in path.parts]
    rows = [
        (name, len(paths), sum(counts[path] for path in paths), most)
        for name, most in BUDGETS.items()
        for paths in [[path for path in counts if path.is_relative_to(ROOT / name)]]
    ]
    rows.append(("product", len(product), sum(counts[path] for path in product), PRODUCT_LINES))
    print(f"{'room':<24}{'files':>7}{'lines':>8}{'at most':>9}")
    for name, files, lines, most in rows:
        print(f"{name:<24}{files:>7}{lines:>8}{most:>9}{'  over' if lines > most else ''}")
    if len(product) > PRODUCT_FILES:
        print(f"the product has {len(product)} files; at most {PRODUCT_FILES}")
    return int(len(product) > PRODUCT_FILES or any(lines > most for _, _, lines, most in rows))


if __name__ == "__main__":
    sys.exit(main())
