#!/usr/bin/env bash
# Install vLLM's CPU build in .venv-vllm and run the tests that need it, from engine to HTTP and back.
# What passed, with versions and duration, is left in loadtests/results/test-vllm.txt.
set -euo pipefail
cd "$(dirname "$0")/../.."
report=loadtests/results/test-vllm.txt
tests/vllm/setup_venv.sh
mkdir -p "$(dirname "$report")"
{
    echo "make test-vllm, $(date -u +%F)"
    .venv-vllm/bin/python -c 'import platform, torch, vllm
print("vLLM", vllm.__version__, "on torch", torch.__version__, "and Python", platform.python_version())'
    .venv-vllm/bin/python -m pytest -v --no-header -m vllm tests/vllm
} 2>&1 | tee "$report"
