"""Policies from users' own files, named `path/to/file.py:ClassName`. Every mistake is one line that names the file."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from sage_core import ConfigurationError
from sage_policy.placement_policy import PlacementPolicy
from sage_policy.policy import Policy
from sage_policy.slo import SloClass

__all__ = ["is_user_policy", "load_user_policy"]

_NAME: Final = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
_MAX_NAME: Final = 128
_HOOKS: Final = {
    "score": ("request", "instance"),
    "may_take": ("request", "instance"),
    "key": ("request",),
    "finished": ("request", "instance", "num_tokens"),
    "handle": ("event", "now"),
}


def is_user_policy(name: str) -> bool:
    """True where the name means a class in a file, rather than a policy of SAGE's own."""
    return ".py" in name


def load_user_policy(
    name: str,
    *,
    max_queued: int,
    seed: int,
    classes: Mapping[str, SloClass] | None = None,
    **options: Any,
) -> Policy:
    """Import the file, check the class, and return an object of it. The file's code runs in this process.

    The constructor is given those of `max_queued`, `seed` and `classes` that it accepts, and all `options`. Raises
    ConfigurationError where the file is missing or fails, or the class is not a policy.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigurationError(f"scheduling policy {name!r} is not of the form path/to/file.py:ClassName")
    path, class_name = Path(match[1]).expanduser(), match[2]
    cls = _find_class(path, class_name)
    parameters = inspect.signature(cls).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    offered = {"max_queued": max_queued, "seed": seed, "classes": classes}
    arguments = {key: value for key, value in offered.items() if takes_all or key in parameters} | options
    try:
        inspect.signature(cls).bind(**arguments)
        policy: Policy = cls(**arguments)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        given = ", ".join(arguments) or "nothing"
        raise _refusal(path, f"{class_name} cannot be made with {given}: {_describe(error)}") from error
    _check_made(path, class_name, policy)
    return policy


def _check_made(path: Path, class_name: str, policy: Policy) -> None:
    if isinstance(policy, PlacementPolicy) and not hasattr(policy, "_pools"):
        problem = f"the constructor of {class_name} does not call super().__init__(**options)"
        raise _refusal(path, f"{problem}; expected that before anything else")
    try:
        name: object = policy.name
    except AttributeError:
        raise _refusal(
            path, f'{class_name} has no name; expected an attribute such as name = "mine"'
        ) from None
    except (Exception, SystemExit) as error:  # a property of the user's
        raise _refusal(path, f"{class_name}.name cannot be read: {_describe(error)}") from error
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > _MAX_NAME:
        shown = repr(name) if len(repr(name)) <= _MAX_NAME else f"{repr(name)[:_MAX_NAME]}…"
        accepted = f"text of 1 to {_MAX_NAME} printable characters"
        raise _refusal(path, f"{class_name}.name is {shown}; expected {accepted}")


def _find_class(path: Path, class_name: str) -> Any:
    if not path.is_file():
        raise ConfigurationError(
            f"scheduling policy {path} does not exist; expected a Python file with the class {class_name}"
        )
    module = _import(path)
    cls = vars(module).get(class_name)
    if not isinstance(cls, type):
        found = [key for key, value in vars(module).items() if _is_policy_of(module, value)]
        raise ConfigurationError(
            f"scheduling policy {path} has no class {class_name}; "
            f"its policies are: {', '.join(found) or 'none'}"
        )
    if not callable(getattr(cls, "handle", None)):
        raise _refusal(
            path, f"{class_name} has no method handle(event, now); expected a subclass of PlacementPolicy"
        )
    if inspect.isabstract(cls):
        missing = ", ".join(_call(hook) for hook in sorted(vars(cls)["__abstractmethods__"]))
        raise _refusal(path, f"{class_name} does not define {missing}")
    _check_hooks(path, cls)
    return cls


def _import(path: Path) -> ModuleType:
    # A name per path: two files may have the same name, and one file imported twice gives the same module.
    module_name = f"sage_user_policy_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    loaded = sys.modules.get(module_name)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise _refusal(path, "the file cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses in the file look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything; the line says where
        del sys.modules[module_name]
        raise ConfigurationError(
            f"scheduling policy {path}, line {_line(error, path)}: the file cannot be imported: {_describe(error)}"
        ) from error
    return module


def _check_hooks(path: Path, cls: type) -> None:
    for hook, parameters in _HOOKS.items():
        method = getattr(cls, hook, None)
        if method is None or (hook != "handle" and not issubclass(cls, PlacementPolicy)):
            continue
        try:
            inspect.signature(method).bind(*(None for _ in range(1 + len(parameters))))
        except TypeError:
            found = f"{cls.__name__}.{hook}{inspect.signature(method)}"
            raise _refusal(path, f"{found} must be {_call(hook)}") from None


def _refusal(path: Path, problem: str) -> ConfigurationError:
    return ConfigurationError(f"scheduling policy {path}: {problem}")


def _call(hook: str) -> str:
    return f"{hook}({', '.join(('self', *_HOOKS[hook]))})"


def _is_policy_of(module: ModuleType, value: object) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__ and hasattr(value, "handle")


def _line(error: BaseException, path: Path) -> int | None:
    """Return the line of the file where its import failed."""
    if isinstance(error, SyntaxError):
        return error.lineno
    full = os.path.abspath(path)  # frames name the absolute file, however it was given
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == full]
    return lines[-1] if lines else None


def _describe(error: BaseException) -> str:
    """One line without the position that a SyntaxError repeats."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(f"{type(error).__name__}: {message}".split())
