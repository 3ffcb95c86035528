from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "deploy" / "ansible" / "wheelhouse.py"


@pytest.fixture(scope="module")
def wheelhouse() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sage_wheelhouse", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def locked(wheelhouse: ModuleType, name: str) -> object:
    return wheelhouse.Locked(name, "1.0", "0" * 64, f"{name}-1.0-py3-none-any.whl")


@pytest.mark.parametrize(
    "name", ["nvidia-cublas", "nvidia-cuda-runtime-cu12", "cuda-pathfinder", "triton", "cupy-cuda12x"]
)
def test_hosts_without_a_gpu_are_never_given_cuda(wheelhouse: ModuleType, name: str) -> None:
    lines = [locked(wheelhouse, "torch"), locked(wheelhouse, name)]
    with pytest.raises(wheelhouse.Refused, match=rf"embedding-worker would bring CUDA .*{name}"):
        wheelhouse.refuse_cuda("embedding-worker", lines)


def test_names_that_only_look_like_cuda_are_taken(wheelhouse: ModuleType) -> None:
    names = ["torch", "numpy", "tritonparse", "nvidiaish", "barracuda"]
    wheelhouse.refuse_cuda("embedding-worker", [locked(wheelhouse, name) for name in names])


def test_a_lock_line_is_what_pip_reads_with_require_hashes(wheelhouse: ModuleType) -> None:
    assert str(locked(wheelhouse, "torch")) == f"torch==1.0 --hash=sha256:{'0' * 64}"


def test_every_kind_of_actor_has_a_lock_file_of_extras_that_exist(wheelhouse: ModuleType) -> None:
    import tomllib

    project = tomllib.loads((SCRIPT.parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    known = set(project["optional-dependencies"])
    roles = {**wheelhouse.CPU_ROLES, **wheelhouse.GPU_ROLES}
    assert {extra for extras in roles.values() for extra in extras} <= known
    kinds = {"gateway", "planner", "scheduler", "llm-worker", "embedding-worker", "operator-worker"}
    assert kinds | {"nats"} <= set(wheelhouse.CPU_ROLES)
    assert "vllm" not in {extra for extras in wheelhouse.CPU_ROLES.values() for extra in extras}
