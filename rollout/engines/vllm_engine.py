"""vLLM as the engine, for GPUs: the same interface over its `AsyncLLM`, which runs in an event loop of a background thread.

Written against the API that vLLM 0.32 documents (`AsyncLLM`, `pause_generation`, weight transfer through CUDA IPC) and never run: there was no
GPU at hand. Two things are not as in the transformers engine: the ids of a seed depend on the batch, because vLLM's kernels do, and
`sampled_logprobs` are NaN unless greedy, because vLLM hands out one kind of log-probability and the learner's is the one that is needed.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import reduce_tensor

from rollout.engines.base import Finished, Request, Response
from rollout.engines.stats import EngineStats
from rollout.policy import Policy, decode
from rollout.weights import refuse_other_names

NEVER = -100.0
"""Logit bias of banned tokens: the lowest that vLLM takes."""
PATIENCE_S = 1800.0
"""Bound on what is asked of vLLM; loading a large model and capturing its graphs takes minutes."""


class VllmEngine:
    """`policy` makes the token ids and stays on the CPU; vLLM loads the weights of the same folder or hub name a second time."""

    def __init__(self, policy: Policy, slots: int, memory: float = 0.6):
        """`slots` sequences at a time; `memory` is the share of the GPU that vLLM may use, beside a learner on the same one."""
        try:
            import vllm
            from vllm.config import WeightTransferConfig
        except ImportError:
            raise RuntimeError(
                "rollout.engine=vllm needs its package: pip install 'r1-router-ray[vllm]', or set rollout.engine=transformers"
            ) from None
        os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # handles of tensors, between this process and vLLM's own
        self._vllm, self.policy = vllm, policy
        self.policy_version = -1
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="vllm").start()
        options = vllm.AsyncEngineArgs(
            model=policy.model.name_or_path,
            dtype=str(policy.model.dtype).removeprefix("torch."),
            max_num_seqs=slots,
            enable_prefix_caching=True,
            limit_mm_per_prompt={"image": 1},
            logprobs_mode="raw_logprobs",
            gpu_memory_utilization=memory,
            weight_transfer_config=WeightTransferConfig(backend="ipc"),
        )
        self._engine = self._call(self._start(options))
        self._done: queue.SimpleQueue[Finished | BaseException] = queue.SimpleQueue()
        self._context: int = policy.model.config.get_text_config().max_position_embeddings
        self._resumed = asyncio.Event()
        self._loop.call_soon_threadsafe(self._resumed.set)
        self._given_up: set[int] = set()
        self._names: dict[int, list[str]] = {}
        self._tickets = self._unfinished = 0
        self._sampled = self._prefilled = 0
        self._waited_s = 0.0

    async def _start(self, options: Any) -> Any:
        return self._vllm.AsyncLLMEngine.from_engine_args(options)

    def _call(self, work: Any) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)
        except TimeoutError:
            raise RuntimeError(f"waited {PATIENCE_S:g} s for vLLM to end `{work.__name__}`: its own log says what it is doing") from None

    @property
    def stats(self) -> EngineStats:
        """vLLM keeps its own of slots and memory; seconds of prefill and decode are not told apart here."""
        return EngineStats(sampled_tokens=self._sampled, prefilled_tokens=self._prefilled, decode_s=self._waited_s)

    @property
    def unfinished(self) -> int:
        return self._unfinished

    def submit(self, request: Request) -> int:
        prompt, room = len(request.prompt_ids), request.sampling.max_new_tokens
        if prompt + room > self._context:
            raise ValueError(
                f"a prompt of {prompt} tokens and a response of up to {room} do not fit the policy's context of {self._context}; "
                "lower rollout.passages, rollout.max_passage_chars or rollout.max_new_tokens"
            )
        self._tickets += 1
        self._unfinished += request.siblings
        self._prefilled += prompt
        self._names[self._tickets] = [f"{self._tickets}-{sibling}" for sibling in range(request.siblings)]
        for sibling in range(request.siblings):
            asyncio.run_coroutine_threadsafe(self._respond(self._tickets, request, sibling), self._loop)
        return self._tickets

    def collect(self, wait_s: float = 0.0) -> list[Finished]:
        began = time.perf_counter()
        found: list[Finished] = []
        while self._unfinished and (wait_s or not self._done.empty()):
            try:
                one = self._done.get(timeout=wait_s) if not found else self._done.get_nowait()
            except queue.Empty:
                break
            if isinstance(one, BaseException):
                raise one
            found.append(one)
            self._unfinished -= 1
            self._names[one.ticket].pop()
            if not self._names[one.ticket]:
                del self._names[one.ticket]
                self._given_up.discard(one.ticket)
            self._sampled += len(one.response.ids)
        self._waited_s += time.perf_counter() - began
        return found

    def abort(self, tickets: Iterable[int]) -> None:
        self._given_up |= set(tickets)
        self._call(self._engine.abort([name for ticket in tickets for name in self._names.get(ticket, ())]))

    def pause(self) -> None:
        self._call(self._engine.pause_generation(mode="keep", clear_cache=False))

    def resume(self) -> None:
        self._call(self._engine.resume_generation())

    def update_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        refuse_other_names(tensors, dict(self.policy.model.named_parameters()))
        self._call(self._update(version, {name: tensor.detach().cuda().contiguous() for name, tensor in tensors.items()}))

    async def _update(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """What is under way is cut off and begins again from its prompt, see `_respond`."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self._resumed.clear()
        await self._engine.pause_generation(mode="abort", clear_cache=True)
        device = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        described = {
            "names": list(tensors),
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
            "shapes": [list(tensor.shape) for tensor in tensors.values()],
            "ipc_handles": [{device: reduce_tensor(tensor)} for tensor in tensors.values()],
        }
        await self._engine.start_weight_update()
        await self._engine.update_weights(WeightTransferUpdateRequest(update_info=described))
        await self._engine.finish_weight_update(weight_version=str(version))
        await self._engine.resume_generation()
        self.policy_version = version
        self._resumed.set()

    async def _respond(self, ticket: int, request: Request, sibling: int) -> None:
        try:
            while True:
                await asyncio.wait_for(self._resumed.wait(), PATIENCE_S)
                version = self.policy_version
                output = await self._generate(self._names[ticket][sibling], request, sibling)
                if output.finish_reason != "abort" or ticket in self._given_up:
                    break  # otherwise an update cut it off: again, with the new weights
            ids = np.array(output.token_ids, np.int32)
            logprobs = np.array([found[token].logprob for token, found in zip(output.token_ids, output.logprobs, strict=True)], np.float32)
            drawn = np.zeros_like(logprobs) if request.sampling.temperature == 0 else np.full_like(logprobs, np.nan)
            self._done.put(Finished(ticket, sibling, Response(ids, logprobs, drawn, output.finish_reason, version)))
        except Exception as error:
            self._done.put(error)

    async def _generate(self, name: str, request: Request, sibling: int) -> Any:
        sampling = request.sampling
        drawn = self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            max_tokens=sampling.max_new_tokens,
            seed=int(np.random.SeedSequence([request.seed, sibling]).generate_state(1, np.uint64)[0] >> np.uint64(1)),
            logprobs=0,
            logit_bias=dict.fromkeys(self.policy.banned_token_ids, NEVER),
            stop_token_ids=[self.policy.end_token_id],
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        ids = request.prompt_ids
        if request.image:  # vLLM puts in the placeholders of a picture itself, for one that marks its place
            pads = ids == self.policy.image_token_id
            ids = ids[~(pads & np.roll(pads, 1))]
        prompt: dict[str, Any] = {"prompt_token_ids": ids.tolist()}
        if request.image:
            prompt["multi_modal_data"] = {"image": decode(request.image.data)}
        *_, last = [output async for output in self._engine.generate(prompt, drawn, request_id=name)]
        if last.prompt_token_ids != request.prompt_ids.tolist():
            raise ValueError(
                f"vLLM reads a prompt of {len(last.prompt_token_ids)} tokens where the policy made {len(request.prompt_ids)}: "
                "the image processors differ; set the picture sizes in the policy's preprocessor_config.json"
            )
        return last.outputs[0]
