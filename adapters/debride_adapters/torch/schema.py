"""The JSON of a torch.export program: every text in it is held against what a classifier's program can need."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from debride.errors import ModelError
from debride_adapters.torch.operators import usual_scale

_TARGET = re.compile(
    r"torch\.ops\.(aten|higher_order)\.\w+(\.\w+)?|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|"
    r"eq|ne|lt|le|gt|ge|and_|or_)|math\.(ceil|floor|trunc)|torch\.sym_(int|float|max|min|not|sum|sqrt)"
)
_FORBIDDEN_OPS = re.compile(
    r"torch\.ops\.(aten\.(save|from_file|set_|_print|_nested_view_from_buffer\w*|resize\w*_)\b.*"
    # These trust the sizes and indices that they are given.
    r"|aten\.(\w*segment_reduce\w*|\w*weight_norm\w*|lstm|gru|rnn_\w+|\w*embedding_bag\w*|grid_sampler\w*|as_strided\w*"
    r"|_index_put_impl\w*|_unsafe_\w+)\b.*"
    r"|higher_order\.(?!wrap_with_set_grad_enabled$|wrap_with_autocast$).*)"
)
_PLAIN = re.compile(r"[\w.-]*", re.ASCII)
_STRING = re.compile(r"[\w.:+,> -]*", re.ASCII)  # an argument such as an einsum's equation
_FREER = ("as_string", "as_strings", "torch_version")
_SYMBOL = re.compile(r"[a-z]{1,3}\d{1,6}")
_FUNCTION = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|FloorDiv|CeilDiv|CleanDiv|PythonMod|CeilToInt|FloorToInt"
    r"|IntTrueDiv|FloatTrueDiv|PowByNatural|TruncToInt|RoundToInt|ToFloat|Identity|Eq|Ne|Lt|Le|Gt|Ge|Equality"
    r"|Unequality|LessThan|GreaterThan|StrictLessThan|StrictGreaterThan|And|Or|Not|Where"
)
_EXPRESSION = (ast.Expression, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare,
               ast.operator, ast.unaryop, ast.cmpop, ast.expr_context)  # fmt: skip
_TREES = ("builtins.tuple", "builtins.list", "builtins.dict", None)
MAX_EXPRESSION = 500


def audited(path: Path, program: Any) -> dict[str, Any]:
    """`program` without its remarks and guards, which become Python source, and with every text checked.

    Raises:
        ModelError: a text could become code, or an operator is none of PyTorch's own; it is named.
    """
    try:
        kept = _stripped(program)
        reason = next(_reasons(kept, ""), None)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: its program is damaged; export the model again") from error
    if reason:
        raise ModelError(f"{path}: its program {reason}; nothing was run; export the model anew from a plain network")
    return kept


def _stripped(program: Any) -> dict[str, Any]:
    module = dict(_without_remarks(program["graph_module"]), treespec_namedtuple_fields={})
    return dict(program, graph_module=module, guards_code=[])


def _without_remarks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: {} if key == "metadata" else _without_remarks(child) for key, child in value.items()}
    return [_without_remarks(child) for child in value] if isinstance(value, list) else value


def on_processor(value: Any) -> Any:
    """`value` with every device that it names replaced: what was exported on a GPU loads where there is none."""
    if isinstance(value, dict):
        if value.keys() == {"type", "index"}:
            return {"type": "cpu", "index": None}
        return {key: on_processor(child) for key, child in value.items()}
    return [on_processor(child) for child in value] if isinstance(value, list) else value


def _reasons(value: Any, key: str) -> Iterator[str]:
    """What is wrong within `value`, found under `key`."""
    if isinstance(value, dict):
        if str(value.get("target")).startswith("torch.ops.aten.upsample"):
            yield from _scales(value.get("inputs"))
        for name, child in value.items():
            if not _PLAIN.fullmatch(name):
                yield f"has the name '{name[:60]}'"
            yield from _reasons(child, name)
    elif isinstance(value, list):
        for child in value:
            yield from _reasons(child, key)
    elif isinstance(value, str) and (reason := _reason(value, key)):
        yield reason


def _scales(value: Any) -> Iterator[str]:
    """Of a scale that is none PyTorch makes indices out of bounds."""
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(child, float) and not usual_scale(child):
            yield f"resizes by {child}"
        yield from _scales(child)


def _reason(text: str, key: str) -> str:
    if key in ("target", "as_operator"):
        known = _TARGET.fullmatch(text) and not _FORBIDDEN_OPS.fullmatch(text)
        return "" if known else f"calls {text[:60]}, which no classifier needs"
    if key == "expr_str":
        return "" if _is_expression(text) else f"has the size '{text[:60]}'"
    if key in ("in_spec", "out_spec"):
        return "" if _is_tree(text) else "has inputs or outputs that are no plain tuples, lists or dictionaries"
    if key in ("custom_obj_name", "class_fqn", "blob"):
        return f"holds the object {text[:60]}"
    allowed = (_STRING if key in _FREER else _PLAIN).fullmatch(text)
    return "" if allowed else f"has the text '{text[:60]}' as {key}"


def _is_expression(text: str) -> bool:
    """Whether `text` is arithmetic on symbols; sympy would run anything else as Python."""
    try:
        tree = ast.parse(text, mode="eval") if len(text) <= MAX_EXPRESSION else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return tree is not None and all(_is_arithmetic(node) for node in ast.walk(tree))


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return _FUNCTION.fullmatch(node.id) is not None or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _SYMBOL.fullmatch(node.value) is not None
    return isinstance(node, _EXPRESSION) and (not isinstance(node, ast.Call) or isinstance(node.func, ast.Name))


def _is_tree(text: str) -> bool:
    """Whether `text` describes nested plain containers; others name a class or module that would be imported."""
    try:
        version, root = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    return isinstance(version, int) and _is_plain_tree(root)


def _is_plain_tree(tree: Any) -> bool:
    context = tree.get("context")
    keys = json.loads(context) if isinstance(context, str) else context
    plain = keys is None or (isinstance(keys, list) and all(isinstance(k, str) and _PLAIN.fullmatch(k) for k in keys))
    return plain and tree.get("type") in _TREES and all(_is_plain_tree(child) for child in tree["children_spec"])
