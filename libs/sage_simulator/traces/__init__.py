"""Traces of LLM services as their publishers ship them: one adapter per format behind `read_trace`."""

from sage_simulator.traces.reading import TraceFormat, TraceOptions, detect_format, read_trace
from sage_simulator.traces.servegen import ServegenOptions
from sage_simulator.traces.trace import EMBED, LLM, RERANK, RETRIEVE, Labels, Stages, Trace

__all__ = [
    "EMBED",
    "LLM",
    "RERANK",
    "RETRIEVE",
    "Labels",
    "ServegenOptions",
    "Stages",
    "Trace",
    "TraceFormat",
    "TraceOptions",
    "detect_format",
    "read_trace",
]
