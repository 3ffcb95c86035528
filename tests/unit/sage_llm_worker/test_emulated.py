"""What load tests rely on."""

import asyncio
import time

from sage_llm_worker.engines.emulated import EmulatedEngine
from sage_llm_worker.step_time import StepProfile
from sage_llm_worker.testing.engine_suite import collect
from sage_wire.messages import Generate, Sampling, TextPrompt


def request(**sampling):
    return Generate(model="m", prompt=TextPrompt(text="hello"), sampling=Sampling(**sampling))


async def test_steps_take_as_long_as_the_profile_says():
    engine = EmulatedEngine(profile=StepProfile(a0=0.002, m0=0.002))
    await engine.start()
    started = time.perf_counter()
    answers = await asyncio.gather(*(collect(engine, request(max_tokens=15), f"r{n}") for n in range(8)))
    elapsed = time.perf_counter() - started
    await engine.stop()
    # Eight sequences share each step: the time of one.
    assert 15 * 0.002 <= elapsed < 4 * 15 * 0.002
    assert answers[0].completed.timings.prefill_ms >= 2


async def test_the_loop_stays_free_without_delay():
    engine = EmulatedEngine(default_tokens=2000)
    await engine.start()
    running = asyncio.create_task(collect(engine, request()))
    turns = 0
    while not running.done():
        await asyncio.sleep(0)
        turns += 1
    await engine.stop()
    assert turns >= 1000


async def test_seeds_and_prompts_change_the_text():
    engine = EmulatedEngine()
    await engine.start()
    texts = {(await collect(engine, request(max_tokens=12, seed=seed))).text for seed in range(20)}
    await engine.stop()
    assert len(texts) == 20


async def test_without_max_tokens_the_answer_ends_by_itself():
    engine = EmulatedEngine(default_tokens=9)
    await engine.start()
    answer = await collect(engine, request())
    await engine.stop()
    assert answer.completed.finish_reason == "stop"
    assert answer.completed.usage.completion_tokens == 9
