"""minigrad/tape.py, trace.py, boxes.py and picture.py: the tape as a table and as a picture.

And the first number that is not finite.
"""

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse, special

from minigrad import functional, nn, picture, trace
from minigrad.boxes import FEW, gathered
from minigrad.tensor import Tensor, grad, no_grad
from models import SCVI


def expression():
    a, b, c = (Tensor(v, requires_grad=True) for v in (2.0, -3.0, 10.0))
    return np.tanh(a * b + c) * np.exp(-a), {a: "a", b: "b", c: "c"}


def network(n_layers=4):
    """A network on a CSR matrix, its Module, and a loss of some 40 steps."""
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        *itertools.chain(
            *((nn.Linear(5, 5, rng=rng), nn.BatchNorm1d(5), nn.ReLU()) for _ in range(n_layers))
        )
    )
    x = sparse.random(8, 5, 0.5, format="csr", dtype=np.float32, rng=rng)
    h = model(x)
    p = functional.log_softmax(h, axis=1)
    return -np.mean(np.sum(p * rng.random((8, 5), dtype=np.float32), axis=1)) + 0.1 * np.mean(
        h[:, :2] ** 2
    ), model


# -------------------------------------------------------------------------------------------- table
def test_table_of_a_small_expression():
    y, names = expression()
    assert (
        str(trace.table(y, names=names))
        == """\
step  name  operation  from    shape  dtype    |value|  |gradient|
------------------------------------------------------------------
  #0  a     leaf               ()     float64        2      0.1358
  #1  b     leaf               ()     float64        3    0.000363
  #2  c     leaf               ()     float64       10   0.0001815
  #3        multiply   #0, #1  ()     float64        6   0.0001815
  #4        add        #3, #2  ()     float64        4   0.0001815
  #5        tanh       #4      ()     float64   0.9993      0.1353
  #6        negative   #0      ()     float64        2      0.1352
  #7        exp        #6      ()     float64   0.1353      0.9993
  #8        multiply   #5, #7  ()     float64   0.1352           1"""
    )


def test_table_rows_are_the_numbers_of_the_tape():
    x, w, data = (
        Tensor(np.random.default_rng(i).random((3, 3)), requires_grad=i < 2) for i in range(3)
    )
    y = np.sum(np.exp(x @ w) * data[:, 1:2] * 2.0 + np.arange(3.0), axis=1)
    weights = np.array([1.0, 2.0, 3.0])
    rows = trace.table(y, gradient=weights)
    assert [r.step for r in rows] == list(range(len(rows)))
    assert [r.operation for r in rows] == [
        "leaf",
        "leaf",
        "matmul",
        "exp",
        "data",
        "multiply",
        "multiply",
        "add",
        "sum(axis=1)",
    ]
    assert [r.inputs for r in rows] == [
        "",
        "",
        "#0, #1",
        "#2",
        "",
        "#3, #4",
        "#5, 2",
        "#6, array(3,)",
        "#7",
    ]
    assert (
        rows[-1].value == np.linalg.norm(y.data)
        and rows[-1].shape == (3,)
        and rows[-1].dtype == "float64"
    )
    gx, gw = grad(y, [x, w], gradient=weights)
    assert rows[0].gradient == np.linalg.norm(gx) and rows[1].gradient == np.linalg.norm(gw)
    assert rows[4].gradient is None
    assert repr(rows) == str(rows)


def test_table_uses_nothing_up():
    y, names = expression()
    trace.table(y)
    trace.layout(y)
    assert all(t.grad is None for t in names)
    y.backward()
    assert all(t.grad is not None for t in names)
    for look in (trace.table, trace.first_nonfinite, trace.layout):
        with pytest.raises(RuntimeError, match="used up by an earlier backward"):
            look(y)


def test_table_without_gradient_of_several_entries_leaves_it_open():
    x = Tensor(np.ones(3), requires_grad=True)
    rows = trace.table(np.exp(x))
    assert [r.gradient for r in rows] == [None, None]
    assert str(rows).splitlines()[-1].endswith("-")


def test_table_of_what_is_not_recorded():
    with no_grad():
        assert len(trace.table(Tensor(np.ones(3)) * 2.0)) == 1
    with pytest.raises(TypeError, match="a Tensor is needed, not a float"):
        trace.table(2.0)


def test_names_from_a_module_its_pairs_and_a_dict():
    loss, model = network(1)
    tables = [
        str(trace.table(loss, names=names))
        for names in (
            model,
            list(model.named_parameters()),
            dict(model.named_parameters()),
            {p: name for name, p in model.named_parameters()},
        )
    ]
    assert len(set(tables)) == 1 and "layers.0.weight" in tables[0]


def test_operations_on_parameters_go_by_their_layer():
    a, b, c = (Tensor(np.ones(2), requires_grad=True) for _ in range(3))
    names = {a: "net.one.weight", b: "net.two.weight", c: "scale"}
    made = {
        r.operation: r.name
        for r in trace.table(np.sum(np.exp(a) * c + np.where(c.data > 0, a, b)), names=names)
        if r.inputs
    }
    assert made == {"exp": "net.one", "multiply": "", "where": "net", "add": "", "sum": ""}


def test_arrays_among_the_keywords_are_left_out():
    loss, _ = network(1)
    assert [r.operation for r in trace.table(loss) if r.operation.startswith("batch_norm")] == [
        "batch_norm(eps=1e-05)"
    ]


def test_table_writes_operands_briefly():
    x = Tensor(np.ones((4, 3), np.float32), requires_grad=True)
    w, b = (Tensor(np.ones(s, np.float32), requires_grad=True) for s in ((2, 4), 2))
    y = functional.linear(sparse.csr_array(np.eye(5, 4, dtype=np.float32)), w, b)
    text = str(
        trace.table(
            y.sum()
            + x[:, 1:].sum()
            + x[np.array([0, 1]), [1, 1]].sum()
            + x[0].sum() * np.float64(0.5)
        )
    )
    for part in (
        "csr(5,4), ",
        "getitem(index=(:,1:))",
        "getitem(index=(array(2,),[1, 1]))",
        "getitem(index=0)",
        ", 0.5",
    ):
        assert part in text, part
    assert max(map(len, text.splitlines())) < 140


def test_a_dtype_among_the_keywords_is_written():
    x = Tensor(np.ones(2), requires_grad=True)
    for dtype in (np.float32, "float32", np.dtype("float32")):
        rows = trace.table(np.sum(x.astype(dtype)))
        assert rows[1].operation == "astype(dtype=float32)"


def test_a_tensor_whose_graph_is_used_up_does_not_print_as_a_leaf():
    x = Tensor(2.0, requires_grad=True)
    y = x * 3.0
    assert repr(y) == "Tensor(6., from multiply)"
    y.backward()
    assert repr(y) == "Tensor(6., graph used up)"
    assert repr(x) == "Tensor(2., requires_grad=True)"
    with pytest.raises(RuntimeError, match="used up by an earlier backward"):
        trace.table(y + 1.0)  # in the middle of another graph it is not taken for a leaf either


def test_table_of_20000_steps():
    y = Tensor(np.ones(2), requires_grad=True)
    for _ in range(20_000):
        y = y * 1.0
    assert len(trace.table(y.sum())) == 20_002


# -------------------------------------------------------------------------------- not finite: found
def test_first_nonfinite_value():
    x = Tensor(np.array([0.0, 1.0, 2.0]), requires_grad=True)
    with np.errstate(all="ignore"):
        y = (np.log(x * 3.0) * 0.0).sum()
    found = trace.first_nonfinite(y, names={x: "x"})
    assert found == (
        "step #2 log is float64(3,) from 1.09861 to 1.79176, 1 of 3 not finite "
        "(the first is -inf); input #1 multiply: float64(3,) from 0 to 6"
    )
    assert trace.first_nonfinite((x * 2.0).sum()) is None


def test_first_nonfinite_leaf_is_named():
    x = Tensor(np.array([1.0, np.nan]), requires_grad=True)
    assert trace.first_nonfinite(np.exp(x).sum(), names={x: "weight"}).startswith(
        "step #0 weight leaf is float64(2,)"
    )


def test_first_nonfinite_constant_shows_among_the_inputs():
    x = Tensor(np.ones(2), requires_grad=True)
    found = trace.first_nonfinite((x + np.array([1.0, np.inf])).sum())
    assert (
        "step #1 add" in found
        and "input 1: float64(2,) from 1 to 1, 1 of 2 not finite (the first is inf)" in found
    )


def test_first_nonfinite_gradient():
    x = Tensor(np.array([0.0, 4.0]), requires_grad=True)
    y = np.sum(np.sqrt(x) * 3.0)
    assert trace.first_nonfinite(y) is None
    with np.errstate(all="ignore"):
        found = trace.first_nonfinite(y, {x: "x"}, gradients=True)
    assert found.startswith(
        "the gradient of step #0 x leaf is float64(2,) from 0.75 to 0.75, 1 of 2 not finite"
    )
    assert found.endswith(
        "it comes through step #1 sqrt, whose gradient is float64(2,) from 3 to 3; "
        "input #0 x leaf: float64(2,) from 0 to 4"
    )
    assert trace.first_nonfinite(np.sum(np.exp(x)), gradients=True) is None
    with np.errstate(all="ignore"):  # the first that the sweep meets, not the first of the tape
        assert "gradient of step #1 multiply" in trace.first_nonfinite(
            np.sum(np.sqrt(x * 2.0)), gradients=True
        )


def test_first_nonfinite_gradient_of_a_sum_that_overflows():
    x = Tensor(np.float32(0.001), requires_grad=True)
    with np.errstate(all="ignore"):
        found = trace.first_nonfinite(x * 3e38 + x * 3e38, gradients=True)
    assert "sum of several gradients overflows" in found


def overflowing_weight_gradient():
    """A loss of which only the gradient of a weight is not finite: finite rows, finite inputs."""
    x, w = (
        Tensor(np.full((2, 3), 1e200), requires_grad=True),
        Tensor(np.full((4, 3), 1e-200), requires_grad=True),
    )
    return np.sum(functional.linear(x, w, np.zeros(4)) * 1e200), w


def test_first_nonfinite_weight_gradient_is_of_linear():
    """The rule of linear leaves the gradient of its weight to be computed later."""
    loss, w = overflowing_weight_gradient()
    with np.errstate(all="ignore"):
        found = trace.first_nonfinite(loss, {w: "w"}, gradients=True)
    assert found.startswith(
        "the gradient of step #1 w leaf is float64(4,3), 12 of 12 not finite (the first is inf); "
        "it comes through step #2 linear, whose gradient is float64(2,4) from 1e+200 to 1e+200"
    )


def test_watch_names_linear_for_its_weight_gradient():
    loss, _ = overflowing_weight_gradient()
    with (
        np.errstate(all="ignore"),
        trace.watch(),
        pytest.raises(
            FloatingPointError,
            match=r"^the rule of linear: the gradient of input 1 is float64\(4,3\), "
            "12 of 12 not finite",
        ),
    ):
        loss.backward()


# ------------------------------------------------------------------------------ not finite: watched
@pytest.mark.parametrize(
    "what, message",
    [
        (
            lambda x: np.log(x),
            r"^log: the result is float64\(3,\) .*-inf.* finite: "
            r"input 0: float64\(3,\) from 0 to 2$",
        ),
        (
            lambda x: np.exp(x * 1000.0),
            r"^exp: the result .* 2 of 3 .*input 0: float64\(3,\) from 0 to 2000$",
        ),
        (lambda x: special.gammaln(x), r"^gammaln: the result"),
        (
            lambda x: 1.0 / x,
            r"^divide: the result .*input 0: 1.0; input 1: float64\(3,\) from 0 to 2$",
        ),
        (
            lambda x: np.sum(np.sqrt(x)).backward(),
            r"^the rule of sqrt: the gradient of input 0 is .*inf.* finite: input 0: "
            r"float64\(3,\) from 0 to 2; gradient of the output: float64\(3,\) from 1 to 1$",
        ),
        (lambda x: grad(np.sum(np.sqrt(x)), x), r"^the rule of sqrt: the gradient of input 0"),
        (lambda x: grad(np.sum(np.sqrt(x)), x, create_graph=True), r"^divide: the result"),
        (
            lambda x: functional.linear(x.reshape(1, 3), x.reshape(1, 3) * 1e200, x[:1]) * 1e200,
            r"^multiply: the result",
        ),
    ],
)
def test_watch_names_the_operation(what, message):
    x = Tensor(np.array([0.0, 1.0, 2.0]), requires_grad=True)
    with np.errstate(all="ignore"):
        what(x)
        x.grad = None
        with pytest.raises(FloatingPointError, match="(?s)" + message), trace.watch():
            what(x)
    assert sys.getprofile() is None


def test_watch_lets_pass_what_is_finite_and_what_was_not_finite_before():
    x = Tensor(np.array([0.0, 1.0, 2.0]), requires_grad=True)
    with trace.watch():
        loss, _ = network(2)
        loss.backward()
        np.where(x.data > 0.0, x, -np.inf).sum()
        (x + np.array([1.0, np.nan, 0.0])).sum().backward()
        special.xlogy(2.0, x + 1.0).sum().backward()
    assert np.isfinite(x.grad).all() and sys.getprofile() is None


def test_watch_nests_restores_and_is_of_one_thread():
    seen = []

    def mine(*_):
        seen.append(1)

    sys.setprofile(mine)
    try:
        with trace.watch():
            with trace.watch():
                pass
            assert sys.getprofile() is not mine
            with np.errstate(all="ignore"), pytest.raises(FloatingPointError):
                np.log(Tensor([0.0]))
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(None)
    with np.errstate(all="ignore"):
        np.log(Tensor([0.0]))


def test_an_error_within_watch_is_the_users():
    with pytest.raises(ValueError, match="add.*broadcast"), trace.watch():
        Tensor(np.ones(2)) + np.ones(3)
    assert sys.getprofile() is None


# ------------------------------------------------------------------------------------------ picture
def contents(boxes):
    """Title and text of the boxes that stand for modules."""
    return {box.text.split("\n")[0]: box.text for box in boxes if box.kind == "module"}


def test_a_module_is_a_box_that_lists_its_steps():
    loss, model = modules()
    boxes, _, _ = trace.layout(loss, model)
    assert (
        contents(boxes)["encoder"]
        == """\
encoder
 #13  layers.0  linear array(8,5), weight, bias          float32 (8,5)
 #14  layers.1  batch_norm(eps=1e-05) #13, weight, bias  float32 (8,5)
 #15            relu #14                                 float32 (8,5)
 #16  layers.3  linear #15, weight, bias                 float32 (8,5)"""
    )
    assert contents(boxes).keys() == {"encoder", "decoder"}
    others = [box.text.split("\n")[0] for box in boxes if box.kind != "module"]
    assert others == [
        "#12 log_scale",
        "#17 exp #16",
        "#22 exp #12",
        "#23 multiply #21, #22",
        "#24 subtract #23, array(8,5)",
        "#25 square #24",
        "#26 sum #25",
        "#27 divide #26, 40",
    ]


@pytest.mark.parametrize(
    "options, modules",
    [
        (dict(likelihood="nb"), {"z_encoder", "decoder"}),
        (
            dict(likelihood="zinb", n_batches=2, library="latent"),
            {"z_encoder", "l_encoder", "decoder"},
        ),
    ],
)
def test_the_loss_of_scvi_fits_a_page(options, modules):
    """On paper of 8 x 11 inches letters have 4.5 points at least; networks go by their names."""
    loss, model = scvi(**options)
    boxes, _, (width, height) = trace.layout(loss, model)
    assert contents(boxes).keys() == modules and len(boxes) < 28
    assert "rho " in contents(boxes)["decoder"] and "log_var " in contents(boxes)["z_encoder"]
    assert 9 * min(8 / min(width, height), 11 / max(width, height)) > 4.5


def test_a_module_that_is_used_again_gets_a_second_box():
    """One box would need its own result: a circle of arrows."""
    loss, model = used_twice()
    boxes, arrows, _ = trace.layout(loss, model)
    titles = [box.text.split("\n")[0] for box in boxes]
    assert titles.count("encoder") == 2 and titles.count("decoder") == 1
    for points in arrows:
        assert points[-1][1] > points[0][1] or points[-1][0] > points[0][0]


def test_two_modules_that_need_each_other_are_drawn_without_a_circle():
    """a1 -> b1 and b2 -> a2: of a and b, one is in two boxes."""
    edges = [(0, 1), (2, 3)]
    assert gathered(["a", "b", "b", "a"], edges) == [[0], [1, 2], [3]]
    assert gathered(["a", "b", "a", "b"], edges) == [[0, 2], [1, 3]]


def test_a_few_steps_keep_boxes_of_their_own():
    loss, model = network(1)
    assert len(trace.tape(loss)) <= FEW
    boxes, _, _ = trace.layout(loss, model)
    assert not contents(boxes) and any("#0 layers.0.weight" in box.text for box in boxes)


def test_a_module_with_a_number_that_is_not_finite_says_where():
    loss, model = modules()
    model.decoder[3].bias.data[0] = np.inf
    with np.errstate(all="ignore"):
        loss = model.loss(np.random.default_rng(0).random((8, 5), dtype=np.float32))
        boxes, _, _ = trace.layout(loss, model)
    box = next(box for box in boxes if box.text.startswith("decoder"))
    assert box.kind == "not finite"
    assert next(line for line in box.text.split("\n") if "layers.3" in line).endswith(
        "not finite: #21, weight, bias"
    )


def test_a_parameter_that_is_used_only_outside_its_module_is_listed():
    model = Net()
    model.decoder.extra = nn.Parameter(np.ones(5))
    loss = model.loss(np.eye(5, dtype=np.float32)) + np.sum(model.decoder.extra * model.log_scale)
    _, *lines = contents(trace.layout(loss, model)[0])["decoder"].split("\n")
    assert [line.split()[1:] for line in lines if "extra" in line] == [["extra", "float64", "(5,)"]]


def overlap(a, b, margin=0.0):
    return (
        abs(a.x - b.x) < (a.width + b.width) / 2 + margin
        and abs(a.y - b.y) < (a.height + b.height) / 2 + margin
    )


def curve(points):
    """Points along an arrow: straight pieces and cubic Bezier curves, as `draw` reads them."""
    s = np.linspace(0.0, 1.0, 20)[:, None]
    lines = [points[0] + (points[1] - points[0]) * s]
    for i in range(1, len(points) - 1, 4):
        a, b, c, d = points[i : i + 4]
        lines.append(
            (1 - s) ** 3 * a + 3 * s * (1 - s) ** 2 * b + 3 * s**2 * (1 - s) * c + s**3 * d
        )
        lines.append(d + (points[i + 4] - d) * s)
    return np.concatenate(lines)


class Net(nn.Module):
    """Two modules and a parameter. `again`: the first is called on the second's result."""

    def __init__(self, again=False):
        def sequential():
            return nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5))

        self.encoder, self.decoder, self.again = sequential(), sequential(), again
        self.log_scale = nn.Parameter(np.zeros(5))

    def loss(self, x):
        y = self.decoder(np.exp(self.encoder(x)))
        y = self.encoder(y) if self.again else y
        return np.mean((y * np.exp(self.log_scale) - x) ** 2)


def modules():
    model = Net()
    return model.loss(np.random.default_rng(0).random((8, 5), dtype=np.float32)), model


def used_twice():
    model = Net(again=True)
    return model.loss(np.random.default_rng(0).random((8, 5), dtype=np.float32)), model


def scvi(likelihood, **options):
    rng, model = np.random.default_rng(0), SCVI(20, likelihood=likelihood, **options)
    batch = np.arange(8) % model.n_batches
    return model.loss(rng.poisson(1.0, (8, 20)).astype(np.float32), batch, rng=rng), model


def graphs():
    y, names = expression()
    yield "small", y, names
    loss, model = network()
    yield "network", loss, dict(model.named_parameters())
    yield "modules", *modules()
    yield "used twice", *used_twice()
    wide = [Tensor(np.arange(3.0) + i, requires_grad=True) for i in range(9)]
    yield "scvi", *scvi("zinb", n_batches=2, library="latent")
    yield "wide", sum(np.sum(np.exp(x) * x) for x in wide), None
    yield "joined", np.concatenate([x * 2.0 for x in wide]).sum(), None
    deep = wide[0]
    for _ in range(12):
        deep = np.sin(deep) * wide[1]
    yield "deep", deep.sum(), {wide[1]: "a name that is rather long, longer than a box may be"}
    yield "one", wide[0], None


@pytest.mark.parametrize("name", [name for name, _, _ in graphs()])
def test_layout_has_no_overlaps(name):
    y, names = next((y, names) for n, y, names in graphs() if n == name)
    boxes, arrows, (width, height) = trace.layout(y, names)
    steps = trace.tape(y)
    holder = where_steps_are(boxes, steps)
    for a, b in itertools.combinations(boxes, 2):
        assert not overlap(a, b, 0.1), (a.text, b.text)
    for box in boxes:
        assert box.width / 2 <= box.x <= width - box.width / 2
        assert box.height / 2 <= box.y <= height - box.height / 2 - 0.3
    step = {t.number: i for i, t in enumerate(steps)}
    uses = {
        (holder[step[x.number]], holder[step[t.number]])
        for t in steps
        if t.origin
        for x in t.origin.inputs
        if isinstance(x, Tensor)
    }
    uses = sorted((a, b) for a, b in uses if a != b)
    assert len(arrows) == len(uses)
    for points, (start, end) in zip(arrows, uses):
        line = curve(points)
        assert touches(boxes[start], line[0]) and touches(boxes[end], line[-1])
        assert (line >= 0).all() and (line <= (width, height)).all()
        for box in boxes:
            inside = np.abs(line - (box.x, box.y)) < (box.width / 2 - 1e-9, box.height / 2 - 1e-9)
            assert not inside.all(axis=1).any(), (box.text, start, end)


def where_steps_are(boxes, steps):
    """Step -> box, from what is written.

    A parameter that is not written is in the first box of its user's module.
    """
    holder, step = {}, {t.number: i for i, t in enumerate(steps)}
    for i, box in enumerate(boxes):
        title, *rest = box.text.split("\n")
        listed = rest if rest and rest[0].startswith(" #") else [title]
        holder.update((int(re.match(r" ?#(\d+)", line)[1]), i) for line in listed)
    for i, t in enumerate(steps):
        for x in t.origin.inputs if t.origin else ():
            if isinstance(x, Tensor):
                holder.setdefault(step[x.number], holder[i])
    return holder


def touches(box, point):
    return bool(
        np.all(np.abs(point - (box.x, box.y)) <= (box.width / 2 + 1e-9, box.height / 2 + 1e-9))
    )


def test_long_arrows_of_a_chain_are_straight():
    """The bends of the arrow from a leaf to the end of a chain lie on one line."""
    y, names = next((y, names) for n, y, names in graphs() if n == "deep")
    _, arrows, _ = trace.layout(y, names)
    longest = max(arrows, key=len)
    assert len(longest) > 60
    across = int(np.ptp(longest[:, 0]) > np.ptp(longest[:, 1]))
    assert np.ptp(longest[8:-8, across]) < 0.15


def test_arrows_that_need_not_cross_do_not():
    leaves = [Tensor(float(i), requires_grad=True) for i in range(6)]
    last = {
        3 * i % 7: np.exp(leaves[3 * i % 7 - 1]) for i in range(1, 7)
    }  # made in another order than the leaves
    boxes, _, _ = trace.layout(sum(last.values()))
    by_text = {box.text.split("\n")[0]: box for box in boxes}
    across = [
        (by_text[f"#{i} leaf"], by_text[next(t for t in by_text if t.endswith(f"exp #{i}"))])
        for i in range(6)
    ]
    order = [sorted(range(6), key=lambda i: (across[i][k].x, across[i][k].y)) for k in (0, 1)]
    assert order[0] == order[1]


def test_a_network_is_drawn_as_a_column():
    """Weights stand beside the layers that use them, and do not push these aside."""
    loss, model = network(6)
    boxes, _, (width, height) = trace.layout(loss, dict(model.named_parameters()))
    assert width < 14 and height > 20
    chain = [
        box.x
        for box in boxes
        if "linear" in box.text or "batch_norm" in box.text or "relu" in box.text
    ]
    assert len(chain) == 18 and np.abs(np.diff(chain)).max() < 1.0


def test_boxes_say_values_when_small_and_shapes_otherwise():
    x = Tensor(np.array([1.0, 0.0]), requires_grad=True)
    with np.errstate(all="ignore"):
        boxes, _, _ = trace.layout(np.sum(np.log(x) * np.ones((5, 2), np.float32)), {x: "x"})
    assert [box.text.split("\n") for box in boxes] == [
        ["#0 x", "value [1 0]", "grad  [5 inf]"],
        ["#1 log #0", "value [0 -inf]", "grad  [5 5]"],
        ["#2 multiply #1, array(5,2)", "float64 (5,2)"],
        ["#3 sum #2", "value -inf", "grad  1"],
    ]
    assert [box.kind for box in boxes] == ["not finite"] * 4
    boxes, _, _ = trace.layout((x * Tensor([2.0, 3.0])).sum())
    assert [box.kind for box in boxes] == ["leaf", "data", "operation", "output"]


def test_text_fits_its_box():
    """The width of a letter that the layout counts with is that of the font."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 10), dpi=picture.DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for name, y, names in graphs():
        for box in trace.layout(y, names)[0]:
            text = figure.text(
                0, 0, box.text, family="monospace", size=9, linespacing=1.22, parse_math=False
            )
            extent = text.get_window_extent(renderer)
            assert (
                extent.width < picture.DPI * (box.width - 0.1)
                and extent.height < picture.DPI * box.height
            ), (name, box)
            text.remove()


@pytest.mark.parametrize(
    "ending, magic", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_draw_writes_a_picture(tmp_path, ending, magic):
    y, names = expression()
    trace.draw(y, tmp_path / f"graph.{ending}", names)
    assert (tmp_path / f"graph.{ending}").read_bytes().startswith(magic)
    y.backward()


def test_draw_a_network(tmp_path):
    loss, model = network()
    assert 35 <= len(trace.tape(loss)) <= 50
    assert trace.draw(loss, tmp_path / "graph.png", model) == tmp_path / "graph.png"
    figure = trace.draw(loss, names=model)
    figure.savefig(tmp_path / "again.png", dpi=figure.dpi)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "graph.png").read_bytes()
    from matplotlib.image import imread

    pixels = imread(tmp_path / "graph.png")
    assert pixels.shape[0] > 500 and 0.02 < np.mean(pixels[..., :3].min(axis=2) < 0.97) < 0.6


def test_draw_refuses_what_makes_no_picture(tmp_path):
    y = Tensor(1.0, requires_grad=True)
    for _ in range(401):
        y = y * 1.0
    with pytest.raises(ValueError, match="402 steps are too many.*trace.table"):
        trace.draw(y, tmp_path / "graph.png")


def test_draw_leaves_pyplot_alone(tmp_path):
    code = (
        "import sys, numpy as np; from minigrad import Tensor, trace\n"
        "for name in ('matplotlib', 'scipy.optimize'):\n"
        "    assert name not in sys.modules, f'{name} was imported too early'\n"
        f"trace.draw(np.exp(Tensor(1.0, requires_grad=True)), {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def contrast(a, b):
    """The ratio of the luminances of two colours (WCAG 2)."""

    def luminance(colour):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0
        return np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def deuteranope(colour):
    """A colour as seen without M cones (Vienot, Brettel and Mollon 1999), in linear RGB."""
    rgb = (np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0) ** 2.2
    return (
        np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]) @ rgb
    )


def test_colours_can_be_told_apart_and_read():
    assert re.fullmatch("(#[0-9A-F]{6})+", "".join(itertools.chain(*picture.COLOURS.values())))
    for light, dark in picture.COLOURS.values():
        assert contrast(light, "#000000") > 12 and contrast(dark, "#FFFFFF") > 3
    dark = [deuteranope(dark) for _, dark in picture.COLOURS.values()]
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(dark, 2)) > 0.02
