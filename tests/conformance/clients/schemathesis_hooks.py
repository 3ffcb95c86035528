"""Hooks for schemathesis, in its own environment: random requests that get past the name of a model.

Only data that the document allows is changed; what it forbids is sent as it was made.
"""

import schemathesis

_SHORT = 32


@schemathesis.hook
def before_call(context, case, kwargs):
    is_allowed = case.meta is not None and case.meta.generation.mode.is_positive
    if not is_allowed or not isinstance(case.body, dict) or "model" not in case.body:
        return
    case.body["model"] = "auto"
    for limit in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(case.body.get(limit), int):
            case.body[limit] = min(case.body[limit], _SHORT)
