"""Annotation of cells from a table of its own: joined by name, whatever its order, form and gaps.

Know before reading: models/annotation.py. Know after: what a column becomes, and which tables are
refused.
"""

import gzip

import numpy as np
import pandas
import pytest
import scipy.io
from scipy import sparse

from models import guarded
from models.annotation import annotation_of
from models.counts import read
from models.latent_files import read_labels
from models.runs import in_memory
from tests.example_counts import (
    CELLS,
    GENES,
    TYPES,
    X,
    adata,
    check,
    npz,
    write_folder,
    write_tenx,
)

KIND = np.array(["T", "B, naive"])[np.arange(23) % 2]
FRAME = pandas.DataFrame(
    {
        "kind": KIND,
        "cluster": np.arange(23) % 4,
        "mito": np.arange(23) / 8,
        "part": np.where(np.arange(23) == 3, np.nan, np.arange(23.0)),
        "note": np.where(np.arange(23) == 5, None, "seen"),
        "empty": np.nan,
    },
    index=CELLS,
)
SHUFFLED = FRAME.iloc[np.random.default_rng(0).permutation(23)]
OTHERS = pandas.concat([SHUFFLED, FRAME.iloc[:2].set_axis(["ZZZ-1", "ZZZ-2"])])


def check_columns(obs):
    assert list(obs) == list(FRAME.columns)
    assert obs["kind"].tolist() == KIND.tolist()
    assert obs["cluster"].dtype.kind == "i" and obs["cluster"].tolist() == FRAME["cluster"].tolist()
    np.testing.assert_array_equal(obs["mito"], FRAME["mito"])
    np.testing.assert_array_equal(obs["part"], FRAME["part"])
    assert obs["note"].tolist() == ["seen"] * 5 + [None] + ["seen"] * 17
    assert obs["empty"].tolist() == [None] * 23


FORMS = {
    "pandas": lambda path: OTHERS.to_csv(path),
    "tabs": lambda path: OTHERS.to_csv(path, sep="\t"),
    "semicolons": lambda path: OTHERS.to_csv(path, sep=";"),
    "names in another column": lambda path: (
        OTHERS.rename_axis("barcode")
        .reset_index()
        .to_csv(
            path,
            columns=["kind", "cluster", "mito", "part", "note", "empty", "barcode"],
            index=False,
        )
    ),
    "R": lambda path: path.write_text(
        OTHERS.to_csv(na_rep="NA").replace(",", "", 1), encoding="utf-8"
    ),
    "gzipped": lambda path: path.write_bytes(gzip.compress(OTHERS.to_csv().encode())),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_joined_by_the_names_of_cells(tmp_path, form):
    path = tmp_path / "meta.csv"
    FORMS[form](path)
    obs, notes, _ = annotation_of(path, CELLS)
    check_columns(obs)
    assert not notes


WITHOUT = {
    "10x": lambda folder: write_tenx(folder / "a.h5", 3),
    "csv": lambda folder: pandas.DataFrame(X, CELLS, [f"g{i}" for i in range(17)]).to_csv(
        folder / "a.csv"
    ),
    "mtx": lambda folder: write_folder(folder, 2),
}


@pytest.mark.parametrize("form", WITHOUT)
@pytest.mark.parametrize("reader", [read, guarded.read])
def test_files_without_annotation_get_it(tmp_path, form, reader):
    (tmp_path / "counts").mkdir()
    WITHOUT[form](tmp_path / "counts")
    OTHERS.to_csv(tmp_path / "meta.csv")
    path = tmp_path / "counts" if form == "mtx" else next((tmp_path / "counts").iterdir())
    counts = reader(path, obs=tmp_path / "meta.csv")
    assert np.array_equal(counts.X.toarray(), X) and counts.cells.tolist() == CELLS.tolist()
    check_columns(counts.obs)


def test_columns_of_the_file_stay_beside_those_of_the_table(tmp_path):
    SHUFFLED.to_csv(tmp_path / "meta.csv")
    counts = check(read(npz(tmp_path / "a.npz"), obs=tmp_path / "meta.csv"))
    assert list(counts.obs) == ["labels", *FRAME.columns]
    adata(sparse.csr_matrix(X)).write_h5ad(tmp_path / "a.h5ad")
    for options in {}, {"backed": True}:
        counts = guarded.read(tmp_path / "a.h5ad", obs=tmp_path / "meta.csv", **options)
        assert list(counts.obs) == ["type", "donor", "lane", *FRAME.columns]


def test_cells_that_a_table_lacks_are_counted(tmp_path):
    FRAME.iloc[4:].to_csv(tmp_path / "meta.csv")
    found = r"meta\.csv: has no line for 4 of 23 cells, such as 'AAC0-1'"
    with pytest.warns(UserWarning, match=found):
        counts = read(npz(tmp_path / "a.npz"), obs=tmp_path / "meta.csv")
    assert counts.obs["kind"].tolist() == [None] * 4 + KIND[4:].tolist()
    assert np.isnan(counts.obs["cluster"][:4]).all()
    assert counts.obs["cluster"][4:].tolist() == FRAME["cluster"][4:].tolist()


@pytest.mark.parametrize("options", [{}, {"backed": True}], ids=["memory", "disk"])
@pytest.mark.parametrize("reader", [read, guarded.read])
def test_cells_that_a_table_lacks_are_left_out_on_demand(tmp_path, reader, options):
    adata(sparse.csr_matrix(X)).write_h5ad(tmp_path / "a.h5ad")
    FRAME[["kind", "cluster"]].iloc[4:].to_csv(tmp_path / "meta.csv")
    FRAME[["mito"]].iloc[::-1][:-1:2].to_csv(tmp_path / "mito.csv")
    with pytest.warns(UserWarning, match="for 4 of 23 cells, such as 'AAC0-1': left"):
        counts = reader(
            tmp_path / "a.h5ad", obs=tmp_path / "meta.csv", only_annotated=True, **options
        )
    assert counts.cells.tolist() == CELLS[4:].tolist()
    assert in_memory(counts).X.toarray().tolist() == X[4:].tolist()
    assert counts.obs["kind"].tolist() == KIND[4:].tolist()
    assert counts.obs["cluster"].dtype.kind == "i"  # of no cell it is missing
    assert counts.obs["lane"].tolist() == TYPES[4:].tolist()
    tables = [tmp_path / "meta.csv", tmp_path / "mito.csv"]
    with pytest.warns(UserWarning, match=r"mito\.csv: has no line for 9 of 19 cells"):
        both = reader(tmp_path / "a.h5ad", obs=tables, only_annotated=True, **options)
    assert both.cells.tolist() == CELLS[4::2].tolist()
    assert both.obs["cluster"].tolist() == FRAME["cluster"][4::2].tolist()
    assert both.obs["mito"].tolist() == FRAME["mito"][4::2].tolist()


def test_cells_are_left_out_by_a_table_only(tmp_path):
    for reader in (read, guarded.read):
        with pytest.raises(ValueError, match="only_annotated=True leaves out .* give obs="):
            reader(npz(tmp_path / "a.npz"), only_annotated=True)
    (tmp_path / "meta.csv").write_text("cell,kind\nx,T\n")
    with pytest.raises(ValueError, match="none of the cells"):
        read(npz(tmp_path / "a.npz"), obs=tmp_path / "meta.csv", only_annotated=True)


def test_several_files_have_one_table(tmp_path):
    for name in ("one", "two"):
        frame = pandas.DataFrame(X[:6], [f"{name}{i}" for i in range(6)], GENES)
        frame.to_csv(tmp_path / f"{name}.csv")
    rows = "".join(f"{cell},T\n" for cell in ("two5", "one3", "one1"))
    (tmp_path / "meta.csv").write_text("cell,type\n" + rows)
    paths = [tmp_path / "one.csv", tmp_path / "two.csv"]
    with pytest.warns(UserWarning, match="for [45] of 6 cells"):
        counts = read(paths, obs=tmp_path / "meta.csv", only_annotated=True)
    assert counts.cells.tolist() == ["one1", "one3", "two5"]
    assert counts.X.toarray().tolist() == X[[1, 3, 5]].tolist()
    assert counts.obs["file"].tolist() == ["one", "one", "two"]


def test_decimal_commas_are_read_where_semicolons_stand_between_fields(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("cell;age;both;id\na;0,5;1,5;3,A\nb;;2.5;1,2\nc;-3;1;1\n")
    obs, notes, _ = annotation_of(path, np.array(["c", "a", "b"]))
    np.testing.assert_array_equal(obs["age"], [-3.0, 0.5, np.nan])
    assert obs["both"].tolist() == ["1", "1,5", "2.5"] and obs["id"].tolist() == ["1", "3,A", "1,2"]
    assert notes == (f"{path}: numbers were read with decimal commas, 0,5 as 0.5, in: age",)


def test_blanks_around_fields_are_nobodys_intention(tmp_path):
    (tmp_path / "m.csv").write_text("cell, donor , age\na , d1,  3\nb,d1 , 4\n")
    obs = annotation_of(tmp_path / "m.csv", np.array(["a", " b"])).obs
    assert {key: values.tolist() for key, values in obs.items()} == {
        "donor": ["d1", "d1"],
        "age": [3, 4],
    }


def test_columns_without_a_name_get_one(tmp_path):
    (tmp_path / "m.csv").write_text(",cell,\n0,a,T\n1,b,B\n")  # pandas, of a table with an index
    obs = annotation_of(tmp_path / "m.csv", np.array(["a", "b"])).obs
    assert list(obs) == ["Unnamed: 0", "Unnamed: 2"] and obs["Unnamed: 2"].tolist() == ["T", "B"]


def test_clusters_that_are_called_as_some_cells_are_no_names(tmp_path):
    """Cells are called by numbers, of which clusters have some: each cell is named once."""
    rows = "".join(f"{i % 3},{i}\n" for i in range(4, 10))
    (tmp_path / "m.csv").write_text("cluster,cell\n" + rows)
    obs = annotation_of(tmp_path / "m.csv", np.array([str(i) for i in range(8)])).obs
    np.testing.assert_array_equal(obs["cluster"], [np.nan] * 4 + [1, 2, 0, 1])


BAD = {
    "other names": ("cell,kind\nx1,T\nx2,B\n", r"none of the cells .* 'AAC0-1', in the table 'x1'"),
    "other case": (
        f"cell,kind\n{CELLS[3].lower()},T\n",
        "upper and lower case only .*: write them",
    ),
    "a column for each cell": (f"field,x,{CELLS[0]}\nkind,T,B\n", "named as the cells: transpose"),
    "twice": (f"cell,kind\n{CELLS[0]},T\n{CELLS[0]},B\n", f"has the cell '{CELLS[0]}' twice"),
    "short line": (
        f"cell,kind\n{CELLS[0]},T\n{CELLS[1]}\n",
        "line 3 has 1 field, and the line of names has 2",
    ),
    "two columns": (f"cell,kind,kind\n{CELLS[0]},T,B\n", "has two columns 'kind'"),
    "no lines": ("cell,kind\n", "holds no cells"),
    "nothing": ("", "holds no cells"),
    "no text": (b"\xfe\xfd\x00\n\x01", "holds bytes that are no UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_tables_that_are_refused(tmp_path, case):
    content, message = BAD[case]
    path = tmp_path / "meta.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read(npz(tmp_path / "a.npz"), obs=path)
    assert str(error.value).startswith(f"obs: {path}: ") and "\n" not in str(error.value)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"obs: .*meta\.csv: no such file"):
        read(npz(tmp_path / "a.npz"), obs=tmp_path / "meta.csv")


def test_whole_numbers_with_gaps_and_large_ones(tmp_path):
    cells = np.array(["a", "b", "c"])
    text = "cell,whole,gap,large,signed\na,1,1,9007199254740993,-1\nb,2,,2,+2\nc,3,3,3,3\n"
    (tmp_path / "m.csv").write_text(text)
    obs = annotation_of(tmp_path / "m.csv", cells).obs
    kinds = {key: values.dtype.kind for key, values in obs.items()}
    assert kinds == {"whole": "i", "gap": "f", "large": "f", "signed": "i"}
    assert obs["signed"].tolist() == [-1, 2, 3] and np.isnan(obs["gap"][1])


def test_mtx_alone_takes_no_table_of_other_cells(tmp_path):
    scipy.io.mmwrite(tmp_path / "a.mtx", sparse.coo_matrix(X))
    FRAME.to_csv(tmp_path / "meta.csv")
    with (
        pytest.warns(UserWarning, match="it was guessed that its rows are cells"),
        pytest.raises(ValueError, match="they are called 'cell_0', in the table 'AAC0-1'"),
    ):
        read(tmp_path / "a.mtx", obs=tmp_path / "meta.csv")


@pytest.mark.parametrize(
    "cell, name, says",
    [
        ("ACGTACGTACGTACGT-1", "ACGTACGTACGTACGT", "add it in the table, or take it away"),
        ("ACGTACGTACGTACGT-1", "P01_ACGTACGTACGTACGT", "'P01_ACGTACGTACGTACGT'): add it"),
        ("ACGTACGTACGTACGT-1", "TTTTACGTACGTACGT-1", "bring the names in line"),
    ],
)
def test_barcodes_that_differ_in_what_is_around_them(tmp_path, cell, name, says):
    (tmp_path / "c.csv").write_text(f"cell,g1,g2\n{cell},4,1\nCCCCACGTACGTACGT-1,2,2\n")
    (tmp_path / "meta.csv").write_text(f"cell,type\n{name},B\n")
    with pytest.raises(ValueError, match="none of the cells by name") as error:
        read(tmp_path / "c.csv", obs=tmp_path / "meta.csv")
    assert says in str(error.value)
    with pytest.raises(ValueError, match="none of the cells by name") as error:
        read_labels(tmp_path / "meta.csv", None, np.array([cell]))
    assert says in str(error.value)


@pytest.mark.parametrize(
    "texts, values",
    [
        (["1_0", "10", "2"], ["1_0", "10", "2"]),  # Python would read 10, and have one label
        (["007", "7", "12"], ["007", "7", "12"]),  # a donor's number, and another's
        (["0", "-0", "+1"], [0, 0, 1]),
        (["0.5", "00.5", "1"], ["0.5", "00.5", "1"]),
        (["0x10", "1", "2"], ["0x10", "1", "2"]),
        (["1e3", "0.25", " 3 "], [1000.0, 0.25, 3.0]),
        (["inf", "1", "-Inf"], [np.inf, 1, -np.inf]),
        (["TRUE", "FALSE", "TRUE"], ["TRUE", "FALSE", "TRUE"]),
        (["2024-01-31", "2024-02-01", "2024-02-01"], ["2024-01-31", "2024-02-01", "2024-02-01"]),
        (["1", "#N/A", "3"], [1.0, np.nan, 3.0]),
    ],
)
def test_texts_that_are_numbers_and_others(tmp_path, texts, values):
    rows = "".join(f"c{i},{text}\n" for i, text in enumerate(texts))
    (tmp_path / "m.csv").write_text("cell,column\n" + rows)
    found = annotation_of(tmp_path / "m.csv", np.array(["c0", "c1", "c2"])).obs["column"]
    np.testing.assert_array_equal(found, values)
    assert (found.dtype.kind == "U") == isinstance(values[0], str)
