#!/usr/bin/env bash
# Install vLLM's CPU build in .venv-vllm and run the tests that need it, from engine to HTTP and back.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/vllm/setup_venv.sh
exec .venv-vllm/bin/python -m pytest -q -m vllm tests/vllm
