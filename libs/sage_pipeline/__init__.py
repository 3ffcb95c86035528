"""Declared pipelines: YAML, Python and JSON Schema over one typed graph; compiled to a plan; run by a state machine."""

from sage_pipeline.build import build, parse_pipeline
from sage_pipeline.calls import Call, Calls, Reply, Resolve, lower
from sage_pipeline.compiler import compile_pipeline
from sage_pipeline.dsl import (
    Chain,
    NodeSpec,
    chat,
    documents,
    embed,
    index,
    llm,
    parameter,
    pipeline,
    prompt,
    rerank,
    retrieve,
    split,
)
from sage_pipeline.graph import Node, Parameter, Pipeline
from sage_pipeline.nodes import AUTO, CATALOGUE, NodeType, Placement, Port
from sage_pipeline.plan import Plan, Step
from sage_pipeline.problems import Location, PipelineError, Problem
from sage_pipeline.run import PipelineRun
from sage_pipeline.schema import json_schema
from sage_pipeline.values import EdgeType, Value
from sage_pipeline.yaml_source import dump_yaml

__all__ = [
    "AUTO",
    "CATALOGUE",
    "Call",
    "Calls",
    "Chain",
    "EdgeType",
    "Location",
    "Node",
    "NodeSpec",
    "NodeType",
    "Parameter",
    "Pipeline",
    "PipelineError",
    "PipelineRun",
    "Placement",
    "Plan",
    "Port",
    "Problem",
    "Reply",
    "Resolve",
    "Step",
    "Value",
    "build",
    "chat",
    "compile_pipeline",
    "documents",
    "dump_yaml",
    "embed",
    "index",
    "json_schema",
    "llm",
    "lower",
    "parameter",
    "parse_pipeline",
    "pipeline",
    "prompt",
    "rerank",
    "retrieve",
    "split",
]
