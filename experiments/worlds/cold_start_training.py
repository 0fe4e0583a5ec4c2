"""Training of the cold start: supervised learning on demonstrations, from nothing to where reinforcement learning starts. The matrices of
the decoder layers are trained by Muon, everything else by AdamW; only response tokens carry loss."""

import itertools
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.command_line.terminal import Console
from experiments.worlds.teacher import Demonstration
from experiments.worlds.tiny_policy import tiny_policy, train_tokenizer
from rollout.bfloat16 import multiplies_in_bfloat16
from rollout.policies import Policy, load_policy
from rollout.records import Image


@dataclass
class ColdStartConfig:
    out: str = "runs/cold_start"
    """Folder of the policy, its curve (`curve.jsonl`) and its model card."""
    start: str = ""
    """Policy to continue from; empty: a new one."""
    blind: bool = True
    """The teacher names a knowledge base at random; false: the right one."""
    lifelike: bool = True
    """The teacher searches with the embedders of a run, so it also finds similar, wrong passages; false: by shared words, without embedding."""
    recorded: str = ""
    """Configuration of a run over a step data set (`offline_steps.yaml`): learn the gold of its training turns, without the teacher."""
    data: str = ""
    """Configuration of a run (`pretrained.yaml`): the teacher answers its training questions over its knowledge bases, for the policy `start`.
    Of a relay (`relay.yaml`): the relay's teacher, in worlds of its own, for a fresh policy or `start`; it is never blind."""
    minutes: float = 60.0
    """Minutes of training after the first batch is ready (embedding the first atlas takes a minute). At the end the learning rate is zero."""
    tokens: int = 0
    """Tokens of prompts and responses after which training ends, if the minutes are not over before; 0: no limit."""
    muon: bool = True
    """Muon for the matrices of the layers; false: AdamW for everything, which changes a trained policy less."""
    lr: float = 2e-3
    warmup_steps: int = 50
    """Steps in which the learning rate rises."""
    decay: float = 0.6
    """Last fraction of the minutes or tokens, in which the learning rate falls linearly to zero; 0: constant."""
    freeze_embeddings: bool = False
    """Keep the embeddings, and with them the head where both are the same: most words of a trained policy do not occur here."""
    tokens_per_batch: int = 4096
    longest: int = 4096
    """Tokens of a demonstration, at most; longer ones are left out."""
    hidden: int = 128
    layers: int = 4
    seed: int = 0
    threads: int = 1
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the matrix products (weights are float32); `auto`: bfloat16 where this CPU multiplies in it (2.8 times as fast, SmolLM2-135M)."""
    vocabulary: int = 1024
    """Size of a fresh policy's tokenizer, at most."""
    log_every: int = 100
    """Steps between two points of the curve."""
    save_every: int = 500
    """Steps between two times that the policy is saved; one that was stopped continues with `start` = `out` and the minutes that are left."""


@dataclass(frozen=True)
class Example:
    prompt: np.ndarray
    response: np.ndarray
    image: Image | None
    kind: str  # Kind of turn; `look` for a plan turn that sees a picture

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def encode(policy: Policy, turn: Demonstration) -> Example:
    response = policy.tokenizer(turn.response, add_special_tokens=False)["input_ids"]
    kind = "look" if turn.kind == "plan" and turn.image else turn.kind
    return Example(policy.encode(turn.message, turn.image), np.array([*response, policy.end_token_id], np.int32), turn.image, kind)


def batches(policy: Policy, config: ColdStartConfig, turns: Iterator[Demonstration], pool: int = 1500) -> Iterator[list[Example]]:
    """Examples of similar length together, at most `tokens_per_batch` with padding; the order of the batches is random."""
    rng = random.Random(config.seed)
    while True:
        encoded = (encode(policy, turn) for turn in itertools.islice(turns, pool))
        rows = sorted((row for row in encoded if len(row) <= config.longest), key=len)
        cut: list[list[Example]] = [[]]
        for row in rows:
            if cut[-1] and len(row) * (len(cut[-1]) + 1) > config.tokens_per_batch:
                cut.append([])
            cut[-1].append(row)
        rng.shuffle(cut)
        yield from cut


def response_logits(policy: Policy, rows: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (n, vocabulary), targets (n,) and row numbers (n,) of all response tokens, by the library's own forward pass over padded rows."""
    hidden = policy.padded_hidden([(np.concatenate([row.prompt, row.response]), row.image) for row in rows])
    predicts = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    for i, row in enumerate(rows):
        predicts[i, len(row.prompt) - 1 : len(row) - 1] = True
    targets = torch.from_numpy(np.concatenate([row.response for row in rows]).astype(np.int64))
    return policy.lm_head(hidden[predicts]), targets, predicts.nonzero()[:, 0]


def optimizers(policy: Policy, lr: float, muon: bool) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, patches, norms and biases."""
    inside = {p for module in (policy.text_model.layers, *policy.vision.values()) for p in module.parameters() if p.ndim == 2}
    matrices = [p for p in policy.model.parameters() if muon and p in inside]
    rest = [p for p in policy.model.parameters() if not (muon and p in inside)]
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [adam, torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")] if muon else [adam]


def fresh_policy(config: ColdStartConfig, texts: Iterable[str]) -> Policy:
    return tiny_policy(train_tokenizer(texts, config.vocabulary), hidden=config.hidden, layers=config.layers, seed=config.seed)


def train(config: ColdStartConfig, turns: Iterator[Demonstration], texts: Iterable[str], console: Console) -> Policy:
    """Learns from the endless stream `turns` until the minutes or tokens are over. The policy is saved every `save_every` steps and at the end.
    `curve.jsonl`: steps, tokens, turns and tokens a second so far; since the last point, the mean loss and, by kind of turn, the share with every
    token right."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    policy = load_policy(config.start) if config.start else fresh_policy(config, texts)
    policy.model.get_input_embeddings().weight.requires_grad_(not config.freeze_embeddings)
    opts = optimizers(policy, config.lr, config.muon)
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and multiplies_in_bfloat16())
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("cold start"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[line]}"))
    stream = batches(policy, config, turns)
    first = next(stream)
    seen: Counter[str] = Counter(step=0, tokens=0, turns=0)
    window: dict[str, list[float]] = defaultdict(list)
    began = time.time()
    with Progress(*columns, console=console) as progress, (out / "curve.jsonl").open("w") as curve:
        task = progress.add_task("", total=1.0, line="")
        for rows in itertools.chain([first], stream):
            fraction = max((time.time() - began) / (config.minutes * 60), seen["tokens"] / config.tokens if config.tokens else 0)
            if fraction >= 1:
                break
            step = seen["step"] + 1
            falling = min(1.0, (1 - fraction) / config.decay) if config.decay else 1.0
            for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in opts):
                group["lr"] = config.lr * min(1.0, step / config.warmup_steps) * falling
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits, targets, owner = response_logits(policy, rows)
            loss = F.cross_entropy(logits.float(), targets, reduction="none").mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
            for optimizer in opts:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            seen.update(step=1, tokens=sum(map(len, rows)), turns=len(rows))
            window["loss"].append(loss.item())
            right = torch.ones(len(rows)).scatter_reduce_(0, owner, (logits.argmax(-1) == targets).float(), "amin")
            for row, value in zip(rows, right.tolist(), strict=True):
                window[f"exact_{row.kind}"].append(value)
            if step % config.log_every == 0:
                means = {name: round(float(np.mean(values)), 4) for name, values in sorted(window.items())}
                window.clear()
                seconds = time.time() - began
                speed = {"seconds": round(seconds), "tokens_per_second": round(seen["tokens"] / seconds, 1)}
                print(json.dumps({**seen, **speed, **means}), file=curve, flush=True)
                progress.update(task, completed=fraction, line="  ".join(f"{name} {value}" for name, value in means.items()))
            if step % config.save_every == 0:
                policy.save(out)
    policy.save(out)
    return policy
