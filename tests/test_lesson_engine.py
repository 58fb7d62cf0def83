"""The lesson of the engine: its steps are programs by themselves, and its check tells right from wrong."""

import re

import numpy as np
import pytest

from tests import lessons

STEPS = range(1, 7)


def code_by_section():
    """Heading -> the cells of code below it."""
    found = {}
    heading = ""
    for cell in lessons.cells("engine"):
        if cell.is_code:
            found.setdefault(heading, []).append(cell.text)
        else:
            heading = ([heading] + re.findall("^## (.*)", cell.text, flags=re.M))[-1]
    return found


SECTIONS = code_by_section()
TOOLS = "\n\n".join(SECTIONS["An experiment, and a judge"])


def program(step):
    """A step: its cells as far as the last one with a judgement. What follows are pictures and trials."""
    (cells,) = [cells for heading, cells in SECTIONS.items() if heading.startswith(f"Step {step}.")]
    last = max(i for i, text in enumerate(cells) if "judge(" in text)
    return "\n\n".join(cells[: last + 1])


def run(*texts):
    names = {"__name__": "__main__"}
    for text in texts:
        exec(compile(text, "<lesson>", "exec"), names)
    return names


@pytest.fixture(autouse=True, scope="module")
def no_window():
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    yield
    plt.close("all")


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_a_whole_program_of_75_lines(step, capsys):
    lines = [line for line in program(step).splitlines() if not re.match(r" *(#|$)", line)]
    assert len(lines) <= 75
    run(TOOLS, program(step))
    assert "largest difference" in capsys.readouterr().out


@pytest.mark.parametrize("step", STEPS)
def test_the_judge_of_a_step_sees_a_wrong_rule(step):
    right = "+= y.gradient * u.value" if step == 1 else "g * u"
    if step == 2:
        right = "unbroadcast(y.gradient * u.value"
    wrong = right.replace("u.value", "v.value") if step < 3 else "g * v"
    assert program(step).count(right) == 1
    with pytest.raises(AssertionError, match="a gradient is wrong"):
        run(TOOLS, program(step).replace(right, wrong))


@pytest.mark.parametrize("step", [2, 3, 4, 5, 6])
def test_the_judge_of_a_step_sees_broadcasting_that_is_not_undone_right(step):
    """Means instead of sums: the shapes are right, and the numbers are not."""
    right = re.search(r"np\.sum\(\w, axis=\(", program(step)).group()
    wrong = right.replace("np.sum", "np.mean")
    with pytest.raises((AssertionError, TypeError), match="a gradient is wrong|not in the table"):
        run(TOOLS, program(step).replace(right, wrong))


def test_the_last_step_has_the_second_derivatives_of_the_closed_form():
    """d2/dw2 of sum(mu - k log mu), log mu = w x + b, is sum(x^2 mu); d2/dw db is sum(x mu)."""
    names = run(TOOLS, program(6))
    w, b = np.array([0.3, 0.0, -0.7]), np.array([0.2, 1.0, 2.0])
    inputs = [names["Tensor"](w), names["Tensor"](b)]
    slopes = names["grad"](names["poisson_loss"](*inputs), inputs, record=True)
    x = names["doses"]
    mu = np.exp(w * x + b)
    np.testing.assert_allclose(slopes[0].data, np.sum(x * (mu - names["counts"]), axis=0))
    found = names["grad"](np.sum(slopes[0]), inputs)
    np.testing.assert_allclose(found[0], np.sum(x**2 * mu, axis=0))
    np.testing.assert_allclose(found[1], np.sum(x * mu, axis=0))


def answer(formula):
    return f"def rule_of_logaddexp(g, y, a, b):\n    return {formula}\n"


# What is given as an answer, and what the check is to say of it. With theta = 1 a count k is geometric,
# and costs (k + 1) log(1 + mu) - k log mu: at log mu = 400 x this is 400 x, and (k + 1) log 2 at dose
# 0, where the counts are 1, 2 and 18. The sum of the doses is 6, so all of it is 7200 + 24 log 2, and
# its slope 6 for each gene.
ANSWERS = {
    "g * np.exp(a - y)": r"right.*\n.*now 7216\.6\.\n.*now \[6\. 6\. 6\.\]",
    "g * special.expit(a - b)": "right",
    "g / (1.0 + np.exp(b - a))": "wrong: at a = 0, b = 800 the second derivative is 0, not nan",
    "g * np.exp(a) / (np.exp(a) + np.exp(b))": "wrong: at a = 800, b = 0 .* not nan",
    "np.exp(a - y)": "wrong: .* g, has to come in",
    "g": "wrong: at a = 0.3, b = 0.1 and g = 1 the slope is 0.5498, not 1.0000",
    "g * np.exp(b - y)": "wrong: at a = 0.3.* the slope is 0.5498, not 0.4502",
    "g * np.exp(data_of(a) - data_of(y))": "wrong: the first derivative is right, but not the second",
    "data_of(g) * np.exp(a - y)": "wrong: the first derivative is right, but not the second",
    "data_of(g) * np.exp(data_of(a) - data_of(y))": "wrong: handed Tensors, the rule gives an array",
    "g * np.exp2((a - y) / np.log(2.0))": "wrong: the rule stops with TypeError: exp2 is not in the table",
    "Tensor(g * np.exp(a - y))": "wrong: given numbers it must give one, .* not a Tensor",
    "(g * np.exp(a - y), g * np.exp(b - y))": "wrong: given numbers it must give one, .* not a tuple",
    "None": "wrong: the rule gives None: is its `return` missing",
}


def test_the_check_says_what_is_wrong():
    said = lessons.verdicts("engine", [answer(formula) for formula in ANSWERS])
    for (formula, expected), text in zip(ANSWERS.items(), said):
        assert re.match(expected, text), (formula, text)


def test_what_is_called_right_is_right():
    """The slope of log(e^a + e^b) in a is 1 / (1 + e^(b - a)), by an independent formula."""
    a, b = np.array([-3.0, 0.0, 2.0]), np.array([1.0, 0.0, -1.0])
    names = run("import numpy as np", lessons.solution("engine"))
    found = names["rule_of_logaddexp"](2.0, np.logaddexp(a, b), a, b)
    np.testing.assert_allclose(found, 2.0 * (1.0 + np.tanh((a - b) / 2.0)) / 2.0)


def test_the_text_is_true_of_what_the_notebook_printed():
    text = lessons.printed("engine")
    by_exp, by_multiply = lessons.numbers(r"exp hands back (\S+), and multiply (\S+)\.\n", text)
    together, of_eta = lessons.numbers(r"Together (\S+); the gradient of eta is (\S+)\.\n", text)
    assert together == of_eta and abs(by_exp + by_multiply - together) < 0.011
    assert "the one is the other times               [6. 6. 6.]" in text  # w is the sixth
    assert "20,000 nodes: [1. 1. 1.]\nasked again:  True" in text
    assert "loss:  inf\nslope: [nan nan nan]" in text
    w, error, truth = np.reshape(
        lessons.numbers(r"gene \d: w = +(\S+) \+- (\S+); the truth is +(\S+)", text), (3, 3)
    ).T
    assert np.all(np.abs(w - truth) < 2.5 * error)
