"""How anything uses the cluster: requests and their streams, the inference clients, durable jobs."""

from sage_client.catalog import AUTO, resolve_pool, served_models
from sage_client.client import ChatResult, Messages, SamplingOptions, UnifiedInferenceClient
from sage_client.jobs import FINAL_STATUSES, JobClient
from sage_client.open_request import OpenRequest, RequestSink
from sage_client.request_port import RequestPort
from sage_client.request_state import RequestState, RetryRules
from sage_client.request_stream import RequestStream
from sage_client.sync_client import SyncInferenceClient
from sage_client.work_size import measure

__all__ = [
    "AUTO",
    "FINAL_STATUSES",
    "ChatResult",
    "JobClient",
    "Messages",
    "OpenRequest",
    "RequestPort",
    "RequestSink",
    "RequestState",
    "RequestStream",
    "RetryRules",
    "SamplingOptions",
    "SyncInferenceClient",
    "UnifiedInferenceClient",
    "measure",
    "resolve_pool",
    "served_models",
]
