"""The native engine model against vLLM's own scheduler, step by step: who has a token, and how many blocks are free."""

import random

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: tests/vllm/setup_venv.sh")

from sage_native import EngineModel

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own, on import
]

BLOCK = 16
MAX_CONTEXT = 1024


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    from sage_llm_worker.testing import tiny_llama

    return str(tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama", max_context=MAX_CONTEXT))


@pytest.mark.parametrize("seed", range(300))
def test_every_step_is_that_of_vllm(model_path, seed):
    from vllm_steps import VllmSteps  # its warnings are ignored inside a test only

    choose = random.Random(seed)
    num_blocks = choose.randint(6, 60)
    limits = {
        "max_sequences": choose.randint(1, 8),
        "max_step_tokens": choose.choice([64, 128, 300, 1000]),
        "kv_tokens": num_blocks * BLOCK,
        "watermark": choose.choice([0.0, 0.05, 0.3]),
        "async_scheduling": choose.random() < 0.5,
    }
    vllm, model = VllmSteps(model_path, limits), EngineModel(block_tokens=BLOCK, **limits)
    longest, prefix_block = (num_blocks - 1) * BLOCK, BLOCK * choose.randint(1, 4)
    arrival_chance, num_submitted, num_requests = choose.choice([0.1, 0.5, 1.0]), 0, choose.randint(1, 25)
    while num_submitted < num_requests or not model.is_idle:
        while num_submitted < num_requests and choose.random() < arrival_chance:
            num_prompt = choose.randint(1, min(longest - 1, choose.choice([longest - 1, longest // 2, 128])))
            num_output = choose.randint(1, min(choose.choice([10, 60]), longest - num_prompt))
            # Of a prompt that is a whole number of cached groups the model holds one block too many, see its header.
            num_groups, root = choose.randint(0, (num_prompt - 1) // prefix_block), choose.randint(0, 2)
            num_shared = num_groups * prefix_block
            tokens = [root * MAX_CONTEXT + place for place in range(num_shared)]
            tokens += [(num_submitted + 4) * MAX_CONTEXT + place for place in range(num_shared, num_prompt)]
            groups = [1000 * root + group for group in range(num_groups)]
            vllm.submit(num_submitted, tokens, num_output)
            model.submit(
                num_submitted, num_prompt, blocks=groups, prefix_block=prefix_block, num_output=num_output
            )
            num_submitted += 1
            if choose.random() < 0.3:
                break
        if model.is_idle:
            continue
        emitting = vllm.step()
        assert model.step()[1] == emitting
        assert round((1 - model.kv_used) * (num_blocks - 1)) == vllm.num_free
