"""vLLM as the engine, for GPUs: its `LLM` in this process, one step of its scheduler at a time.

Written against the documented API of vLLM 0.32 and never run. Unlike the transformers engine, responses to one seed depend on the batch, and
log-probs are always at temperature 1 over the whole vocabulary, so training with any other sampling is refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import reduce_tensor

from retrieval_actors.pictures import decode
from rollout.engines.base import EngineStats, Request, Response
from rollout.policies import Policy
from rollout.weight_buckets import refuse_other_names

STEPS = 16  # most scheduler steps of one `collect`, so that its caller can submit
NEVER = -100.0  # logit bias of banned tokens: the lowest that vLLM accepts
MEMORY = 0.6  # share of the GPU that vLLM may use


class VllmEngine:
    """`policy` encodes and decodes, and stays on the CPU; vLLM loads the weights a second time. `slots`: responses at a time."""

    def __init__(self, policy: Policy, slots: int):
        try:
            import vllm
            from vllm.config import WeightTransferConfig
        except ImportError:
            missing = "rollout.engine=vllm needs its package: pip install 'r1-router-ray[vllm]', or set rollout.engine=transformers"
            raise RuntimeError(missing) from None
        os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # for handles of tensors
        self._vllm, self.policy = vllm, policy
        self.policy_version, self.stats = -1, EngineStats()  # prefill and decode are one here
        self._llm = vllm.LLM(
            model=policy.model.name_or_path,
            dtype=str(policy.model.dtype).removeprefix("torch."),
            max_num_seqs=slots,
            enable_prefix_caching=True,
            limit_mm_per_prompt={"image": 1},
            logprobs_mode="raw_logprobs",
            gpu_memory_utilization=MEMORY,
            weight_transfer_config=WeightTransferConfig(backend="ipc"),
        )
        self._engine = self._llm.llm_engine
        self._context: int = policy.model.config.get_text_config().max_position_embeddings
        self._under_way: dict[str, tuple[int, int, Request]] = {}  # vLLM's name of a response -> (ticket, sibling, request)
        self._tickets = 0

    @property
    def unfinished(self) -> int:
        return len(self._under_way)

    def submit(self, request: Request) -> int:
        request.check_context(self._context)
        self._tickets += 1
        for sibling in range(request.siblings):
            self._begin(self._tickets, sibling, request)
        return self._tickets

    def collect(self, wait_s: float = 0.0) -> list[Response]:
        began = time.perf_counter()
        found: list[Response] = []
        for _ in range(STEPS):
            if found or not self._under_way:
                break
            found = [self._finished(output) for output in self._engine.step() if output.finished and output.request_id in self._under_way]
        self.stats.decode_s += time.perf_counter() - began
        return found

    def abort(self, tickets: Iterable[int]) -> None:
        dropped = set(tickets)
        names = [name for name, (ticket, _, _) in self._under_way.items() if ticket in dropped]
        self._engine.abort_request(names)
        for name in names:
            del self._under_way[name]

    def update_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        refuse_other_names(tensors, dict(self.policy.model.named_parameters()))
        self._engine.abort_request(list(self._under_way))
        on_gpu = {name: tensor.detach().cuda().contiguous() for name, tensor in tensors.items()}
        device = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        described = {
            "names": list(on_gpu),
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in on_gpu.values()],
            "shapes": [list(tensor.shape) for tensor in on_gpu.values()],
            "ipc_handles": [{device: reduce_tensor(tensor)} for tensor in on_gpu.values()],
        }
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": described})
        self._llm.finish_weight_update()
        self._llm.reset_prefix_cache()
        self.policy_version = version
        for again in list(self._under_way.values()):
            self._begin(*again)

    def _begin(self, ticket: int, sibling: int, request: Request) -> None:
        sampling, name = request.sampling, f"{ticket}-{sibling}"
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
        if request.image:  # vLLM expands one placeholder to all of the picture
            pads = ids == self.policy.model.config.image_token_id
            ids = ids[~(pads & np.roll(pads, 1))]
        prompt: dict[str, Any] = {"prompt_token_ids": ids.tolist()}
        if request.image:
            prompt["multi_modal_data"] = {"image": decode(request.image.data, "image")}
        self._under_way[name] = ticket, sibling, request
        self._engine.add_request(name, prompt, drawn)

    def _finished(self, output: Any) -> Response:
        ticket, sibling, request = self._under_way.pop(output.request_id)
        if output.prompt_token_ids != request.prompt_ids.tolist():
            lengths = f"a prompt of {len(output.prompt_token_ids)} tokens where the policy made {len(request.prompt_ids)}"
            fix = "the image processors differ; set the picture sizes in the policy's preprocessor_config.json"
            raise ValueError(f"vLLM reads {lengths}: {fix}")
        (found,) = output.outputs
        logprobs = np.array([of[token].logprob for token, of in zip(found.token_ids, found.logprobs, strict=True)], np.float32)
        self.stats.sampled_tokens += len(logprobs)
        return Response(ticket, sibling, np.array(found.token_ids, np.int32), logprobs, found.finish_reason, self.policy_version)
