"""The pickles of a TorchScript archive, read with stand-ins for what they build, before PyTorch's own reader.

That reader runs no code but `__setstate__`, and trusts what it reads: it takes a weight to be as long as the pickle
says, and an object to have the fields that the code declares, and looks up both without asking again.
"""

from __future__ import annotations

import ast
import io
import pickle
import re
from collections.abc import Iterable, Mapping
from typing import Any

_CLASS = re.compile(r"__torch__(\.\w+)+", re.ASCII)
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}  # fmt: skip
_PLAIN = {"int": int, "float": float, "bool": bool, "str": str, "NoneType": type(None)}
Fields = Mapping[str, Mapping[str, ast.expr]]


class _Storage:
    """A kind of weights by name, as PyTorch writes it; a bare number would mean another kind to PyTorch's reader."""

    def __init__(self, size: int) -> None:
        self.size = size


class _Tensor:
    def __init__(self, numel: int) -> None:
        self.numel = numel


class _Object:
    """Of a class of the archive; its fields are those that it had when it was built, as PyTorch reads them."""

    name = ""
    state: Mapping[str, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        if self.state is not None or not isinstance(state, dict):
            raise ValueError("an object is built twice, or of other than fields")
        self.state = dict(state)


class _Function:
    """A function of the pickle; `__setstate__` is there since PyTorch would call the function in its place."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "OrderedDict":
            return None
        return arguments[0] if self.name in _LISTS else _rebuilt(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"{self.name} is no object")


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, weights: Mapping[str, bytes]) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False)
        self._weights = weights

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _SIZES:
            return _Storage(_SIZES[name])
        if module == "torch.jit._pickle" and name in _LISTS:
            return _Function(name)
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict")):
            return _Function(name)
        full = f"{module}.{name}"
        if _CLASS.fullmatch(full) and not full.startswith("__torch__.torch.classes"):
            return type("Object", (_Object,), {"name": full})
        raise ValueError(f"needs {full[:80]}, which no classifier needs")

    def persistent_load(self, pid: Any) -> _Tensor:
        if type(pid) is not tuple or tuple(map(type, pid)) != (str, _Storage, str, str, int) or pid[0] != "storage":
            raise ValueError("holds a weight without a size")
        _, kind, key, _, numel = pid
        if not 0 <= numel * kind.size <= len(self._weights.get(key, b"")):
            raise ValueError(f"says of weight {str(key)[:20]} that it is longer than it is")
        return _Tensor(numel)


def _rebuilt(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> _Tensor:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Tensor) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("holds a tensor without a size")
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if 0 not in size and end > storage.numel:
        raise ValueError("holds a tensor that is larger than its weights")
    return _Tensor(storage.numel)


def read_objects(data: bytes, weights: Mapping[str, bytes]) -> Any:
    """What the pickle `data` builds, in stand-ins; `weights` are the entries beside it by their numbers.

    Raises:
        ValueError, and what a damaged pickle raises: it needs more than tensors and objects of the archive's classes,
            or a tensor reaches beyond its weights.
    """
    return _Reader(data, weights).load()


def declared(module: str, tree: ast.Module) -> dict[str, dict[str, ast.expr]]:
    """The fields of each class in `tree`, the code of `module`, with their types."""
    found: dict[str, dict[str, ast.expr]] = {}
    for part in tree.body:
        if isinstance(part, ast.ClassDef):
            fields = list(_fields(part.body))
            found[f"{module}.{part.name}"] = dict(fields)
            if len(fields) != len(found[f"{module}.{part.name}"]):
                raise ValueError(f"declares a field of {part.name} twice")
    return found


def _fields(body: Iterable[ast.stmt]) -> Iterable[tuple[str, ast.expr]]:
    for node in body:
        if isinstance(node, ast.AnnAssign) and node.value is None and isinstance(node.target, ast.Name):
            yield node.target.id, node.annotation
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            yield ast.literal_eval(node.targets[0].slice), node.value  # __annotations__["0"] = Tensor


def check_model(value: Any, fields: Fields) -> None:
    """Raises ValueError unless the model and every object in it has the fields that its class declares."""
    if not isinstance(value, _Object):
        raise ValueError("holds no model")
    _check_object(value, fields, set())


def check_constants(values: Any) -> None:
    """Raises ValueError unless `values` are tensors, numbers and texts: others would need a type to be held against."""
    known = (_Tensor, *_PLAIN.values())
    if not isinstance(values, tuple) or not all(isinstance(value, known) for value in values):
        raise ValueError("holds other than tensors, numbers and texts")


def _check_object(value: _Object, fields: Fields, seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    if value.state is None or value.name not in fields:
        raise ValueError(f"holds a {value.name[:80]} that its code does not know")
    for name, annotation in fields[value.name].items():
        if name not in value.state or not _fits(value.state[name], annotation, fields, seen):
            raise ValueError(f"has no {ast.unparse(annotation)[:60]} as {name[:40]} of {value.name[:80]}")


def _fits(value: Any, annotation: ast.expr, fields: Fields, seen: set[int]) -> bool:
    if isinstance(annotation, ast.Name):
        return type(value) is (_Tensor if annotation.id == "Tensor" else _PLAIN.get(annotation.id))
    if isinstance(annotation, ast.Attribute):
        if not isinstance(value, _Object) or value.name != ast.unparse(annotation):
            return False
        _check_object(value, fields, seen)
        return True
    if not isinstance(annotation, ast.Subscript) or not isinstance(annotation.value, ast.Name):
        return False
    inner = annotation.slice
    kinds = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    values: list[Any]
    match annotation.value.id:
        case "Optional":
            return value is None or _fits(value, inner, fields, seen)
        case "List" if type(value) is list:
            values, kinds = value, kinds * len(value)
        case "Dict" if type(value) is dict and len(kinds) == 2:
            values, kinds = [part for item in value.items() for part in item], kinds * len(value)
        case "Tuple" if type(value) is tuple:
            values = list(value)
        case _:
            return False
    return len(values) == len(kinds) and all(
        _fits(part, kind, fields, seen) for part, kind in zip(values, kinds, strict=True)
    )
