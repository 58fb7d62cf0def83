"""How many functions of NumPy and scipy.special differentiate, here and elsewhere: `python -m tests.benchmarks.coverage [--names]`.

Counted are the public names of numpy, numpy.linalg, numpy.fft and scipy.special that can be called, as each engine's own
tables have them; nothing is computed. A name counts where the engine gives something to differentiate, with a slope that
is not 0 everywhere: comparisons, indices, and steps such as floor are left out on all sides. Names of one function
(absolute and abs) count once, and under the first in order. An engine that is not installed is left out (extra `bench` for HIPS autograd; MyGrad by hand:
`pip install mygrad`, in an environment of its own if need be).

Know before reading: minigrad/tensor.py, on IMPLEMENTATIONS.

Know after: what is said in README about breadth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from scipy import special

MODULES = {
    "numpy": np,
    "numpy.linalg": np.linalg,
    "numpy.fft": np.fft,
    "scipy.special": special,
}
# Their slope is 0 wherever there is one.
STEPS = set(
    "sign floor ceil trunc fix rint round around floor_divide heaviside imag gammasgn".split()
)
# What makes arrays, or says something about them; some engines let these pass in order to work at all.
WITHOUT_SLOPE = set(
    """array asarray asanyarray ascontiguousarray asfortranarray empty_like zeros_like ones_like full_like zeros ones full
    empty eye identity arange shape ndim size result_type iscomplexobj isreal iscomplex any all argmax argmin
    argsort""".split()
)


def public_functions(module) -> list[tuple[Callable, list[str]]]:
    """(function, its names) of all that a module offers of its own."""
    found: list[tuple[Callable, list[str]]] = []
    for name in sorted(n for n in dir(module) if not n.startswith("_")):
        function = getattr(module, name)
        if not callable(function) or isinstance(function, type) or name in STEPS | WITHOUT_SLOPE:
            continue
        if module is not np and function is getattr(np, name, None):
            continue
        names = next((names for other, names in found if other is function), None)
        if names is None:
            found.append((function, [name]))
        else:
            names.append(name)
    return found


def ours() -> Iterator[tuple[str, str]]:
    """(module, name) of what IMPLEMENTATIONS has, the table's entries and what is made of them."""
    from minigrad import functional
    from minigrad.derived import PLAIN
    from minigrad.tensor import IMPLEMENTATIONS

    for label, module in MODULES.items():
        for function, names in public_functions(module):
            is_known = function in IMPLEMENTATIONS and function not in PLAIN
            # What is no ufunc in scipy.special is offered in functional: logsumexp, softmax ...
            if is_known or (module is special and hasattr(functional, names[0])):
                yield label, names[0]


def hips_autograd() -> Iterator[tuple[str, str]]:
    """(module, name) of what has a rule (defvjp), and of the functions that its modules make of such."""
    import autograd.numpy
    import autograd.scipy.special
    from autograd.core import primitive_vjps

    theirs = {
        "numpy": autograd.numpy,
        "numpy.linalg": autograd.numpy.linalg,
        "numpy.fft": autograd.numpy.fft,
        "scipy.special": autograd.scipy.special,
    }

    def differentiates(function):
        is_primitive = hasattr(function, "_is_autograd_primitive")
        is_wrapped = hasattr(function, "fun")  # also what it lets pass without a slope
        is_its_own = (getattr(function, "__module__", None) or "").startswith("autograd.")
        has_a_rule = is_primitive and function in primitive_vjps
        return has_a_rule or (is_its_own and not is_wrapped)

    for label, module in MODULES.items():
        for _, names in public_functions(module):
            if any(differentiates(getattr(theirs[label], name, None)) for name in names):
                yield label, names[0]


def mygrad() -> Iterator[tuple[str, str]]:
    """(module, name) of the ufuncs and functions that its Tensor registers as differentiable."""
    from mygrad import tensor_base

    known = [
        *tensor_base._REGISTERED_UFUNC,
        *tensor_base._REGISTERED_DIFFERENTIABLE_NUMPY_FUNCS,
    ]
    for label, module in MODULES.items():
        for function, names in public_functions(module):
            if function in known:
                yield label, names[0]


ENGINES = {"minigrad": ours, "HIPS autograd": hips_autograd, "MyGrad": mygrad}


def counted() -> dict[str, set[tuple[str, str]]]:
    """engine -> the (module, name) that differentiate; without the engines that are not installed."""
    found = {}
    for engine, names in ENGINES.items():
        try:
            found[engine] = set(names())
        except ImportError as error:
            print(f"{engine}: left out ({error})")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--names", action="store_true", help="print what others have and we lack")
    arguments = parser.parse_args()
    found = counted()
    for engine, names in found.items():
        by_module = [f"{label} {sum(m == label for m, _ in names)}" for label in MODULES]
        print(f"{engine}: {len(names)} ({', '.join(by_module)})")
    if arguments.names:
        for engine, names in found.items():
            missing = sorted(".".join(pair) for pair in names - found["minigrad"])
            print(f"{engine} has and minigrad lacks: {' '.join(missing) or 'nothing'}")


if __name__ == "__main__":
    main()
