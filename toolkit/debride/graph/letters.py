"""Products of two tensors in Einstein's notation: MatMul, Gemm and Einsum in one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters

from debride.graph.ir import Node

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Letters:
    """`terms`: (input position, a letter per axis); letters that `out` lacks are summed over."""

    terms: tuple[tuple[int, str], ...]
    out: str

    def sizes(self, shapes: Sequence[Shape]) -> dict[str, int]:
        """The size of each letter; an axis of one entry broadcasts."""
        found: dict[str, int] = {}
        for position, term in self.terms:
            for letter, size in zip(term, shapes[position], strict=True):
                found[letter] = max(found.get(letter, 1), size)
        return found


def einsum_of(node: Node, shapes: Sequence[Shape]) -> Letters | None:
    """`node` (MatMul, Gemm or Einsum) with inputs of `shapes` as letters; None where it has no such form."""
    if node.op == "MatMul":
        return _matmul(shapes[0], shapes[1])
    if node.op == "Gemm":
        left = "ba" if node.attributes.get("transA", 0) else "ab"
        right = "cb" if node.attributes.get("transB", 0) else "bc"
        return Letters(terms=((0, left), (1, right)), out="ac")
    letters = equation_of(str(node.attributes.get("equation", "")))
    if letters is None or len(letters.terms) != len(shapes) or len(shapes) > 2:
        return None
    fits = all(len(term) == len(shapes[position]) for position, term in letters.terms)
    return letters if fits else None


def _matmul(one: Shape, other: Shape) -> Letters | None:
    if not one or not other or max(len(one), len(other)) > 20:
        return None
    batch = ascii_letters[: max(len(one), len(other), 2) - 2]
    left = "y" if len(one) == 1 else batch[len(batch) - len(one) + 2 :] + "xy"
    right = "y" if len(other) == 1 else batch[len(batch) - len(other) + 2 :] + "yz"
    out = batch + ("" if len(one) == 1 else "x") + ("" if len(other) == 1 else "z")
    return Letters(terms=((0, left), (1, right)), out=out)


def equation_of(equation: str) -> Letters | None:
    """An Einsum's equation as letters; None for an ellipsis, a repeated letter, or one that no operand has."""
    equation = equation.replace(" ", "")
    inputs, arrow, out = equation.partition("->")
    terms = inputs.split(",")
    if not arrow:  # in the order of the alphabet, those that occur once
        out = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
    repeated = any(len(set(term)) != len(term) for term in (*terms, out))
    if "." in equation or repeated or not set(out) <= set(inputs) - {","}:
        return None
    return Letters(terms=tuple(enumerate(terms)), out=out)
