"""Names of span attributes, metrics labels and span names. No attribute name is spelled anywhere else.

GenAI: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
Messaging: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from __future__ import annotations

from typing import Final

# Service resource.
SERVICE_NAME: Final = "service.name"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
SERVICE_VERSION: Final = "service.version"
HOST_NAME: Final = "host.name"
PROCESS_PID: Final = "process.pid"

# General.
ERROR_TYPE: Final = "error.type"
HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

# GenAI. Prompts and completions have no name here on purpose: they are never recorded.
GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P: Final = "gen_ai.request.top_p"
GEN_AI_REQUEST_SEED: Final = "gen_ai.request.seed"
GEN_AI_REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
OPERATION_CHAT: Final = "chat"
OPERATION_TEXT_COMPLETION: Final = "text_completion"
OPERATION_EMBEDDINGS: Final = "embeddings"
OPERATION_EXECUTE_TOOL: Final = "execute_tool"

# Messaging.
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_SYSTEM_NATS: Final = "nats"
MESSAGING_DESTINATION_NAME: Final = "messaging.destination.name"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_MESSAGE_BODY_SIZE: Final = "messaging.message.body.size"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"

# SAGE's own.
ACTOR_KIND: Final = "sage.actor.kind"
ACTOR_EPOCH: Final = "sage.actor.epoch"
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
POLICY: Final = "sage.policy"
QUEUE_MS: Final = "sage.queue_ms"
TTFT_MS: Final = "sage.ttft_ms"
BATCH_ITEMS: Final = "sage.batch.items"
PIPELINE: Final = "sage.pipeline.name"
NODE: Final = "sage.pipeline.node"
JOB_ID: Final = "sage.job.id"

# Span names that stand for a stage of a request's life; consumers group time by them.
SPAN_QUEUE: Final = "queue"
SPAN_DISPATCH: Final = "dispatch"
SPAN_PREFILL: Final = "prefill"
SPAN_DECODE: Final = "decode"
SPAN_NODE: Final = "node"
