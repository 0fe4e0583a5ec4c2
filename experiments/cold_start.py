"""`python -m experiments.cold_start [key=value ...]`: train the tiny policy from nothing to where reinforcement learning starts.

Supervised learning on the teacher's turns over an endless stream of fresh training worlds, or on the turns of a step data set (`recorded`). The
matrices of the decoder layers are trained by Muon, everything else by AdamW; only response tokens carry loss.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.command_settings import read_settings
from experiments.config import RunConfigError
from experiments.demonstration import Demonstration
from experiments.recorded_demonstrations import demonstration, recorded_demonstrations, training_turns
from experiments.teacher import demonstrations, lifelike_demonstrations
from experiments.tiny_policy import tiny_policy, train_tokenizer
from rollout.policy import Policy
from rollout.records import Image

WARMUP_STEPS, SAVE_EVERY = 50, 500


@dataclass
class ColdStartConfig:
    out: str = "runs/cold_start"
    """Folder of the policy, its curve (`curve.jsonl`) and its model card."""
    start: str = ""
    """Policy to go on from; empty: a fresh one."""
    blind: bool = True
    """The teacher names a knowledge base at random; false: the right one."""
    lifelike: bool = True
    """The teacher finds what a run would find, neighbours that are easily mistaken included; false: by shared words, which starts at once."""
    recorded: str = ""
    """Configuration of a run over a step data set (`offline_steps.yaml`): the gold of its training turns is learned, instead of the teacher's."""
    minutes: float = 60.0
    """Of training, from the first batch on: embedding the first atlas takes a minute before. The learning rate decays to zero by then."""
    muon: bool = True
    """Muon for the matrices of the layers; false: AdamW for everything, which changes what is there only a little."""
    lr: float = 2e-3
    decay: float = 0.6
    """Last fraction of the time in which the learning rate falls linearly to zero; 0: it never falls."""
    tokens_per_batch: int = 4096
    longest: int = 4096
    """Tokens of a demonstration, at most; longer ones are left out."""
    hidden: int = 128
    layers: int = 4
    seed: int = 0
    threads: int = 1
    vocabulary: int = 1024
    """Size of a fresh policy's tokenizer, at most."""
    log_every: int = 100
    """Steps between two points of the curve."""


@dataclass(frozen=True)
class Row:
    """One demonstration in tokens."""

    prompt: np.ndarray
    response: np.ndarray
    image: Image | None
    kind: str
    """Kind of turn; `look` for a plan turn that sees a picture."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def encode(policy: Policy, turn: Demonstration) -> Row:
    response = policy.tokenizer(turn.response, add_special_tokens=False)["input_ids"]
    kind = "look" if turn.kind == "plan" and turn.image else turn.kind
    return Row(policy.encode(turn.message, turn.image), np.array([*response, policy.end_token_id], np.int32), turn.image, kind)


def shown(config: ColdStartConfig) -> Iterator[Demonstration]:
    """What is imitated, without end."""
    if config.recorded:
        return recorded_demonstrations(training_turns(config.recorded), config.seed)
    return (lifelike_demonstrations if config.lifelike else demonstrations)(config.seed + 1, blind=config.blind)


def batches(policy: Policy, config: ColdStartConfig, pool: int = 1500) -> Iterator[list[Row]]:
    """Rows of like length side by side, at most `tokens_per_batch` with padding; the order of the batches is random."""
    rng = random.Random(config.seed)
    stream = shown(config)
    while True:
        encoded = (encode(policy, turn) for turn in itertools.islice(stream, pool))
        rows = sorted((row for row in encoded if len(row) <= config.longest), key=len)
        cut: list[list[Row]] = [[]]
        for row in rows:
            if cut[-1] and len(row) * (len(cut[-1]) + 1) > config.tokens_per_batch:
                cut.append([])
            cut[-1].append(row)
        rng.shuffle(cut)
        yield from cut


def response_logits(policy: Policy, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (n, vocabulary), targets (n,) and row numbers (n,) of all response tokens. Every distinct picture is encoded once."""
    length = max(map(len, rows))
    ids = np.full((len(rows), length), policy.pad_token_id, np.int64)
    positions = np.zeros((3, len(rows), length), np.int64)
    predicts = np.zeros((len(rows), length), bool)
    images: dict[str, Image] = {row.image.key: row.image for row in rows if row.image}
    for i, row in enumerate(rows):
        n = len(row.prompt)
        ids[i, : len(row)] = np.concatenate([row.prompt, row.response])
        positions[:, i, :n] = policy.positions(row.prompt, policy.patches(row.image)[1] if row.image else None)
        positions[:, i, n:] = positions[:, i, :n].max() + 1 + np.arange(length - n)
        predicts[i, n - 1 : len(row) - 1] = True
    core = policy.model.model
    tokens = torch.from_numpy(ids)
    embedded = core.language_model.embed_tokens(tokens)
    if images:
        pixels, grids = policy.pixels(list(images.values()))
        features = dict(zip(images, core.get_image_features(pixels, grids).pooler_output, strict=True))
        placed = torch.cat([features[row.image.key] for row in rows if row.image])
        embedded = embedded.masked_scatter((tokens == policy.image_token_id)[..., None], placed)
    hidden = core.language_model(inputs_embeds=embedded, position_ids=torch.from_numpy(positions), use_cache=False).last_hidden_state
    where = torch.from_numpy(predicts)
    return policy.model.lm_head(hidden[where]), tokens.roll(-1, 1)[where], where.nonzero()[:, 0]


def optimizers(policy: Policy, lr: float, muon: bool) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, patches, norms and biases."""
    inside = ("language_model.layers", "visual.blocks", "visual.merger")
    matrices = {name: p for name, p in policy.model.named_parameters() if p.ndim == 2 and any(part in name for part in inside)}
    if not muon:
        return [torch.optim.AdamW(policy.model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]
    rest = [p for name, p in policy.model.named_parameters() if name not in matrices]
    return [
        torch.optim.Muon(list(matrices.values()), lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def fresh_policy(config: ColdStartConfig) -> Policy:
    if config.recorded:  # its prompts are long, and mostly system
        texts = [turn.system + turn.user + demonstration(turn).response for turn in training_turns(config.recorded)]
    else:
        texts = [turn.message.user + turn.response for turn in itertools.islice(demonstrations(config.seed), 6000)]
    tokenizer = train_tokenizer(texts, config.vocabulary)
    return tiny_policy(tokenizer, hidden=config.hidden, layers=config.layers, seed=config.seed)


class Curve:
    """`curve.jsonl`: how much has been seen, and since the last point the mean loss and the share of turns right to the last token."""

    def __init__(self, path: Path):
        self.file, self.started = path.open("w"), time.time()
        self.seen = {"step": 0, "tokens": 0, "turns": 0}
        self.window: dict[str, list[float]] = {}

    @property
    def seconds(self) -> float:
        return time.time() - self.started

    @torch.no_grad()
    def add(self, rows: list[Row], losses: torch.Tensor, right: torch.Tensor, owner: torch.Tensor) -> None:
        """One batch: `right` and `owner` say of each response token whether it was predicted, and which row it is of."""
        for key, more in (("step", 1), ("tokens", sum(map(len, rows))), ("turns", len(rows))):
            self.seen[key] += more
        exact = torch.ones(len(rows)).scatter_reduce_(0, owner, right.float(), "amin")
        for row, value in zip(rows, exact.tolist(), strict=True):
            self.window.setdefault(f"exact_{row.kind}", []).append(value)
        self.window.setdefault("loss", []).append(losses.mean().item())

    def point(self) -> str:
        """Write a point; returns it as a line to read."""
        means = {name: round(float(np.mean(values)), 4) for name, values in sorted(self.window.items())}
        self.window.clear()
        self.file.write(json.dumps({**self.seen, "seconds": round(self.seconds), **means}) + "\n")
        self.file.flush()
        return "  ".join(f"{name} {value}" for name, value in means.items()) + f"  {self.seen['tokens'] / self.seconds:,.0f} tokens/s"


def train(config: ColdStartConfig, console: Console) -> Policy:
    """Until the minutes are over; the policy is saved every 500 steps and at the end."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    policy = Policy.load(config.start) if config.start else fresh_policy(config)
    opts = optimizers(policy, config.lr, config.muon)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("cold start"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[line]}"))
    stream = batches(policy, config)
    first = next(stream)
    curve = Curve(out / "curve.jsonl")
    with Progress(*columns, console=console) as progress, curve.file:
        task = progress.add_task("", total=config.minutes * 60, line="")
        for rows in itertools.chain([first], stream):
            fraction = curve.seconds / (config.minutes * 60)
            if fraction >= 1:
                break
            step = curve.seen["step"] + 1
            falling = min(1.0, (1 - fraction) / config.decay) if config.decay else 1.0
            set_lr(opts, config.lr * min(1.0, step / WARMUP_STEPS) * falling)
            logits, targets, owner = response_logits(policy, rows)
            losses = F.cross_entropy(logits.float(), targets, reduction="none")
            losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
            for optimizer in opts:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            curve.add(rows, losses, logits.argmax(-1) == targets, owner)
            if step % config.log_every == 0:
                progress.update(task, completed=curve.seconds, line=curve.point())
            if step % SAVE_EVERY == 0:
                policy.save(out)
    policy.save(out)
    return policy


def set_lr(opts: list[torch.optim.Optimizer], lr: float) -> None:
    for optimizer in opts:
        for group in optimizer.param_groups:
            group["lr"] = lr


def main(arguments: list[str]) -> int:
    console = Console()
    try:
        config = read_settings(ColdStartConfig, arguments)
    except RunConfigError as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        return 2
    train(config, console)
    console.print(f"policy: {config.out}  (train.policy={config.out} starts reinforcement learning from it)", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
