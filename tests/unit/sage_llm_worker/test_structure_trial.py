"""What compiling a structure may cost is bounded by the kernel, and nobody else pays for it."""

import asyncio
import json

import pytest

from sage_core import BadRequest
from sage_llm_worker.engines.emulated import EmulatedEngine
from sage_llm_worker.structure_trial import StructureTrial, Verdict
from sage_llm_worker.structures import StructureCompiler, byte_tokenizer
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Generate,
    Grammar,
    JsonObject,
    JsonSchema,
    OneOf,
    Pattern,
    Sampling,
    ToolDefinition,
)


def schema(value):
    return JsonSchema(schema=json.dumps(value))


def nested(value, levels, **more):
    for _ in range(levels):
        value = {"type": "array", "items": value, **more}
    return value


def doubling(levels):
    """A chain of alternatives, each of which is the one before twice."""
    value = {"type": "string", "pattern": "^a+$"}
    for _ in range(levels):
        value = {"anyOf": [value, {"type": "array", "items": value}]}
    return value


INTEGERS = {"type": "array", "items": {"type": "integer"}}
HEAVY = schema(
    {
        "type": "object",
        "properties": {f"p{index}": {"type": "integer", "multipleOf": 30000 + index} for index in range(900)},
    }
)
"""Takes minutes."""

TOO_LARGE = {
    "min_items": schema({**INTEGERS, "minItems": 10**9}),
    "max_items": schema({**INTEGERS, "maxItems": 10**9}),
    "in a grammar": Grammar(ebnf="start: %json " + json.dumps({**INTEGERS, "minItems": 10**9})),
    "combinations": schema(
        {
            "allOf": [
                {"anyOf": [{"type": "object", "properties": {f"p{index}{other}": {}}} for other in range(2)]}
                for index in range(11)
            ]
        }
    ),
    "deep recursion": Grammar(
        ebnf="start: r0\n"
        + "\n".join(f'r{index}: r{index + 1} r{index + 1} | "x"' for index in range(9000))
        + '\nr9000: "y"'
    ),
}
REFUSED = {
    "doubling": schema(doubling(14)),
    "intersections": Grammar(
        ebnf="start: X\nX: " + " & ".join(f"/.*a.{{{index}}}b.*/" for index in range(5, 25))
    ),
    "parentheses": Grammar(ebnf="start: " + "(" * 30000 + '"a"' + ")" * 30000),
    "pattern of parentheses": Pattern(regex="(" * 4000 + "a" + ")" * 4000),
    "choices": schema({"enum": [f"v{index}" for index in range(100_000)]}),
}
HARMLESS = {
    "recursive": schema({"type": "object", "properties": {"a": {"$ref": "#"}}}),
    "nested items": schema(nested({"type": "integer"}, 20, minItems=1000)),
    "repeated repeats": Pattern(regex="(a{1000}){1000}"),
    "1000 choices": OneOf(options=["x" * 60 + str(index) for index in range(1000)]),
    "object": JsonObject(),
}


@pytest.fixture(scope="module")
def trial():
    trial = StructureTrial()
    yield trial
    trial.close()


@pytest.fixture
def compiler():
    compiler = StructureCompiler(byte_tokenizer())
    yield compiler
    compiler.close()


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_would_end_the_process_or_its_host_is_refused(trial, name):
    assert "takes more than 2 s or 96 MiB" in trial.judge(TOO_LARGE[name]).refusal
    assert not trial.judge(JsonObject()).refusal


@pytest.mark.parametrize("name", REFUSED)
def test_other_bombs_are_refused_too(trial, name):
    assert trial.judge(REFUSED[name]).refusal.startswith("the structure of the output cannot be enforced: ")


@pytest.mark.parametrize("name", HARMLESS)
def test_what_looks_like_a_bomb_and_is_none_passes(trial, name):
    verdict = trial.judge(HARMLESS[name])
    assert not verdict.refusal
    assert verdict.num_bytes < 32 * 2**20


def test_time_is_bounded(trial):
    quick = StructureTrial(cpu_seconds=0.05)
    assert "more than 0.05 s" in quick.judge(HEAVY).refusal
    assert not quick.judge(JsonObject()).refusal
    quick.close()


def test_a_server_that_was_killed_is_replaced():
    trial = StructureTrial()
    assert not trial.judge(JsonObject()).refusal
    trial._server.kill()
    trial._server.wait()
    assert not trial.judge(JsonObject()).refusal
    trial.close()
    trial.close()


async def test_neighbours_do_not_wait_for_what_takes_long(compiler):
    order = []

    async def ask(name, structure):
        try:
            await compiler.matcher(structure)
        except BadRequest:
            order.append(f"{name} refused")
        else:
            order.append(name)

    await compiler.matcher(JsonObject())
    async with asyncio.TaskGroup() as group:
        group.create_task(ask("bomb", HEAVY))
        await asyncio.sleep(0)
        group.create_task(ask("neighbour", schema({"type": "string", "format": "uuid"})))
    assert order == ["neighbour", "bomb refused"]


async def test_a_bomb_goes_off_once_and_what_is_large_is_not_kept(compiler, monkeypatch):
    judged = []

    def judge(self, structure):
        judged.append(structure)
        is_bomb = isinstance(structure, Pattern)
        return Verdict("no") if is_bomb else Verdict(num_bytes=10**8 if isinstance(structure, OneOf) else 1)

    monkeypatch.setattr(StructureTrial, "judge", judge)
    bomb, large, small = Pattern(regex="a"), OneOf(options=["a"]), JsonObject()
    for _ in range(2):
        with pytest.raises(BadRequest, match="no"):
            await compiler.matcher(bomb)
        await compiler.matcher(large)
        await compiler.matcher(small)
        await asyncio.sleep(0)
    assert judged == [bomb, large, small, large]


@pytest.mark.parametrize(("tools", "param"), [([], "response_format"), ([ToolDefinition(name="f")], "tools")])
async def test_the_refusal_names_what_brought_the_structure(tools, param):
    engine = EmulatedEngine()
    await engine.start()
    prompt = ChatPrompt(messages=[ChatMessage(role="user", content="x")], tools=tools)
    request = Generate(
        model="sage-emulated",
        prompt=prompt,
        sampling=Sampling(),
        structure=schema({**INTEGERS, "minItems": 10**9}),
    )
    with pytest.raises(BadRequest, match="make it smaller") as refused:
        async for _ in engine.generate("r", request):
            pass
    assert refused.value.param == param
    await engine.stop()
