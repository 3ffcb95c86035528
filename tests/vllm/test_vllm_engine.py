"""The vLLM engine on the CPU with a tiny Llama: `tests/vllm/setup_venv.sh`, then `.venv-vllm/bin/pytest tests/vllm`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import pytest_asyncio
from msgspec import structs

pytest.importorskip("vllm", reason="vLLM has an environment of its own: tests/vllm/setup_venv.sh")

from sage_bus.testing import NatsServer
from sage_core import ConfigurationError, EngineError, WorkerLost
from sage_llm_worker.engines.vllm import VllmEngine, VllmOptions
from sage_llm_worker.testing.engine_suite import EngineSuite, collect
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Generate,
    JsonSchema,
    Resume,
    Sampling,
    TextPrompt,
    TokenBias,
    Tokenize,
    TokenPrompt,
    ToolDefinition,
)
from sage_worker.engine import TextFormats

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),  # the engine they share lives in one loop
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own, on import
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from sage_llm_worker.testing import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


def make(path, max_sequences=None):
    options = VllmOptions(dtype="float32", max_sequences=max_sequences, kv_cache_bytes=64 * 2**20)
    return VllmEngine(path, options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_engine(llama):
    # Ten seconds to start: one for all tests.
    engine = make(llama)
    await engine.start()
    yield engine
    await engine.stop()


class TestPromises(EngineSuite):
    # Its kernels choose their blocks by the size of the batch, so the last bits of a logit may differ.
    is_batch_exact = False

    @pytest.fixture(autouse=True)
    def _llama(self, llama):
        self.path = llama

    @pytest.fixture
    def engine(self, shared_engine):
        return shared_engine

    def make_engine(self, max_sequences=None):
        return make(self.path, max_sequences)


def request(text="Tell me about queues.", **sampling):
    prompt = ChatPrompt(messages=[ChatMessage(role="user", content=text)])
    return Generate(
        model="m", prompt=prompt, sampling=Sampling(**({"max_tokens": 24, "temperature": 0} | sampling))
    )


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 3, "maxLength": 12},
        "days": {"type": "array", "items": {"enum": ["mon", "tue"]}, "minItems": 2, "maxItems": 4},
        "degrees": {"type": "integer", "minimum": -40, "maximum": 50},
    },
    "required": ["city", "days", "degrees"],
    "additionalProperties": False,
}


def structured(schema, resume=None):
    work = request("Weather, please.", max_tokens=120)
    return structs.replace(work, structure=JsonSchema(schema=json.dumps(schema)), resume=resume)


async def test_vllm_and_transformers_generate_the_same_from_the_same_prompt(shared_engine, llama):
    from sage_llm_worker.engines.transformers import TransformersEngine

    other = TransformersEngine(llama, threads=1, dtype="float32")
    await other.start()
    try:
        for text in ("Hello.", "What does a gateway know?", "東京の天気"):
            one, two = await collect(shared_engine, request(text)), await collect(other, request(text))
            assert one.text == two.text
            assert one.completed.usage.prompt_tokens == two.completed.usage.prompt_tokens
    finally:
        await other.stop()


async def test_a_structured_answer_goes_on_under_the_other_engine(shared_engine, llama):
    from sage_llm_worker.engines.transformers import TransformersEngine

    other = TransformersEngine(llama, threads=1, dtype="float32")
    await other.start()
    try:
        work = structured(SCHEMA)
        wholes = [await collect(shared_engine, work), await collect(other, work)]
        assert wholes[0].text == wholes[1].text
        jsonschema.validate(json.loads(wholes[0].text), SCHEMA)
        for begun, engine in zip(wholes, (other, shared_engine), strict=True):
            for num_pieces in (1, len(begun.pieces) // 2, len(begun.pieces)):
                resume = begun.first(num_pieces)
                rest = await collect(engine, structured(SCHEMA, resume))
                assert resume.text + rest.text == begun.text
                by_text = Resume(text=resume.text, num_tokens=resume.num_tokens)
                rest = await collect(engine, structured(SCHEMA, by_text))
                jsonschema.validate(json.loads(resume.text + rest.text), SCHEMA)
    finally:
        await other.stop()


async def test_both_engines_find_the_same_log_probabilities(shared_engine, llama):
    from sage_llm_worker.engines.transformers import TransformersEngine

    other = TransformersEngine(llama, threads=1, dtype="float32")
    await other.start()
    work = structs.replace(
        request("Log", logprobs=3, max_tokens=8), prompt=TextPrompt(text="The queue knows. " * 9), echo=True
    )
    try:
        one, two = await collect(shared_engine, work), await collect(other, work)
    finally:
        await other.stop()
    assert [entry.chosen.token_id for entry in one.logprobs] == [
        entry.chosen.token_id for entry in two.logprobs
    ]
    for entry, same in zip(one.logprobs, two.logprobs, strict=True):
        assert entry.is_first == same.is_first
        values = [found.logprob for found in (entry.chosen, *entry.top)]
        assert values == pytest.approx([found.logprob for found in (same.chosen, *same.top)], abs=1e-3)


async def test_many_structures_at_once_with_and_without_a_beginning(shared_engine):
    work = structured(SCHEMA)
    whole = await collect(shared_engine, work)
    works = [work, structured(SCHEMA, whole.first(3)), request("plain")] * 8
    answers = await asyncio.gather(*(collect(shared_engine, each, f"s{n}") for n, each in enumerate(works)))
    for each, answer in zip(works, answers, strict=True):
        if each.structure is not None:
            begun = each.resume.text if each.resume else ""
            jsonschema.validate(json.loads(begun + answer.text), SCHEMA)


async def test_where_vllm_leaves_the_plugin_out_a_structured_answer_is_not_begun_anew(llama, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "none")
    monkeypatch.setattr("vllm.plugins.plugins_loaded", False)
    engine = make(llama)
    await engine.start()
    try:
        whole = await collect(engine, structured(SCHEMA))
        with pytest.raises(EngineError, match="cannot continue"):
            await collect(engine, structured(SCHEMA, whole.first(3)))
    finally:
        await engine.stop()


async def test_tools_are_in_the_prompt_and_markers_in_the_text(tmp_path):
    from sage_llm_worker.testing import TOOL_TEMPLATE, tiny_llama

    markers = ("<tool_call>", "</tool_call>")
    engine = make(tiny_llama(tmp_path / "tools", chat_template=TOOL_TEMPLATE, special_tokens=markers))
    await engine.start()
    try:
        assert engine.formats == TextFormats(tools="hermes", reasoning="think")
        found = await engine.tokenize(Tokenize(model="m", prompt=TextPrompt(text="<tool_call>")))
        forced = Sampling(max_tokens=2, logit_bias=[TokenBias(token_id=found.token_ids[-1], bias=100)])
        messages = [ChatMessage(role="user", content="Hi")]
        texts, sizes = [], []
        for tools in ([ToolDefinition(name="now")], []):
            prompt = ChatPrompt(messages=messages, tools=tools)
            answer = await collect(engine, Generate(model="m", prompt=prompt, sampling=forced))
            texts.append(answer.text)
            sizes.append(answer.completed.usage.prompt_tokens)
        assert texts == ["<tool_call>" * 2, ""]
        assert sizes[0] > sizes[1] + 20
    finally:
        await engine.stop()


async def test_seeds_give_each_choice_its_own_answer(shared_engine):
    works = [request(seed=seed, temperature=1.0) for seed in (1, 2, 3, 1)]
    answers = await asyncio.gather(*(collect(shared_engine, each, f"n{n}") for n, each in enumerate(works)))
    assert len({answer.text for answer in answers}) == 3
    assert answers[0].text == answers[3].text


async def test_sixty_four_requests_run_at_once(shared_engine):
    answers = await asyncio.gather(
        *(collect(shared_engine, request(f"Number {n}."), f"c{n}") for n in range(64))
    )
    assert all(answer.completed.usage.completion_tokens > 0 for answer in answers)
    assert shared_engine.stats().num_running == 0


async def test_a_repeated_prompt_is_served_from_the_prefix_cache(shared_engine):
    ids = [10 + n % 300 for n in range(400)]
    repeated = Generate(
        model="m", prompt=TokenPrompt(token_ids=ids), sampling=Sampling(max_tokens=4, temperature=0)
    )
    await collect(shared_engine, repeated)
    again = await collect(shared_engine, repeated)
    assert again.completed.usage.cached_tokens > 0


async def test_a_folder_vllm_cannot_serve_is_a_configuration_error(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["Unheard"], "model_type": "llama"}')
    engine = make(tmp_path)
    with pytest.raises(ConfigurationError, match="vLLM cannot serve"):
        await engine.start()
    await engine.stop()


async def test_a_dead_core_fails_what_runs_as_worker_lost_and_shows_in_health(llama):
    others = set(core_processes(os.getpid()))
    engine = make(llama)
    await engine.start()
    try:
        assert engine.health() == "ok"
        events = engine.generate("a", request(max_tokens=300))
        await anext(events)
        for pid in set(core_processes(os.getpid())) - others:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerLost):
            async for _ in events:
                pass
        assert engine.health() != "ok"
        with pytest.raises(WorkerLost):
            await collect(engine, request())
    finally:
        await engine.stop()


def core_processes(parent):
    """Return the ids of the engine cores below `parent`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] != "Z" and "resource_tracker" not in command:
                found.append(int(entry.name))
    return found


def is_running(pid):
    """Return False for a process that is gone, or dead and not yet reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_no_core_outlives_a_killed_worker(llama, tmp_path):
    environment = os.environ | {
        "SAGE_LLM_WORKER__ENGINE": "vllm",
        "SAGE_LLM_WORKER__MODEL": str(llama),
        "SAGE_LLM_WORKER__DTYPE": "float32",
        "SAGE_LLM_WORKER__VLLM__KV_CACHE_BYTES": "64MiB",
        "SAGE_TELEMETRY__LOG_FORMAT": "json",
    }
    with NatsServer() as server:
        environment["SAGE_BUS__URL"] = server.url
        with subprocess.Popen(
            [sys.executable, "-m", "sage_llm_worker"], env=environment, stderr=subprocess.PIPE, text=True
        ) as worker:
            assert any('"engine_started"' in line for line in worker.stderr)
            cores = core_processes(worker.pid)
            assert cores
            worker.kill()
    deadline = time.monotonic() + 5
    while any(is_running(pid) for pid in cores):
        assert time.monotonic() < deadline, f"engine cores {cores} outlived their worker"
        time.sleep(0.05)
