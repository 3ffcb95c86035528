"""`GET /v1/models` and `/v1/models/{id}`: what can be asked for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from sage_wire.messages import ServedModel

__all__ = ["ModelBody", "ModelsBody", "model_body", "models_body"]

_encode = msgspec.json.Encoder().encode


class ModelBody(msgspec.Struct, frozen=True):
    """One model. `tasks` and the three after it are our extensions."""

    id: str
    object: str
    created: int
    owned_by: str
    tasks: list[str]
    max_model_len: int | UnsetType = UNSET
    dimensions: int | UnsetType = UNSET
    description: str | UnsetType = UNSET


class ModelsBody(msgspec.Struct, frozen=True):
    """All models."""

    object: str
    data: list[ModelBody]


def model_body(models: Sequence[ServedModel], created: int) -> bytes:
    """Return one model that is served for every task in `models`."""
    return _encode(_model(models, created))


def models_body(models: Sequence[ServedModel], created: int) -> bytes:
    """Return the list of models, one entry per name."""
    by_name: dict[str, list[ServedModel]] = {}
    for model in models:
        by_name.setdefault(model.name, []).append(model)
    return _encode(ModelsBody("list", [_model(group, created) for group in by_name.values()]))


def _model(models: Sequence[ServedModel], created: int) -> ModelBody:
    first = models[0]
    return ModelBody(
        first.name,
        "model",
        created,
        "sage",
        [model.task for model in models],
        max_model_len=first.max_context or UNSET,
        dimensions=first.dim or UNSET,
        description=first.description or UNSET,
    )
