"""transformers without what nobody here uses of torch: its compiler and its distributed tensors.

As transformers is imported it marks a few functions for torch's compiler and looks distributed
tensors up. Both are imported for that, with SymPy and Triton: a third of the modules, of the time
until a fresh process serves, and of its memory. No model is compiled by torch or sharded over
processes here (`hotswap.config.settle_threads` tells torch to compile nothing).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from threading import RLock
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.distributed

COMPILER = "torch._dynamo"
_MASKS = f"{COMPILER}._trace_wrapped_higher_order_op"
_MASK = "TransformGetItemToIndex"
"""A class in there, which `transformers.masking_utils` imports and seldom uses."""

F = TypeVar("F", bound=Callable[..., Any])

_arrival = RLock()


def import_transformers() -> None:
    """Import it so that torch's compiler stays out until somebody wants it, and distributed tensors
    for good: for transformers, this torch was built without them, as it may be.

    Where the compiler or transformers has been imported already, that stays as it is.
    """
    if COMPILER in sys.modules:
        import_module("transformers")
        return
    torch._dynamo = sys.modules[COMPILER] = _Compiler(COMPILER)
    sys.meta_path.insert(0, _CompilersParts())
    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    sys.modules[_MASKS] = _masks()
    try:
        # It remembers the answer, and all its modules go by that.
        import_module("transformers.utils.import_utils").is_torch_distributed_available()
        import_module("transformers.masking_utils")
    finally:
        torch.distributed.is_available = is_available
        del sys.modules[_MASKS]


class _Compiler(ModuleType):
    """``torch._dynamo`` until somebody wants more of it than marks on functions and tensors; then
    the real one takes its place. What had been marked until then is unknown to that one, which
    matters to nobody who does not compile it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []
        self.__spec__ = ModuleSpec(name, None, is_package=True)

    def disable(self, fn: F | None = None, *_: Any, **__: Any) -> F | Callable[[F], F]:
        return self._unmarked if fn is None else fn

    def _unmarked(self, fn: F) -> F:
        return fn

    allow_in_graph = assume_constant_result = disallow_in_graph = forbid_in_graph = _unmarked

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    graph_break = mark_dynamic = mark_static = mark_static_address = maybe_mark_dynamic = _nothing

    def is_compiling(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real_compiler(), name)


class _CompilersParts(MetaPathFinder, Loader):
    """Finds a module inside ``torch._dynamo`` while that is not the real one: in the real one."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        standing_in = isinstance(sys.modules.get(COMPILER), _Compiler)
        if not standing_in or not fullname.startswith(f"{COMPILER}."):
            return None
        _real_compiler()
        import_module(fullname)
        return spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It has been."""


def _masks() -> ModuleType:
    """Stands in for the module of that name while transformers imports the class from it."""

    def made(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(_MASKS), _MASK)(*args, **kwargs)

    module = ModuleType(_MASKS)
    setattr(module, _MASK, made)
    return module


def _real_compiler() -> ModuleType:
    with _arrival:
        if isinstance(sys.modules.get(COMPILER), _Compiler):
            del sys.modules[COMPILER]
            vars(torch).pop("_dynamo", None)
        return import_module(COMPILER)
