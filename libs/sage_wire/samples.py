"""Examples of every message, every field set. Their bytes are the golden files: what one release wrote, all read.

A sample is never changed once released. A message that grew a field gets a further sample, e.g. `Submit.2`.
"""

from __future__ import annotations

import struct
from typing import Final

from sage_wire.codec import raw
from sage_wire.messages import (
    Annotated,
    Announcement,
    Answer,
    Cancel,
    CancelledRequest,
    CancelledResponse,
    CancelRequest,
    CancelResponse,
    ChatMessage,
    ChatPrompt,
    Chunk,
    Completed,
    DecisionFacts,
    Delta,
    Detokenize,
    Detokenized,
    Discover,
    Dispatch,
    Dispatches,
    Document,
    Drain,
    Draining,
    Embed,
    EngineProfile,
    Failed,
    FindReceipt,
    FindSpans,
    FoundSpans,
    Frame,
    Generate,
    Grammar,
    Hit,
    Image,
    Index,
    Indexed,
    JobState,
    JobStatus,
    JsonObject,
    JsonSchema,
    Lead,
    Logprob,
    Message,
    OneOf,
    Output,
    Pattern,
    Ping,
    Pong,
    Receipt,
    ReceiptCandidate,
    ReceiptTimes,
    Report,
    ReportEvent,
    Reports,
    Rerank,
    Resume,
    Retrieve,
    Retrieved,
    RunPipeline,
    Sampling,
    Scores,
    ServedModel,
    Span,
    Split,
    SplitChunks,
    Started,
    Submit,
    SubmitJob,
    Submits,
    Targets,
    Telemetry,
    TextPrompt,
    Timings,
    TokenBias,
    Tokenize,
    Tokenized,
    TokenLogprobs,
    TokenPrompt,
    Tokens,
    ToolCall,
    ToolDefinition,
    Usage,
    Vectors,
    WireError,
    WorkSize,
)

__all__ = ["SAMPLES"]

_VECTOR: Final = struct.pack("<2f", 0.6, 0.8)
_USER: Final = ChatMessage(role="user", content="What is a frame?", name="ada")
_SAMPLING: Final = Sampling(
    max_tokens=64,
    temperature=0.7,
    top_p=0.9,
    stop=["\n\n"],
    seed=7,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
)
_RESUME: Final = Resume(text="A frame is", token_ids=[32, 4034, 374], num_tokens=3)
_GENERATE: Final = Generate(
    model="qwen", prompt=ChatPrompt(messages=[_USER]), sampling=_SAMPLING, resume=_RESUME
)
_IMAGE: Final = Image(media_type="image/png", data=b"\x89PNG", position=4)
_TOOL: Final = ToolDefinition(
    name="get_weather",
    description="The weather of a city",
    parameters='{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}',
)
_TOOL_CALL: Final = ToolCall(id="call_1", name="get_weather", arguments='{"city":"Paris"}')
_TOOL_PROMPT: Final = ChatPrompt(
    messages=[
        _USER,
        ChatMessage(role="assistant", content="", tool_calls=[_TOOL_CALL], reasoning="I need the weather."),
        ChatMessage(role="tool", content="18 degrees", tool_call_id="call_1"),
    ],
    tools=[_TOOL],
    template_arguments='{"reasoning_effort":"low"}',
    continues_last=True,
)
_BEYOND: Final = Sampling(
    max_tokens=0,
    top_k=40,
    min_p=0.05,
    repetition_penalty=1.1,
    min_tokens=2,
    ignore_eos=True,
    stop_token_ids=[2],
    logit_bias=[TokenBias(token_id=315, bias=-100.0)],
    logprobs=2,
)
_LOGPROB: Final = Logprob(text=" of", logprob=-0.25, token_id=315)
_LOGPROBS: Final = TokenLogprobs(
    chosen=_LOGPROB, top=[_LOGPROB, Logprob(text="\ufffd", logprob=-2.5, token_id=9, raw=b"\xe2")]
)
_ANSWER: Final = Answer(request_id="req-1", attempt=1, scheduler_id="scheduler-1", epoch="5xkq0c4w9d2m")
_DOCUMENT: Final = Document(source="docs/bus.md", text="A frame carries deltas.", title="The bus")
_CHUNK: Final = Chunk(source="docs/bus.md", position=2, text="A frame carries deltas.", title="The bus")
_HIT: Final = Hit(
    source="docs/bus.md", position=2, text="A frame carries deltas.", score=0.75, title="The bus"
)
_ERROR: Final = WireError(
    code="overloaded", message="200 wait already", retryable=True, param="model", retry_after=1.5
)
_USAGE: Final = Usage(prompt_tokens=12, completion_tokens=34, cached_tokens=8)
_TIMINGS: Final = Timings(queue_ms=1.5, prefill_ms=20.25, decode_ms=300.5)
_COMPLETED: Final = Completed(finish_reason="length", usage=_USAGE, timings=_TIMINGS)
_SIZE: Final = WorkSize(num_items=3, num_chars=1200, max_tokens=64)
_MODEL: Final = ServedModel(
    name="all-MiniLM-L6-v2",
    task="embed",
    engine="sentence-transformers",
    max_context=256,
    dim=384,
    description="Sentence embeddings",
)
_SIZE_2: Final = WorkSize(
    num_chars=2048, max_tokens=64, num_prompt_tokens=515, blocks=[0, 1, 18446744073709551615]
)
_PROFILE: Final = EngineProfile(
    a0=0.0169,
    a1=4.2e-05,
    a2=1.49e-07,
    m0=0.0142,
    m1=7.7e-05,
    m2=3.4e-07,
    m3=5.4e-09,
    m4=5e-06,
    host=0.0002,
    max_sequences=256,
    max_step_tokens=2048,
    max_context=32768,
    kv_tokens=65536,
    block_tokens=16,
    watermark=0.01,
)
_TELEMETRY: Final = Telemetry(pool="qwen", num_running=7, num_waiting=2, kv_used=0.625)
_TARGETS: Final = Targets(
    ttft_ms=500.0, tpot_ms=50.5, e2e_ms=2000.0, started_ago_ms=12.25, downstream_ms=300.5
)
_TIMES: Final = ReceiptTimes(ttft_ms=131.25, tpot_ms=21.75, num_tokens=60, num_cached=384)
_FACTS: Final = DecisionFacts(
    scheduler_id="scheduler-1", fence=18, batch=3, batch_size=2, code="overloaded", retry_after=1.5
)
_RUN: Final = RunPipeline(
    pipeline="rag-docs",
    messages=[_USER],
    documents=[_DOCUMENT],
    sampling=_SAMPLING,
    parameters={"collection": "docs"},
)
_REPLY_TO: Final = "sage.v1.frames.gateway-1"
_CANDIDATE: Final = ReceiptCandidate(instance_id="llm-worker-1", score=0.25, reason="full")
_SPAN: Final = Span(
    trace_id="0af7651916cd43dd8448eb211c80319c",
    span_id="b7ad6b7169203331",
    parent_id="00f067aa0ba902b7",
    name="decode",
    service="llm-worker",
    start_ns=1_700_000_000_000_000_000,
    end_ns=1_700_000_000_250_000_000,
    is_error=True,
    attributes={"sage.pool": "qwen", "sage.request.attempt": 1, "sage.queue_ms": 1.5, "sampled": True},
)

_TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
_SUBMIT: Final = Submit(
    request_id="req-1",
    attempt=0,
    pool="qwen",
    reply_to=_REPLY_TO,
    work=raw(_GENERATE),
    size=_SIZE,
    budget_ms=120_000,
    traceparent=_TRACEPARENT,
)
_DISPATCH: Final = Dispatch(
    request_id="req-1",
    attempt=0,
    pool="qwen",
    reply_to=_REPLY_TO,
    work=raw(_GENERATE),
    fence=17,
    budget_ms=119_990,
    traceparent=_TRACEPARENT,
)

SAMPLES: Final[dict[str, Message]] = {
    "Annotated": Annotated(sources=[_HIT], stage="retrieve", stage_ms=3.25),
    "Announcement": Announcement(
        actor_id="embedding-worker-1",
        kind="embedding-worker",
        epoch="5xkq0c4w9d2m",
        sequence=42,
        state="draining",
        version="0.1.0",
        host="node-1",
        pid=4711,
        interval_ms=500,
        models=[_MODEL],
        max_in_flight=8,
        num_in_flight=2,
        num_queued=1,
        in_flight=["req-1/0", "req-2/1"],
        health="model is reloading",
        started_s_ago=12.5,
    ),
    "Announcement.telemetry": Announcement(
        actor_id="llm-worker-1",
        kind="llm-worker",
        epoch="5xkq0c4w9d2m",
        sequence=43,
        state="ready",
        version="0.1.0",
        host="node-1",
        pid=4712,
        in_flight=["req-1/0"],
        num_tokens=[17],
        telemetry=[_TELEMETRY],
        leads=["qwen"],
    ),
    "Cancel": Cancel(request_id="req-1", attempt=1, reason="the client disconnected"),
    "CancelRequest": CancelRequest(tenant="default", request_id="chatcmpl-0af7651916cd43dd"),
    "CancelResponse": CancelResponse(tenant="default", response_id="resp_0af7651916cd43dd"),
    "CancelledRequest": CancelledRequest(num_requests=1),
    "CancelledResponse": CancelledResponse(response='{"id":"resp_0af7651916cd43dd"}'),
    "ChatMessage": _USER,
    "ChatPrompt": ChatPrompt(messages=[_USER]),
    "Chunk": _CHUNK,
    "Completed": _COMPLETED,
    "DecisionFacts": _FACTS,
    "Delta": Delta(request_id="req-1", attempt=1, seq=3, event=Tokens(text=" of", token_ids=[315])),
    "Discover": Discover(),
    "Dispatch": Dispatch(
        request_id="req-1",
        attempt=1,
        pool="qwen",
        reply_to=_REPLY_TO,
        work=raw(_GENERATE),
        tenant="acme",
        priority=2,
        queue_ms=1.5,
        fence=17,
    ),
    "Dispatch.batch": Dispatch(
        request_id="req-1",
        attempt=1,
        pool="all-MiniLM-L6-v2",
        reply_to=_REPLY_TO,
        work=raw(Embed(model="all-MiniLM-L6-v2", texts=["a frame"])),
        fence=18,
        batch=3,
        batch_size=2,
        slo_class="normal",
        targets=_TARGETS,
    ),
    "Detokenize": Detokenize(model="qwen", token_ids=[32, 4034]),
    "Detokenized": Detokenized(text="A frame"),
    "Document": _DOCUMENT,
    "Drain": Drain(timeout_ms=5000),
    "Draining": Draining(num_in_flight=2),
    "Embed": Embed(model="all-MiniLM-L6-v2", texts=["a frame", "a delta"], dimensions=128),
    "Embed.token_ids": Embed(model="all-MiniLM-L6-v2", token_ids=[[101, 1037, 102], [101, 102]]),
    "EngineProfile": _PROFILE,
    "Failed": Failed(error=_ERROR),
    "FindReceipt": FindReceipt(request_id="req-1"),
    "FindSpans": FindSpans(trace_id="0af7651916cd43dd8448eb211c80319c", request_id="req-1"),
    "FoundSpans": FoundSpans(actor_id="gateway-1", spans=[_SPAN]),
    "Frame": Frame(
        deltas=[
            Delta(
                request_id="req-1",
                attempt=0,
                seq=0,
                event=Started(worker_id="llm-worker-1", model="qwen", queue_ms=1.5),
            ),
            Delta(request_id="req-2", attempt=1, seq=7, event=Tokens(text=" of", token_ids=[315])),
            Delta(request_id="req-3", attempt=0, seq=4, event=_COMPLETED),
        ]
    ),
    "Frame.answers": Frame(
        answers=[_ANSWER, Answer(request_id="req-2", attempt=0, scheduler_id="scheduler-1", error=_ERROR)]
    ),
    "Generate": _GENERATE,
    "Generate.gather": Generate(model="qwen", prompt=TextPrompt(text="A frame"), gather_ms=250),
    "Generate.structure": Generate(
        model="qwen",
        prompt=_TOOL_PROMPT,
        sampling=_BEYOND,
        structure=JsonSchema(schema='{"type":"object"}'),
        echo=True,
    ),
    "Grammar": Grammar(ebnf='root ::= "yes" | "no"'),
    "Hit": _HIT,
    "Image": _IMAGE,
    "Index": Index(
        collection="docs",
        embedding_model="all-MiniLM-L6-v2",
        dim=2,
        chunks=[_CHUNK],
        vectors=_VECTOR,
        removed_sources=["docs/old.md"],
    ),
    "Indexed": Indexed(num_chunks=120, num_sources=12),
    "JobState": JobState(
        job_id="job-1",
        status=JobStatus.FAILED,
        pipeline="rag-docs",
        attempt=2,
        planner_id="planner-1",
        num_nodes_done=3,
        num_nodes=5,
        text="A frame is",
        value=raw(Indexed(num_chunks=120, num_sources=12)),
        error=_ERROR,
    ),
    "JobState.sources": JobState(
        job_id="job-2",
        status=JobStatus.SUCCEEDED,
        pipeline="rag-docs",
        attempt=1,
        planner_id="planner-1",
        num_nodes_done=5,
        num_nodes=5,
        text="A frame carries deltas. [1]",
        sources=[_HIT],
        queue_sequence=7,
    ),
    "JobState.traced": JobState(
        job_id="job-3",
        status=JobStatus.RUNNING,
        pipeline="rag-docs",
        attempt=2,
        planner_id="planner-1",
        traceparent=_TRACEPARENT[:-1] + "1",
    ),
    "JsonObject": JsonObject(),
    "JsonSchema": JsonSchema(schema='{"type":"object"}'),
    "Lead": Lead(pool="qwen", scheduler_id="scheduler-1", fence=18),
    "Logprob": _LOGPROB,
    "Logprob.raw": _LOGPROBS.top[1],
    "OneOf": OneOf(options=["yes", "no"]),
    "Output": Output(value=raw(SplitChunks(chunks=[_CHUNK]))),
    "Pattern": Pattern(regex="[a-z]+"),
    "Ping": Ping(),
    "Pong": Pong(actor_id="gateway-1", epoch="5xkq0c4w9d2m", state="ready"),
    "Receipt": Receipt(
        request_id="req-1",
        attempt=1,
        pool="qwen",
        policy="least-outstanding",
        decision="dispatched",
        reason="fewest outstanding",
        queue_ms=1.5,
        num_queued=4,
        chosen="llm-worker-1",
        candidates=[_CANDIDATE],
        predicted_ms=120.0,
        actual_ms=131.5,
    ),
    "Receipt.predictions": Receipt(
        request_id="req-1",
        attempt=1,
        pool="qwen",
        policy="hybrid",
        decision="dispatched",
        reason="lowest score",
        queue_ms=1.5,
        num_queued=4,
        chosen="llm-worker-1",
        predicted_ms=1320.5,
        actual_ms=1415.25,
        predicted=ReceiptTimes(ttft_ms=120.5, tpot_ms=20.5),
        actual=_TIMES,
        facts=_FACTS,
    ),
    "ReceiptCandidate": _CANDIDATE,
    "ReceiptTimes": _TIMES,
    "Report": Report(
        worker_id="llm-worker-1",
        pool="qwen",
        request_id="req-1",
        attempt=1,
        event=ReportEvent.FAILED,
        num_tokens=34,
        elapsed_ms=321.5,
        error=_ERROR,
    ),
    "Report.num_cached": Report(
        worker_id="llm-worker-1",
        pool="qwen",
        request_id="req-1",
        attempt=1,
        event=ReportEvent.FIRST_TOKEN,
        num_tokens=1,
        elapsed_ms=21.5,
        num_cached=384,
    ),
    "Reports": Reports(
        reports=[
            Report(
                worker_id="llm-worker-1",
                pool="qwen",
                request_id="req-1",
                attempt=1,
                event=ReportEvent.FINISHED,
                num_tokens=34,
            )
        ]
    ),
    "Rerank": Rerank(model="all-MiniLM-L6-v2", query="What is a frame?", documents=["a", "b"]),
    "Resume": _RESUME,
    "Retrieve": Retrieve(collection="docs", query="What is a frame?", vector=_VECTOR, top_k=3, mode="dense"),
    "Retrieved": Retrieved(hits=[_HIT]),
    "RunPipeline": _RUN,
    "RunPipeline.removed_sources": RunPipeline(
        pipeline="index-docs", parameters={"collection": "docs"}, removed_sources=["docs/old.md"]
    ),
    "Sampling": _SAMPLING,
    "Sampling.beyond_openai": _BEYOND,
    "Scores": Scores(scores=[0.75, -0.25]),
    "ServedModel": _MODEL,
    "ServedModel.takes": ServedModel(
        name="pipeline/index-docs", task="pipeline", engine="planner", takes="documents"
    ),
    "ServedModel.takes_images": ServedModel(
        name="qwen-vl", task="generate", engine="vllm", takes_images=True
    ),
    "ServedModel.profile": ServedModel(
        name="qwen",
        task="generate",
        engine="vllm",
        max_context=32768,
        is_batched=True,
        is_gpu=True,
        device="cuda:0",
        profile=_PROFILE,
    ),
    "ServedModel.formats": ServedModel(
        name="qwen", task="generate", engine="vllm", tool_format="hermes", reasoning_format="think"
    ),
    "Span": _SPAN,
    "Span.links": Span(
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="00f067aa0ba902b7",
        parent_id=None,
        name="submit qwen",
        service="gateway",
        start_ns=1_700_000_000_250_000_000,
        end_ns=1_700_000_000_750_000_000,
        kind="client",
        links=["0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"],
    ),
    "Split": Split(documents=[_DOCUMENT], chunk_chars=500, overlap_chars=50),
    "SplitChunks": SplitChunks(chunks=[_CHUNK]),
    "Started": Started(worker_id="llm-worker-1", model="qwen", queue_ms=1.5),
    "Submit": Submit(
        request_id="req-1",
        attempt=1,
        pool="qwen",
        reply_to=_REPLY_TO,
        work=raw(_GENERATE),
        size=_SIZE,
        tenant="acme",
        slo_class="batch",
        priority=2,
    ),
    "Submit.targets": Submit(
        request_id="req-1",
        attempt=1,
        pool="qwen",
        reply_to=_REPLY_TO,
        work=raw(_GENERATE),
        size=_SIZE_2,
        targets=_TARGETS,
        route="rag-docs/answer",
    ),
    "Submit.budget": _SUBMIT,
    "Submits": Submits(submits=[_SUBMIT]),
    "SubmitJob": SubmitJob(job_id="job-1", run=_RUN, budget_ms=60_000, tenant="acme"),
    "Targets": _TARGETS,
    "Telemetry": _TELEMETRY,
    "TextPrompt": TextPrompt(text="Once upon a time"),
    "Timings": _TIMINGS,
    "TokenBias": TokenBias(token_id=315, bias=-100.0),
    "TokenLogprobs": _LOGPROBS,
    "TokenLogprobs.first": TokenLogprobs(chosen=_LOGPROB, is_first=True),
    "TokenPrompt": TokenPrompt(token_ids=[1, 128000, 32]),
    "Tokens": Tokens(text=" of the", token_ids=[315, 279], num_tokens=2),
    "Tokens.num_cached": Tokens(text="A", token_ids=[32], num_cached=384),
    "Tokens.logprobs": Tokens(text=" of", token_ids=[315], logprobs=[_LOGPROBS]),
    "Tokens.is_prompt": Tokens(
        text="A",
        token_ids=[32],
        logprobs=[TokenLogprobs(chosen=Logprob(text="A", logprob=0.0, token_id=32), is_first=True)],
        is_prompt=True,
    ),
    "Tokenize": Tokenize(
        model="qwen", prompt=TextPrompt(text="A frame"), adds_special_tokens=False, with_strings=True
    ),
    "Tokenized": Tokenized(token_ids=[32, 4034], strings=["A", "\u0120frame"]),
    "ToolCall": _TOOL_CALL,
    "ChatMessage.assistant": _TOOL_PROMPT.messages[1],
    "ChatMessage.images": ChatMessage(role="user", content="What is this?", images=[_IMAGE]),
    "ChatMessage.tool": _TOOL_PROMPT.messages[2],
    "ToolDefinition": _TOOL,
    "ChatPrompt.tools": _TOOL_PROMPT,
    "Completed.stop_reason": Completed(stop_reason="\n\n"),
    "Answer": _ANSWER,
    "Answer.refused": Answer(request_id="req-2", attempt=0, error=_ERROR),
    "Dispatch.budget": _DISPATCH,
    "Dispatches": Dispatches(dispatches=[_DISPATCH]),
    "Usage": _USAGE,
    "Vectors": Vectors(offset=4, dim=2, data=_VECTOR),
    "WireError": _ERROR,
    "WorkSize": _SIZE,
    "WorkSize.blocks": _SIZE_2,
}
"""By file name in proto/golden; what comes before a dot names the message."""
