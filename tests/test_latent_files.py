"""models/latent_files.py and the command label: from files to a table of labels."""

import csv
import json
from contextlib import suppress

import anndata
import numpy as np
import pytest
from scipy import sparse

from models import SCVI
from models.__main__ import main
from models.annotation import annotation_of
from models.counts import Counts
from models.labels import MISSING
from models.latent_files import beside, read_labels, read_latent, space_of, write_beside
from models.runs import write_arrays, write_counts, write_table


def call(*words):
    return main([str(word) for word in words])


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def place(tmp_path):
    """Latents of 40 reference cells, of types far apart, and of 6 others; a table of types in another order."""
    rng = np.random.default_rng(0)
    types = np.arange(40) % 2
    z = rng.standard_normal((40, 3)).astype(np.float32) + 30 * types[:, None]
    query = rng.standard_normal((6, 3)).astype(np.float32) + 30 * np.array([[0, 1, 1, 0, 0, 1]]).T
    names = ["z0", "z1", "z2"]
    write_table(
        tmp_path / "reference.csv",
        ["cell", *names],
        ([f"r{i}", *row] for i, row in enumerate(z.tolist())),
    )
    write_arrays(
        tmp_path / "query.npz",
        {
            "cells": np.array([f"q{i}" for i in range(6)]),
            "columns": np.array(names),
            "X_scVI": query,
        },
    )
    rows = [[f"r{i}", "x", 'T, "naive"' if types[i] else "B"] for i in range(40)][::-1]
    write_table(tmp_path / "types.csv", ["", "other", "cell_type"], rows)
    return tmp_path


def test_cells_get_the_labels_of_their_neighbours_by_name(place, capsys):
    words = [place / "reference.csv", place / "query.npz", "--labels", place / "types.csv"]
    assert call("label", *words, "--column", "cell_type", "--out", place / "out.csv") == 0
    header, *rows = rows_of(place / "out.csv")
    assert header == ["cell", "label", "uncertainty"]
    t = 'T, "naive"'
    assert [row[:2] for row in rows] == [
        [f"q{i}", name] for i, name in enumerate(["B", t, t, "B", "B", t])
    ]
    assert all(float(row[2]) == 0 for row in rows)
    printed = capsys.readouterr()
    assert "B" in printed.out and "0.000" in printed.out and "6 cells" in printed.err


def test_reference_cells_without_a_label_are_left_out(place, capsys):
    lines = (place / "types.csv").read_text().splitlines()
    blank = [
        line if i > 4 or i == 0 else line.split(",")[0] + ",x,NA" for i, line in enumerate(lines)
    ]
    (place / "types.csv").write_text("\n".join(blank[:-1]))  # and one cell has no line
    words = [place / "reference.csv", place / "query.npz", "--labels", place / "types.csv"]
    assert call("label", *words, "--column", "cell_type", "--out", place / "out.csv") == 0
    assert "5 of 40 cells of REFERENCE have no label" in capsys.readouterr().err
    assert {row[1] for row in rows_of(place / "out.csv")[1:]} == {"B", 'T, "naive"'}


def test_csv_and_npz_say_the_same(place):
    cells, z, *_ = read_latent(place / "query.npz")
    write_table(
        place / "query.csv", ["cell", "a", "b", "c"], ([c, *r] for c, r in zip(cells, z.tolist()))
    )
    again = read_latent(place / "query.csv")
    assert again.cells.tolist() == cells.tolist()
    np.testing.assert_array_equal(again.z.astype(np.float32), z.astype(np.float32))
    assert z.dtype == again.z.dtype == np.float64


def test_one_column_needs_no_name(tmp_path):
    (tmp_path / "t.tsv").write_text("cell\ttype\nb\tB\na\tA\n")
    assert read_labels(tmp_path / "t.tsv", None, np.array(["a", "b", "c"])).tolist() == [
        "A",
        "B",
        None,
    ]
    (tmp_path / "pandas.csv").write_text(",barcode,type\n0,b,B\n1,a,A\n")
    found = read_labels(tmp_path / "pandas.csv", "type", np.array(["a", "b"]))
    assert found.tolist() == ["A", "B"]  # the names need not stand first
    (tmp_path / "n.csv").write_text("cell,cluster\na,1\nb,\nc,02\n")
    found = read_labels(tmp_path / "n.csv", None, np.array(["a", "b", "c"]))
    assert found.tolist() == ["1", None, "02"]  # as they are written
    (tmp_path / "r.tsv").write_text("type\nb\tB\na\tA\n")  # R leaves out the corner
    assert read_labels(tmp_path / "r.tsv", "type", np.array(["a", "b"])).tolist() == ["A", "B"]


@pytest.mark.parametrize("word", MISSING)
def test_the_same_words_say_that_there_is_no_label_as_in_annotation(tmp_path, word):
    path = tmp_path / "t.csv"
    path.write_text(f"cell,type\na, {word} \nb,none\nc,C\n")
    cells = np.array(["a", "b", "c"])
    assert read_labels(path, "type", cells).tolist() == [None, "none", "C"]  # "none" is an answer
    assert annotation_of(path, cells).obs["type"].tolist() == [None, "none", "C"]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt"])
@pytest.mark.parametrize("mark", [",", "\t", ";"])
def test_what_stands_between_cell_and_label_is_found_out(tmp_path, name, mark):
    label = '"T cells, naive; CD4"' if mark == "," else "T cells, naive, CD4"
    (tmp_path / name).write_text(f"cell{mark}type\na{mark}{label}\nb{mark}B\n")
    found = read_labels(tmp_path / name, None, np.array(["a", "b"]))
    assert found.tolist() == [label.strip('"'), "B"]
    obs = annotation_of(tmp_path / name, np.array(["a", "b"])).obs
    assert obs["type"].tolist() == found.tolist()


def test_a_field_beyond_all_measure_is_an_error_of_the_file(tmp_path):
    (tmp_path / "t.csv").write_text("cell,type\na,B\nb," + "x" * 200_000 + "\n")
    for read in (
        lambda: read_labels(tmp_path / "t.csv", None, np.array(["a", "b"])),
        lambda: annotation_of(tmp_path / "t.csv", np.array(["a", "b"])),
    ):
        with pytest.raises(ValueError, match="t.csv: damaged, or .*field larger"):
            read()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "holds no cells"),
        ("cell,type\n", "holds no cells"),
        ("cell,type\nx,B\n", "none of the cells by name: they are called 'a', in the table 'x'"),
        ("cell,type\nA,B\n", "differ in upper and lower case only"),
        ("cell,type\na,NA\nx,B\n", "a label for none of the cells in its column 'type': all are"),
        ("cell,type\na,NA\nb,\n", "a label for none of the cells in its column 'type': all are"),
        ("cell,type\na,B,3\nb,B\n", "line 3 has 2 fields"),
        (
            "cell,one,two\na,B,C\n",
            "has 2 columns beside the cells; choose one by --column: one, two",
        ),
        ("cell\na\n", "has 0 columns beside"),
        ("cell,type\na,B\na,C\n", "has the cell 'a' twice"),
        ("type,a,b\ntype,T,B\n", "named as the cells: transpose it"),
    ],
)
def test_tables_of_labels_that_are_refused(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=f"t.csv: .*{words}"):
        read_labels(tmp_path / "t.csv", None, np.array(["a", "b"]))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("z.csv", b"cell,z0\na,one\n", "coordinates that are no numbers"),
        ("z.csv", b"cell\na\n", "has one column only"),
        ("z.csv", b"cell,z0\n\xff\xfe,1\n", "holds bytes that are no UTF-8"),
        ("z.npz", b"PK\x03\x04 no zip", "damaged, or of another kind"),
        ("z.h5ad", b"", "read from .csv and .npz"),
    ],
)
def test_latents_that_are_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*{words}"):
        read_latent(tmp_path / name)


def test_archives_that_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", cells=np.array(["a"]))
    with pytest.raises(ValueError, match="has arrays cells, not cells and X_scVI"):
        read_latent(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", cells=np.array(["a"]), X_scVI=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"cells of shape \(1,\), and X_scVI of shape \(2, 3\)"):
        read_latent(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", cells=np.array(["a", None], dtype=object), X_scVI=np.ones((2, 3)))
    with pytest.raises(ValueError, match="not unpickled"):
        read_latent(tmp_path / "c.npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_latent(tmp_path / "none.csv")


def test_wrong_words_are_said_in_a_line(place, capsys):
    words = [place / "reference.csv", place / "query.npz", "--labels", place / "types.csv"]
    assert call("label", *words, "--out", place / "out.csv") == 1
    assert "choose one by --column: other, cell_type" in capsys.readouterr().err
    assert call("label", *words, "--column", "other", "--out", place / "types.csv") == 2
    assert "would replace what is read" in capsys.readouterr().err
    assert call("label", *words, "--column", "other", "--out", place / "out.npz") == 2
    few = ["--column", "cell_type", "--neighbors", "41", "--out", place / "out.csv"]
    assert call("label", *words, *few) == 1
    assert "--neighbors = 41 is more than the cells in REFERENCE, 40" in capsys.readouterr().err
    assert not (place / "out.csv").exists()


# ---------------------------------------------------------------------------- which latent space
def of_two_kinds(n, seed):
    """Counts of two kinds of cells, (n, 8), and a donor of each; cell 3 has no counts."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(np.array([[9.0] * 4 + [1.0] * 4, [1.0] * 4 + [9.0] * 4])[np.arange(n) % 2])
    x[3] = 0
    obs = {"donor": np.array(["d1", "d2"])[np.arange(n) % 4 // 2]}
    cells = np.array([f"s{seed}c{i}" for i in range(n)])
    genes = np.array([f"g{i}" for i in range(8)])
    return Counts(sparse.csr_array(x.astype(np.float32)), genes, cells, obs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs one and other, of the same cells, and mapped, of new cells on one; coordinates of each in every format."""
    folder = tmp_path_factory.mktemp("trained")
    write_counts(folder / "old.h5ad", of_two_kinds(40, 1))
    write_counts(folder / "new.npz", of_two_kinds(20, 2))
    lines = [f"s1c{i},{'AB'[i % 2]}\n" for i in range(40)]
    (folder / "types.csv").write_text("cell,type\n" + "".join(lines))
    small = "--latent 3 --hidden 8 --epochs 10 --batch-size 16 --batch-key donor".split()
    for run, words in (("one", []), ("other", ["--seed", 1])):
        assert call("train", folder / "old.h5ad", "--out", folder / run, *small, *words) == 0
    words = ["--out", folder / "mapped", "--batch-name", "new"]
    assert call("map", folder / "one", folder / "new.npz", *words) == 0
    for run in ("one", "other", "mapped"):
        for kind in ("csv", "npz", "h5ad"):
            assert call("embed", folder / run, "--out", folder / f"{run}.{kind}") == 0
    return folder


@pytest.mark.parametrize("query", ["other.csv", "other.npz"])
@pytest.mark.parametrize("reference", ["one.csv", "one.npz"])
def test_coordinates_of_another_model_are_refused(trained, reference, query, tmp_path, capsys):
    words = ["--labels", trained / "types.csv", "--out", tmp_path / "labels.csv"]
    assert call("label", trained / reference, trained / query, *words) == 1
    assert "REFERENCE and QUERY are latent coordinates of different models" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "labels.csv").exists()


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_those_of_a_mapped_model_are_of_the_same_space(trained, kind, tmp_path, capsys):
    words = ["--labels", trained / "types.csv", "--out", tmp_path / "labels.csv"]
    assert call("label", trained / f"one.{kind}", trained / f"mapped.{kind}", *words) == 0
    assert "does not say" not in capsys.readouterr().err
    found = {cell: (label, float(p)) for cell, label, p in rows_of(tmp_path / "labels.csv")[1:]}
    assert [found[f"s2c{i}"][0] for i in (0, 1, 2, 4, 5)] == list("ABAAB")
    assert found["s2c3"] == ("", 1.0)  # it has no counts


def test_every_format_says_the_space_of_the_model(trained):
    spaces = [
        read_latent(trained / "one.csv").space,
        read_latent(trained / "one.npz").space,
        anndata.read_h5ad(trained / "one.h5ad").uns["X_scVI_space"],
        space_of(SCVI.load(trained / "one" / "model.npz")),
        read_latent(trained / "mapped.csv").space,
        anndata.read_h5ad(trained / "mapped.h5ad").uns["X_scVI_space"],
    ]
    assert len(set(spaces)) == 1 and len(spaces[0]) == 16
    assert read_latent(trained / "other.csv").space not in spaces


def test_a_space_is_the_encoder_and_not_what_was_learnt_of_new_batches():
    old = of_two_kinds(40, 1)
    new = of_two_kinds(20, 2).X
    model = SCVI.for_data(old, "donor", n_latent=3, n_hidden=8, encode_covariates=True)
    with pytest.warns(UserWarning, match="without counts"):
        model.fit(old, epochs=5, progress=False)
        mapped = model.map_query(new, name="d3", epochs=5, progress=False)
        again = mapped.map_query(new, name="d4", epochs=5, progress=False)
    assert space_of(mapped) == space_of(again) == space_of(model)
    donors = old.obs["donor"]
    np.testing.assert_array_equal(again.latent(old, donors), model.latent(old, donors))
    before = space_of(model)
    model.decoder.rho.bias.data += 1.0  # does not move z
    assert space_of(model) == before
    model.z_encoder.layers.norms[0].running_mean[0] += 0.1  # does
    assert space_of(model) != before


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_reference_cells_without_counts_have_no_vote(trained, kind, tmp_path, capsys):
    words = ["--labels", trained / "types.csv", "--out", tmp_path / "l.csv"]
    assert call("label", trained / f"one.{kind}", trained / f"one.{kind}", *words) == 0
    said = capsys.readouterr().err
    assert "1 of 40 cells of REFERENCE has no counts: left out" in said
    assert "1 of 40 cells of QUERY has no counts" in said


def test_a_table_that_was_changed_since_does_not_say_of_which_model_it_is(
    trained, tmp_path, capsys
):
    lines = (trained / "one.csv").read_text().splitlines()
    (tmp_path / "one.csv").write_text("\n".join(lines[:20]) + "\n")
    beside(tmp_path / "one.csv").write_text(beside(trained / "one.csv").read_text())
    found = read_latent(tmp_path / "one.csv")
    assert found.space is None and found.has_counts.all() and len(found.cells) == 19
    words = ["--labels", trained / "types.csv", "--out", tmp_path / "labels.csv"]
    assert call("label", tmp_path / "one.csv", trained / "other.csv", *words) == 0
    said = capsys.readouterr().err
    assert f"warning: {tmp_path / 'one.csv'} does not say which model" in said
    assert f"{trained / 'other.csv'} does not say" not in said


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"format": "minigrad latent"}'])
def test_a_file_of_others_beside_a_table_is_neither_believed_nor_replaced(
    trained, content, tmp_path, capsys
):
    table = tmp_path / "z.csv"
    table.write_text((trained / "one.csv").read_text())
    beside(table).write_text(content)
    assert read_latent(table).space is None
    assert call("embed", trained / "one", "--out", table) == 1
    assert f"{beside(table)} is there, and no file that embed wrote" in capsys.readouterr().err
    assert beside(table).read_text() == content
    beside(table).unlink()
    beside(table).symlink_to(tmp_path / "elsewhere")
    assert call("embed", trained / "one", "--out", table) == 1
    assert not (tmp_path / "elsewhere").exists()


def test_a_table_is_embedded_again_over_itself(trained, tmp_path):
    for run in ("one", "other"):
        assert call("embed", trained / run, "--out", tmp_path / "z.csv") == 0
    assert read_latent(tmp_path / "z.csv").space == read_latent(trained / "other.npz").space
    assert json.loads(beside(tmp_path / "z.csv").read_text())["rows_without_counts"] == [3]


def test_of_cells_of_one_name_the_one_without_counts_is_known(tmp_path):
    table = tmp_path / "z.csv"
    write_table(table, ["cell", "z0"], [["a", 0.5], ["a", 1.5], ["b", 2.5]])
    write_beside(table, "0123456789abcdef", np.array([True, False, True]))
    found = read_latent(table)
    assert found.has_counts.tolist() == [True, False, True]
    assert found.space == "0123456789abcdef"
    content = json.loads(beside(table).read_text())
    for rows in (["a"], [[0, 1], [2]], [7], [None]):  # no rows of this table
        beside(table).write_text(json.dumps({**content, "rows_without_counts": rows}))
        with suppress(ValueError):
            assert read_latent(table).has_counts.all()
