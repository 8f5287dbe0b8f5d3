"""The code of a TorchScript archive: read by Python's parser, held against what a classifier needs, and written anew.

TorchScript's own lexer differs from Python's (a lone carriage return ends no comment there), and a name that an escape
hides is read by one as the other reads it. What is loaded is therefore not the text of the file but the text that was
understood, written by `ast.unparse`: no comments, no continued lines, every text quoted as Python quotes it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Set

from debride_adapters.torch.operators import allowed, is_operator, usual_scale

_TEXT = re.compile(rb"[\n\x20-\x7e]*")
_PLAIN = re.compile(r"[\t\n\r\x20-\x7e\x80-\xff]*")  # what goes to the screen without moving its cursor
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})|\\.|[\x80-\xff]")
_FIELD = re.compile(r"[\w :/+-]+", re.ASCII)
_NODES = (
    ast.Module, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.AnnAssign, ast.Return, ast.Expr,
    ast.If, ast.For, ast.While, ast.With, ast.withitem, ast.Pass, ast.Call, ast.keyword, ast.Attribute, ast.Name,
    ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Subscript, ast.Slice, ast.UnaryOp, ast.BinOp, ast.BoolOp,
    ast.Compare, ast.IfExp, ast.unaryop, ast.operator, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip
_BUILTINS = (
    "annotate", "unchecked_cast", "uninitialized", "getattr", "isinstance", "range", "int", "float", "bool", "str",
)  # fmt: skip
Bound = dict[str, list[ast.AST | None]]
_ROOTS = ("torch", "ops", "CONSTANTS", "__torch__")


def read_code(data: bytes) -> ast.Module:
    """The syntax tree of one file of the archive.

    Raises:
        ValueError: bytes that not every reader takes for the same, or no TorchScript.
    """
    if not _TEXT.fullmatch(data):
        raise ValueError("holds other characters than plain ones and line feeds")
    return ast.parse(data)


def write_code(tree: ast.Module) -> bytes:
    """`tree` as TorchScript, whose texts hold bytes and know octal escapes only."""
    return _ESCAPE.sub(_octal, ast.unparse(tree)).encode("ascii") + b"\n"


def _octal(found: re.Match[str]) -> str:
    text = found.group()
    if text[0] != "\\":
        return f"\\{ord(text):03o}"
    return f"\\{int(found.group(1), 16):03o}" if found.group(1) else "\\015" if text == "\\r" else text


def defined(module: str, tree: ast.Module) -> list[str]:
    """The full names of the classes and functions in `tree`, the code of `module`, in order."""
    return [f"{module}.{part.name}" for part in tree.body if isinstance(part, (ast.ClassDef, ast.FunctionDef))]


def reasons(tree: ast.Module, known: Set[str]) -> Iterator[str]:
    """What in the code of a file a classifier does not need; `known` are the names that the archive defines."""
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            yield type(node).__name__
        yield from _unusual(node)
    for chain in _chains(tree):
        yield from _beyond(chain, known)
    for part in tree.body:
        for function in part.body if isinstance(part, ast.ClassDef) else [part]:
            yield from _calls(function)


def _unusual(node: ast.AST) -> Iterator[str]:
    """What TorchScript might read otherwise than Python does, or what is not as PyTorch writes it."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield "a text that does nothing"
    if isinstance(node, ast.Constant) and not _is_plain(node.value):
        yield f"the constant {node.value!r}"[:40]
    if isinstance(node, ast.FunctionDef) and (node.decorator_list or any(map(_defines, node.body))):
        yield f"a function around {node.name}"
    if isinstance(node, ast.ClassDef) and (node.decorator_list or node.keywords or len(node.bases) > 1):
        yield f"the class {node.name}"
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (node.name in _ROOTS or node.name == "__setstate__"):
        # it runs while the archive is loaded, before the graphs can be looked at
        yield f"def {node.name}"
    if isinstance(node, ast.arg) and node.arg in _ROOTS:
        yield f"{node.arg} as a name of its own"
    if isinstance(node, ast.Name) and node.id in _ROOTS and not isinstance(node.ctx, ast.Load):
        yield f"{node.id} as a name of its own"


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return _PLAIN.fullmatch(value) is not None
    return value is None or isinstance(value, (bool, int, float, complex))


def _defines(node: ast.AST) -> bool:
    return any(isinstance(inner, (ast.FunctionDef, ast.ClassDef)) for inner in ast.walk(node))


def _chains(tree: ast.AST) -> Iterator[list[str]]:
    """Every name with the attributes that follow it: `ops.prim.device` is ["ops", "prim", "device"]."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and id(node) not in inner and (chain := _chain(node)):
            yield chain


def _chain(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    before = _chain(node.value) if isinstance(node, ast.Attribute) else []
    return [*before, node.attr] if before and isinstance(node, ast.Attribute) else []


def _beyond(chain: list[str], known: Set[str]) -> Iterator[str]:
    """A part of the way to a name is none: with `t = __torch__.torch`, `t.classes` would be PyTorch's own classes."""
    prefixes = (".".join(chain[: end + 1]) for end in range(1, len(chain)))
    fits = {
        "torch": len(chain) == 2 and allowed("aten", chain[-1]),
        "ops": len(chain) == 3 and allowed(*chain[1:]),
        "CONSTANTS": len(chain) == 2 and re.fullmatch(r"c\d+", chain[-1], re.ASCII) is not None,
        "__torch__": chain[1:3] != ["torch", "classes"] and any(prefix in known for prefix in prefixes),
    }
    if not fits.get(chain[0], True):
        yield ".".join(chain)


def _calls(function: ast.AST) -> Iterator[str]:
    """What `function` calls beyond PyTorch's permitted operators and what the archive itself defines.

    A value's attribute may be an operator (`x.save("file")`), and a name may stand for one (`f = x.save`).
    """
    bound = _bound(function)
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        if any(word.arg in (None, "out") for word in node.keywords):
            yield "out="  # makes another tensor smaller or larger
        if isinstance(node.func, ast.Attribute):
            yield from _method(node.func)
            if node.func.attr.lstrip("_").startswith("upsample"):
                yield from _scales(node)
            if node.func.attr == "_native_multi_head_attention" and not _has_heads(node):
                yield ast.unparse(node)[:60]
        elif not isinstance(node.func, ast.Name):
            yield ast.unparse(node.func)[:60]
        elif node.func.id in bound:
            for value in bound[node.func.id]:
                yield from _function(node.func.id, value)
        elif node.func.id not in _BUILTINS:
            yield node.func.id
        if isinstance(node.func, ast.Name) and node.func.id == "getattr":
            yield from _field(node)
        if isinstance(node.func, ast.Name) and node.func.id == "unchecked_cast":
            yield from _cast(node, function, bound)


def _scales(call: ast.Call) -> Iterator[str]:
    """Where to resize by are None or written numbers of a usual size: of others PyTorch makes indices out of bounds."""
    for argument in (*call.args[2:], *(word.value for word in call.keywords)):
        for part in argument.elts if isinstance(argument, (ast.List, ast.Tuple)) else [argument]:
            number = part.value if isinstance(part, ast.Constant) else ...
            if not (number is None or isinstance(number, bool) or usual_scale(number)):
                yield ast.unparse(call)[:60]


def _has_heads(call: ast.Call) -> bool:
    """Whether the width and the number of heads are written out; PyTorch divides by them without asking."""
    return len(call.args) > 4 and all(
        isinstance(part, ast.Constant) and type(part.value) is int and part.value > 0 for part in call.args[3:5]
    )


def _method(called: ast.Attribute) -> Iterator[str]:
    chain = _chain(called)
    judged = not chain or chain[0] not in ("torch", "ops")  # those are judged wherever they are
    if judged and is_operator(called.attr) and not allowed("aten", called.attr):
        yield called.attr


def _function(name: str, value: ast.AST | None) -> Iterator[str]:
    """PyTorch writes `_0 = __torch__.a.function`, then `_0(x)`."""
    chain = _chain(value) if value is not None else []
    if chain[:1] != ["__torch__"] or not isinstance(value, ast.Attribute):
        yield name
    else:
        yield from _method(value)


def _field(call: ast.Call) -> Iterator[str]:
    """PyTorch writes `getattr` only for names such as "0", which cannot be written out."""
    field = call.args[1] if len(call.args) == 2 else None
    value = field.value if isinstance(field, ast.Constant) else None
    if not isinstance(value, str) or not _FIELD.fullmatch(value) or value.isidentifier():
        yield f"getattr {value!r}"[:60]


def _cast(call: ast.Call, function: ast.AST, bound: Bound) -> Iterator[str]:
    """A cast is not checked: it may not invent the fields of an object or the length of a tuple."""
    kind, value = (ast.unparse(node) for node in call.args) if len(call.args) == 2 else ("", "")
    given = {f"{node.arg}: {ast.unparse(node.annotation)}" for node in _arguments(function) if node.annotation}
    unwraps = f"{value}: Optional[{kind}]" in given and bound.get(value) == [None]
    if not unwraps and not re.fullmatch(r"(Tensor|int|float|bool|str|NoneType|Optional|Union|List|Dict|[][, ])+", kind):
        yield ast.unparse(call)[:60]


def _arguments(function: ast.AST) -> Iterator[ast.arg]:
    return (node for node in ast.walk(function) if isinstance(node, ast.arg))


def _bound(function: ast.AST) -> Bound:
    """What is assigned to each name in `function`; None where it is no single value."""
    bound: Bound = {}
    single = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            bound.setdefault(node.targets[0].id, []).append(node.value)
            single.add(id(node.targets[0]))
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            bound.setdefault(node.arg, []).append(None)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) and id(node) not in single:
            bound.setdefault(node.id, []).append(None)
    return bound
