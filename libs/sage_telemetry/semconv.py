"""Every name that a span, an attribute or a resource of SAGE has. None is spelled anywhere else.

The standard names are in motion, so they are kept here alone, as of OpenTelemetry semantic conventions 1.44:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
https://opentelemetry.io/docs/specs/semconv/http/http-spans/

Their deviations: a span is named after the stage of a request's life that it is, not after its subject, as subjects
hold hashes and ids; and `messaging.system` is the custom value `nats`, for which no convention exists.
"""

from __future__ import annotations

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

# Resource: who recorded the span.
SERVICE_NAME: Final = "service.name"
SERVICE_NAMESPACE: Final = "service.namespace"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
SERVICE_VERSION: Final = "service.version"
HOST_NAME: Final = "host.name"
PROCESS_PID: Final = "process.pid"

# General.
ERROR_TYPE: Final = "error.type"
HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
URL_PATH: Final = "url.path"
URL_SCHEME: Final = "url.scheme"

# GenAI.
GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P: Final = "gen_ai.request.top_p"
GEN_AI_REQUEST_SEED: Final = "gen_ai.request.seed"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_WORKFLOW_NAME: Final = "gen_ai.workflow.name"
GEN_AI_DATA_SOURCE_ID: Final = "gen_ai.data_source.id"
PROVIDER_SAGE: Final = "sage"
OPERATION_CHAT: Final = "chat"
OPERATION_TEXT_COMPLETION: Final = "text_completion"
OPERATION_EMBEDDINGS: Final = "embeddings"
OPERATION_RETRIEVAL: Final = "retrieval"
OPERATION_INVOKE_WORKFLOW: Final = "invoke_workflow"

# What callers and models say. Recorded only with `[telemetry] record_content`.
GEN_AI_INPUT_MESSAGES: Final = "gen_ai.input.messages"
GEN_AI_OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
GEN_AI_RETRIEVAL_QUERY_TEXT: Final = "gen_ai.retrieval.query.text"
INPUT_TEXTS: Final = "sage.input.texts"

# Messaging.
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_DESTINATION_NAME: Final = "messaging.destination.name"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_MESSAGE_BODY_SIZE: Final = "messaging.message.body.size"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_SYSTEM_NATS: Final = "nats"
OPERATION_TYPE_SEND: Final = "send"
OPERATION_TYPE_PROCESS: Final = "process"

# SAGE's own.
CALL_VERB: Final = "sage.call.verb"
MAILBOX_MS: Final = "sage.call.mailbox_ms"
BUDGET_MS: Final = "sage.budget_ms"
REQUEST_ID: Final = "sage.request.id"
CLIENT_REQUEST_ID: Final = "sage.client_request.id"
ATTEMPT: Final = "sage.request.attempt"
POOL: Final = "sage.pool"
TENANT: Final = "sage.tenant"
SLO_CLASS: Final = "sage.slo_class"
WORKER_ID: Final = "sage.worker.id"
QUEUE_MS: Final = "sage.queue_ms"
TTFT_MS: Final = "sage.ttft_ms"
BATCH_ITEMS: Final = "sage.batch.items"
PIPELINE: Final = "sage.pipeline.name"
NODE: Final = "sage.pipeline.node"
JOB_ID: Final = "sage.job.id"
LINK_KIND: Final = "sage.link"
LINK_RETRY_OF: Final = "retry_of"

# Spans, by the stage of a request's life that they stand for; consumers group time by them. After SPAN_SUBMIT comes
# the pool, after SPAN_NODE the node's id, after SPAN_HANDLE the call's verb.
SPAN_SUBMIT: Final = "submit"
SPAN_QUEUE: Final = "queue"
SPAN_DISPATCH: Final = "dispatch"
SPAN_PERFORM: Final = "perform"
SPAN_PREFILL: Final = "prefill"
SPAN_DECODE: Final = "decode"
SPAN_NODE: Final = "node"
SPAN_JOB: Final = "job"
SPAN_HANDLE: Final = "handle"

# Events within a span.
EVENT_EXCEPTION: Final = "exception"
EVENT_SUBMITTED_AGAIN: Final = "submitted again"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"
