"""einsum of any operands, in steps that the table has rules for.

This is engineering. The table's `einsum` (linalg.py) takes two operands, with no label twice in
one of them and none in one alone: there the gradient is a sum of the same kind. Here any einsum is
brought to that form: 'iij,jk,k->i' reads the diagonal of the first operand, sums what only one
operand has, and multiplies the operands two at a time.

Know before reading: derived.py, and numpy.einsum. A *term* is the labels of one operand, "ij".
Know after: how much of einsum is bookkeeping.
"""

from __future__ import annotations

import string

import numpy as np

from minigrad.backend import Array
from minigrad.derived import as_operands, implements
from minigrad.linalg import einsum as einsum_of_two


@implements(np.einsum)
def einsum(subscripts: str | Array, *operands, optimize=False) -> Array:
    """Either a string and the operands, or each operand and the list of its labels, as numbers."""
    if not isinstance(subscripts, str):
        subscripts, operands = _in_letters(subscripts, *operands)
    arrays = as_operands("einsum", *operands)
    terms, out = _parsed(subscripts, arrays)
    terms, arrays = _without_stretched_axes(terms, arrays)

    while True:
        for k, term in enumerate(terms):
            elsewhere = set("".join(terms[:k] + terms[k + 1 :]) + out)
            terms[k], arrays[k] = _own_labels_summed(term, arrays[k], elsewhere)
        if len(arrays) == 1:
            return np.transpose(arrays[0], tuple(terms[0].index(c) for c in out))

        left, right, *other_terms = terms
        needed_later = "".join(other_terms) + out
        kept = "".join(dict.fromkeys(c for c in left + right if c in needed_later))
        product = einsum_of_two(arrays[0], arrays[1], f"{left},{right}->{kept}")
        arrays = [product, *arrays[2:]]
        terms = [kept, *other_terms]


def _in_letters(*inputs):
    """(subscripts, operands) of einsum(a, [0, 1], b, [1, 2], [0, 2]): "ab,bc->ac", and (a, b)."""
    operands = inputs[: len(inputs) // 2 * 2 : 2]
    lists = [*inputs[1::2], *inputs[len(operands) * 2 :]]
    if not all(isinstance(labels, (list, tuple)) for labels in lists):
        raise TypeError(
            "einsum of Tensors: the subscripts are a string, as in einsum('ij,j->i', a, b), or a "
            "list of labels after each operand, as in einsum(a, [0, 1], b, [1], [0])"
        )
    labels = sorted({c for given in lists for c in given if c is not Ellipsis})
    # In the order of the labels, which an output follows that is not given.
    alphabet = string.ascii_lowercase if len(labels) <= 26 else sorted(string.ascii_letters)
    if len(labels) > len(alphabet):
        raise ValueError(f"einsum: {len(labels)} labels; there are letters for {len(alphabet)}")
    letters = dict(zip(labels, alphabet))
    letters[Ellipsis] = "..."
    terms = ["".join(letters[c] for c in given) for given in lists]
    out = f"->{terms[-1]}" if len(lists) > len(operands) else ""
    return ",".join(terms[: len(operands)]) + out, operands


def _parsed(subscripts, operands):
    """The terms, one for each operand, and the labels of the output; `...` becomes capitals."""
    subscripts = subscripts.replace(" ", "")
    before_arrow, arrow, out = subscripts.partition("->")
    terms = before_arrow.split(",")
    if len(terms) != len(operands):
        raise ValueError(
            f"einsum: {subscripts!r} names {len(terms)} operands, {len(operands)} were given"
        )

    capitals_first = string.ascii_uppercase + string.ascii_lowercase
    unused = [c for c in capitals_first if c not in subscripts]
    n_dotted = [x.ndim - len(term.replace("...", "")) for term, x in zip(terms, operands)]
    longest = max([n for n, term in zip(n_dotted, terms) if "..." in term], default=0)
    dots = "".join(unused[: max(longest, 0)])
    # Ellipses are aligned at their right ends, as broadcasting is.
    terms = [term.replace("...", dots[len(dots) - n :]) for term, n in zip(terms, n_dotted)]
    for term, x in zip(terms, operands):
        if len(term) != x.ndim:
            raise ValueError(
                f"einsum: {subscripts!r} names {len(term)} axes of an operand of shape {x.shape}"
            )

    if not arrow:  # the output has the labels that occur once, in alphabetical order
        labels = "".join(terms)
        once = sorted(c for c in set(labels) - set(dots) if labels.count(c) == 1)
        out = "..." + "".join(once)
    out = out.replace("...", dots)
    is_repeated = len(set(out)) < len(out)
    is_unknown = bool(set(out) - set("".join(terms)))
    misses_dots = bool(set(dots) - set(out))
    if is_repeated or is_unknown or misses_dots:
        raise ValueError(
            f"einsum: the output of {subscripts!r} must have labels of its operands, each once, "
            "and ... where they have it"
        )
    return terms, out


def _without_stretched_axes(terms, operands):
    """Axes of length 1 that broadcasting would stretch are dropped: the rule knows labels only."""
    length = {}
    for term, x in zip(terms, operands):
        for c, n in zip(term, x.shape):
            known = length.setdefault(c, n)
            if known != n and 1 not in (n, known):
                raise ValueError(
                    f"einsum: label {c!r} is {known} long in one operand and {n} in another"
                )
            if known == 1:
                length[c] = n

    new_terms = []
    new_operands = []
    for term, x in zip(terms, operands):
        is_stretched = []
        for c in term:
            own_lengths = {n for d, n in zip(term, x.shape) if d == c}
            is_stretched.append(own_lengths == {1} and length[c] != 1)
        new_terms.append("".join(c for c, gone in zip(term, is_stretched) if not gone))
        gone_axes = tuple(i for i, gone in enumerate(is_stretched) if gone)
        new_operands.append(np.squeeze(x, gone_axes))
    return new_terms, new_operands


def _own_labels_summed(term, x, elsewhere):
    """An operand read along the diagonal for repeated labels, and summed over labels of its own."""
    for c in dict.fromkeys(term):
        while term.count(c) > 1:
            i = term.index(c)
            j = term.rindex(c)
            if x.shape[i] != x.shape[j]:
                raise ValueError(
                    f"einsum: label {c!r} is {x.shape[i]} long in one place "
                    f"and {x.shape[j]} in another"
                )
            x = np.diagonal(x, axis1=i, axis2=j)  # along a new last axis
            term = term[:i] + term[i + 1 : j] + term[j + 1 :] + c
    own_axes = tuple(i for i, c in enumerate(term) if c not in elsewhere)
    if own_axes:
        x = np.sum(x, axis=own_axes)
    return "".join(c for c in term if c in elsewhere), x
