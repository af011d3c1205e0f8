"""The poster's formulas, such as `c k^2 + sigma c^2 (1 + k^2)`: sums of products, read from text, exact."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from math import prod

#: Variables with their exponents, those of `_ORDER` first.
Monomial = tuple[tuple[str, int], ...]
#: Coefficients by monomial.
Polynomial = Mapping[Monomial, Fraction]

_ORDER = "nck"


def parse(text: str) -> Polynomial:
    """The formula as a polynomial: a space or a bracket multiplies, `^` raises to a whole power.

    Raises:
        ValueError: if the text is none.
    """
    return _added(terms(text))


def terms(text: str) -> list[Polynomial]:
    """The terms that stand outside all brackets, in their order.

    Raises:
        ValueError: if the text is no formula.
    """
    found, rest = _terms(re.findall(r"\d+|[A-Za-z]+|\S", text))
    if rest:
        raise ValueError(f"{text!r} is no formula: {rest[0]!r}")
    return found


def evaluate(polynomial: Polynomial, values: Mapping[str, Fraction | int]) -> Fraction:
    """The value, exactly.

    Raises:
        KeyError: if a variable has no value.
    """
    return sum(
        (factor * prod(values[name] ** power for name, power in powers) for powers, factor in polynomial.items()),
        start=Fraction(0),
    )


def bounded(powers: Monomial, by: Polynomial) -> bool:
    """Whether a term is of no higher order, in any variable, than one of a polynomial's."""
    own = dict(powers)
    return any(all(power <= dict(other).get(name, 0) for name, power in own.items()) for other in by)


def write(powers: Monomial) -> str:
    """`n c k^2`."""
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in powers) or "1"


def _terms(tokens: list[str]) -> tuple[list[Polynomial], list[str]]:
    first, rest = _product(tokens)
    found = [first]
    while rest[:1] == ["+"]:
        term, rest = _product(rest[1:])
        found.append(term)
    return found, rest


def _product(tokens: list[str]) -> tuple[Polynomial, list[str]]:
    result, rest = _power(tokens)
    while rest and rest[0] not in ("+", ")"):
        factor, rest = _power(rest)
        result = _multiplied(result, factor)
    return result, rest


def _power(tokens: list[str]) -> tuple[Polynomial, list[str]]:
    base, rest = _base(tokens)
    if rest[:1] != ["^"]:
        return base, rest
    if not "".join(rest[1:2]).isdigit():
        raise ValueError("no formula: a whole number has to follow ^")
    result: Polynomial = {(): Fraction(1)}
    for _ in range(int(rest[1])):
        result = _multiplied(result, base)
    return result, rest[2:]


def _base(tokens: list[str]) -> tuple[Polynomial, list[str]]:
    head, rest = "".join(tokens[:1]), tokens[1:]
    if head == "(":
        inner, rest = _terms(rest)
        if rest[:1] != [")"]:
            raise ValueError("no formula: a bracket is not closed")
        return _added(inner), rest[1:]
    if head.isdigit():
        return {(): Fraction(head)}, rest
    if head.isalpha():
        return {((head, 1),): Fraction(1)}, rest
    raise ValueError(f"no formula: {head!r} where a number, a variable or a bracket is due")


def _added(polynomials: list[Polynomial]) -> Polynomial:
    total: dict[Monomial, Fraction] = {}
    for polynomial in polynomials:
        for powers, factor in polynomial.items():
            total[powers] = total.get(powers, Fraction(0)) + factor
    return total


def _multiplied(one: Polynomial, other: Polynomial) -> Polynomial:
    return _added([{_joined(a, b): x * y} for a, x in one.items() for b, y in other.items()])


def _joined(one: Monomial, other: Monomial) -> Monomial:
    powers = Counter(dict(one)) + Counter(dict(other))
    return tuple(sorted(powers.items(), key=lambda item: ((_ORDER + item[0]).index(item[0]), item[0])))
