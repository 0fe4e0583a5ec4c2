"""TRL's GRPOTrainer as a contender of `bench peers`. It imports nothing that only our side needs: its memory is compared."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from experiments.benchmarks.peer_process import Once, Result, Work, reward_of
from learner.config import LearnerConfig

NAMES = {"loss": "loss", "grad_norm": "norm"}


class Clock(TrainerCallback):
    """Times a step from its beginning to the end of the optimizer's."""

    def __init__(self) -> None:
        self.found: Result = {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.found["seconds"] = time.perf_counter() - self._began

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.found |= {NAMES[name]: float(value) for name, value in logs.items() if name in NAMES}


def trl_step(work: Work, whole: bool) -> Once:
    """One step. `whole`: it generates with `generate`; else it is given the responses of `work`."""
    tokenizer, ours, clock = AutoTokenizer.from_pretrained(work.policy), LearnerConfig(), Clock()

    def given(prompts: list[str], trainer: Any) -> dict[str, Any]:
        waiting = {prompt: list(group) for prompt, group in zip(work.prompts, work.responses, strict=True)}
        ids = dict(zip(work.prompts, work.ids, strict=True))
        found = [(ids[prompt], waiting[prompt].pop(0)) for prompt in prompts]
        return {"prompt_ids": [prompt for prompt, _ in found], "completion_ids": [response for _, response in found], "logprobs": None}

    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(), report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1, max_steps=1, use_cpu=True,
        bf16=False, gradient_checkpointing=False, num_generations=work.siblings, per_device_train_batch_size=work.siblings,
        gradient_accumulation_steps=len(work.prompts), max_completion_length=work.new_tokens,
        generation_kwargs={"min_new_tokens": work.new_tokens}, loss_type="dapo", scale_rewards="none", beta=0.0, epsilon=ours.clip_low,
        learning_rate=work.lr, lr_scheduler_type="constant", adam_beta1=ours.betas[0], adam_beta2=ours.betas[1],
        max_grad_norm=ours.max_grad_norm,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work.policy, dtype=torch.float32),
        reward_funcs=[lambda completions, **_: [reward_of(text) for text in completions]],
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in work.prompts]),
        processing_class=tokenizer,
        callbacks=[clock],
        rollout_func=None if whole else given,
    )

    def once() -> Result:
        trainer.train()
        return dict(clock.found)

    return once
