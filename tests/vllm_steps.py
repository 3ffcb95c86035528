"""vLLM's own scheduler, driven step by step without a model: the oracle of tests/vllm/test_engine_model.py."""

from collections import deque

import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16
MAX_CONTEXT = 1024


class VllmSteps:
    """Runs vLLM's scheduler as its engine core does, with made-up tokens; one step ahead where it is asynchronous."""

    def __init__(self, model_path, limits):
        self.is_ahead = limits["async_scheduling"]
        num_blocks = limits["kv_tokens"] // BLOCK
        model = ModelConfig(model_path, skip_tokenizer_init=True, dtype="float32", max_model_len=MAX_CONTEXT)
        cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=True)
        cache.num_gpu_blocks = num_blocks
        config = VllmConfig(
            model_config=model,
            cache_config=cache,
            scheduler_config=SchedulerConfig(
                max_num_batched_tokens=limits["max_step_tokens"],
                max_num_seqs=limits["max_sequences"],
                max_model_len=MAX_CONTEXT,
                is_encoder_decoder=False,
                async_scheduling=self.is_ahead,
                watermark=limits["watermark"],
            ),
        )
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        self.scheduler = (AsyncScheduler if self.is_ahead else Scheduler)(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
        )
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        self.planned = deque()
        self.current = None
        self.num_tokens = 0

    def submit(self, number, tokens, num_output):
        sampling = SamplingParams(max_tokens=num_output, ignore_eos=True, temperature=0.0)
        self.scheduler.add_request(
            Request(str(number), tokens, sampling, None, arrival_time=float(number), block_hasher=self.hasher)
        )

    def step(self):
        if self.current is not None:
            self.update(*self.current)
        if not self.planned:
            self.plan()
        if self.planned and self.is_ahead:
            self.plan()
        self.current = self.planned.popleft() if self.planned else None
        return [int(name) for name in self.current[1]] if self.current else []

    def plan(self):
        step = self.scheduler.schedule()
        if step.total_num_scheduled_tokens:
            emitting = [
                n for n in step.num_scheduled_tokens if not self.scheduler.requests[n].is_prefill_chunk
            ]
            self.planned.append((step, emitting))

    def update(self, step, emitting):
        names, sampled = list(step.num_scheduled_tokens), []
        for name in names:
            self.num_tokens += name in emitting
            sampled.append([100_000 + self.num_tokens] if name in emitting else [])
        places = {name: place for place, name in enumerate(names)}
        self.scheduler.update_from_output(step, ModelRunnerOutput(names, places, sampled))

    @property
    def num_free(self):
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
