"""Tables and .npz: files of other software, and hostile ones.

Know before reading: models/files.py. Know after: which files are read, and in what words others are
refused.
"""

import gzip
import io
import os
import re
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import scipy.io
from scipy import sparse

from models import counts as C
from models import guarded
from models.counts import as_matrix, read
from tests.example_counts import CELLS, GENES, TYPES, X, check, npz

DATA = "demos/data"
_indices = sparse.csr_matrix(X).indices
_indptr = sparse.csr_matrix(X).indptr


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".tsv.gz"])
def test_table_of_pandas(tmp_path, ending):
    pandas = pytest.importorskip("pandas")
    names = [f'{gene}, "x"' for gene in GENES]
    frame = pandas.DataFrame(X, index=CELLS, columns=names)
    frame.to_csv(tmp_path / f"a{ending}", sep="\t" if "tsv" in ending else ",")
    check(read(tmp_path / f"a{ending}"), genes=names)
    assert np.array_equal(as_matrix(frame), X)


TABLES = {  # of the example beside them, cells as rows
    "R without corner, mark of UTF-8, Windows": "\ufeffg1,g2\r\nc1,1,2\r\n\r\nc2,0,3.0\r\n",
    "quotes": '"","g1","g2"\n"c1",1,2\n"c2","0","3"\n',
    "comments": "# made by hand\n# on Monday, late\ncell,g1,g2\nc1,1,2\nc2,0,3\n",
    "a comment without fields": "#\n\ncell,g1,g2\nc1,1,2\nc2,0,3\n",
    "a comment of as many fields": "#a,b,c\ncell,g1,g2\nc1,1,2\nc2,0,3\n",
    "names that begin with #": "# a comment\n#cell,g1,g2\nc1,1,2\nc2,0,3\n",
    "delimiter at the end": "cell,g1,g2,\nc1,1,2,\nc2,0,3,\n",
    "delimiter at the end, R": "g1,g2,\nc1,1,2,\nc2,0,3,\n",
    "delimiter at the end of names": "cell,g1,g2,\nc1,1,2\nc2,0,3\n",
    "blanks after commas": "cell, g1, g2\nc1 , 1, 2\nc2, 0, 3\n",
    "empty lines": "\ncell,g1,g2\n\nc1,1,2\n ,\nc2,0,3\n,,\n  \n\n",
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "zipped.csv"])
def test_tables_as_they_are_found(tmp_path, case, name):
    text = TABLES[case].replace(",", "\t") if "tsv" in name else TABLES[case]
    content = text.encode()  # of a.csv.gz too: some programs unpack it and leave its name
    (tmp_path / name).write_bytes(gzip.compress(content) if name == "zipped.csv" else content)
    check(read(tmp_path / name), ["g1", "g2"], ["c1", "c2"], np.array([[1, 2], [0, 3]]))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.txt.gz"])
@pytest.mark.parametrize("mark", [",", "\t", ";", " "])
def test_what_stands_between_the_fields_is_found_out(tmp_path, name, mark):
    rows = ["cell", '"g, 1; a"', "g2"], ["c1", "1", "2"], ["c2", "0", "3"]
    content = "\n".join(mark.join(row) for row in rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    check(read(tmp_path / name), ["g, 1; a", "g2"], ["c1", "c2"], np.array([[1, 2], [0, 3]]))


def test_a_table_without_names_of_genes_keeps_its_first_cell(tmp_path):
    (tmp_path / "a.csv").write_text("c1,0,2,0,1\nc2,3,0,0,0\n")
    with pytest.warns(UserWarning, match=r"a\.csv: the first line holds counts and no names"):
        counts = read(tmp_path / "a.csv")
    x = np.array([[0, 2, 0, 1], [3, 0, 0, 0]])
    check(counts, ["gene_0", "gene_1", "gene_2", "gene_3"], ["c1", "c2"], x)
    with pytest.warns(UserWarning, match="the first line holds counts"):
        counts = read(tmp_path / "a.csv", transpose=True)
    check(counts, ["c1", "c2"], [f"cell_{i}" for i in range(4)], x.T)


def test_genes_named_by_numbers_are_names(tmp_path, recwarn):
    (tmp_path / "a.csv").write_text("cell,7157,672,1956\nc1,0,2,0\nc2,3,0,0\n")
    x = np.array([[0, 2, 0], [3, 0, 0]])
    check(read(tmp_path / "a.csv"), ["7157", "672", "1956"], ["c1", "c2"], x)
    assert not recwarn.list


CELLS_OF = {  # names as GEO's tables have them
    "barcodes": [f"mouse{i % 3}_{'ACGT'[i % 4]}CATGTTGACGGTAC" for i in range(40)],
    "10x": [f"AAAC{'ACGT'[i % 4]}CCAAGG{'ACGT'[i // 4 % 4]}GAGTA-1" for i in range(40)],
    "samples": [f"GSM{1234 + i}" for i in range(40)],
    "numbered": [f"Cell_{i}" for i in range(40)],
    "patients": [f"patient{i}.tumor" for i in range(40)],
    "wells": [f"plate3_{'ABCD'[i % 4]}{i // 4 + 1:02}" for i in range(40)],
}
GENES_OF = {
    "mouse": "Cyp2f2 Scgb3a1 Sftpc Rpl13 Cd74 H2-Aa Gm1673 1110008P14Rik Actb Krt8".split(),
    "human": "HES4 ISG15 TNFRSF18 MT-CO1 RPS27 HLA-DRA CD3E LINC01128 NOC2L GNLY".split(),
    "Ensembl": [f"ENSMUSG{i:011}.2" for i in range(10)],
    "fly": [f"FBgn{i:07}" for i in range(10)],
}


@pytest.mark.parametrize("genes", GENES_OF)
@pytest.mark.parametrize("cells", CELLS_OF)
def test_names_that_seem_to_be_the_wrong_way_round_are_a_warning(tmp_path, cells, genes, recwarn):
    of_cells, of_genes = CELLS_OF[cells], GENES_OF[genes]
    x = np.ones((len(of_genes), len(of_cells)), int)
    lines = [",".join(["gene", *of_cells])]
    lines += [f"{gene},{','.join(map(str, row))}" for gene, row in zip(of_genes, x)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    read(tmp_path / "a.csv")
    (said,) = recwarn.list
    found = "for genes have names of cells .* for cells have names of genes .* pass transpose=True"
    assert re.search(found, str(said.message))
    check(read(tmp_path / "a.csv", transpose=True), of_genes, of_cells, x.T)
    assert len(recwarn.list) == 1
    right = "\n".join(
        [",".join(["cell", *of_genes])]
        + [f"{cell},{','.join(map(str, row))}" for cell, row in zip(of_cells, x.T)]
    )
    (tmp_path / "b.csv").write_text(right)
    check(read(tmp_path / "b.csv"), of_genes, of_cells, x.T)
    assert len(recwarn.list) == 1
    read(tmp_path / "b.csv", transpose=True)
    assert "leave out transpose=True" in str(recwarn.list[1].message)


def test_names_that_are_neither_are_no_warning(tmp_path, recwarn):
    (tmp_path / "a.csv").write_text("x,north,south\nJan,1,2\nFeb,3,4\n")
    read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(f"cell,x\n{'A' * 10**5}b,1\n{'cell ' * 10**4},2\n")
    read(tmp_path / "b.csv")  # and in no time
    assert not recwarn.list


def test_a_cell_that_begins_with_a_hash_is_one(tmp_path):
    (tmp_path / "a.csv").write_text("cell,g1\n#1,1\n#2,2\n")
    check(read(tmp_path / "a.csv"), ["g1"], ["#1", "#2"], np.array([[1], [2]]))


def test_a_gene_without_name_keeps_its_place(tmp_path):
    (tmp_path / "a.csv").write_text("cell,g1,\nc1,1,2\nc2,0,3\n")
    check(read(tmp_path / "a.csv"), ["g1", ""], ["c1", "c2"], np.array([[1, 2], [0, 3]]))


@pytest.mark.parametrize("name", ["a.csv", "a.npz"])
def test_names_that_occur_twice_stay_in_their_order(tmp_path, name):
    genes = ["b", "a", "b", "a", "A"]
    cells = ["c", "c", "d"]
    matrix = np.arange(1, 16).reshape(3, 5)
    if name == "a.csv":
        lines = [f"{cell},{','.join(map(str, row))}" for cell, row in zip(cells, matrix)]
        (tmp_path / name).write_text("\n".join([",".join(["", *genes]), *lines]))
    else:
        rows = sparse.csr_matrix(matrix)
        parts = dict(data=rows.data, indices=rows.indices, indptr=rows.indptr, shape=rows.shape)
        np.savez(tmp_path / name, **parts, genes=genes, cells=cells)
    check(read(tmp_path / name), genes, cells, matrix)


def test_transposed(tmp_path):
    counts = read(npz(tmp_path / "a.npz"), transpose=True)
    check(counts, genes=CELLS, cells=GENES, X=X.T)
    assert list(counts.var) == ["labels"] and counts.var["labels"].tolist() == TYPES.tolist()
    assert list(counts.obs) == ["lengths"] and counts.obs["lengths"].tolist() == list(range(17))
    (tmp_path / "a.csv").write_text("gene,c1,c2\ng1,1,0\ng2,2,3\ng3,4,5\n")
    counts = read(tmp_path / "a.csv", transpose=True)
    check(counts, ["g1", "g2", "g3"], ["c1", "c2"], np.array([[1, 2, 4], [0, 3, 5]]))


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64, bool])
def test_npz_of_scipy(tmp_path, form, dtype):
    matrix = form((X % 200).astype(dtype))
    sparse.save_npz(tmp_path / "a.npz", matrix, compressed=True)
    names = [f"gene_{g}" for g in range(17)], [f"cell_{c}" for c in range(23)]
    check(read(tmp_path / "a.npz"), *names, X=matrix.toarray())


@pytest.mark.parametrize("dtype", ["u2", "<i8", ">i4", ">f8", "f2"])
def test_npz(tmp_path, dtype):
    data = sparse.csr_matrix(X).data.astype(dtype)
    counts = check(read(npz(tmp_path / "a.npz", data=data, indptr=_indptr.astype(">i8"))))
    assert list(counts.obs) == ["labels"] and counts.obs["labels"].tolist() == TYPES.tolist()


@pytest.mark.parametrize(
    "name, shape, nonzero, obs, empty",
    [
        ("cortex", (3005, 558), 0.77, ["labels", "subtypes"], 0),
        ("pbmc68k", (700, 765), 0.33, ["labels"], 0),
        ("brain10k", (10000, 715), 0.10, [], 1),
    ],
)
def test_shipped_data(name, shape, nonzero, obs, empty):
    counts = read(f"{DATA}/{name}.npz")
    assert counts.shape == shape and list(counts.obs) == obs
    assert abs(counts.X.nnz / np.prod(shape) - nonzero) < 0.006
    assert C.empty_cells(counts).sum() == empty


# Hostile files


class Evil:
    def __reduce__(self):
        return pytest.fail, ("the pickle was executed",)


def header_only(declared):
    """An .npy that declares a shape and holds nothing of it."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, dict(descr="<i4", fortran_order=False, shape=declared)
    )
    return stream.getvalue()


def npz_with_member(path, name, content):
    npz(path, **{name: None})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", content)


def truncated(path):
    npz(path)
    path.write_bytes(path.read_bytes()[:-200])


def texts(*codes):
    """17 names of one character, of which some have these numbers."""
    return np.array([*codes, *range(100, 117 - len(codes))], np.uint32).view("<U1")


HOSTILE_NPZ = {
    "half of a character": (dict(genes=texts(0xD800)), "genes.npy holds numbers that stand for no"),
    "beyond Unicode": (dict(genes=texts(0x7FFFFFFF)), "genes.npy holds numbers that stand for no"),
    "the same the other way round": (
        dict(genes=texts(0x110000).byteswap().view(">U1")),
        "genes.npy holds numbers that stand for no characters",
    ),
    "indptr beyond int64": (
        dict(indptr=np.r_[np.uint64(0), np.full(23, 2**64 - 1, np.uint64)]),
        "indptr must rise from 0",
    ),
    "shape beyond int64": (
        dict(shape=np.array([2**64 - 1, 17], np.uint64)),
        "declares 18446744073709551615 x 17",
    ),
    "times": (dict(labels=np.arange(23).astype("M8[s]")), r"datetime64\[s\], not numbers"),
    "pickle in data": (dict(data=np.array([Evil()] * 9)), "not unpickled"),
    "pickle in another array": (dict(labels=np.array([Evil()] * 23)), "not unpickled"),
    "no indptr": (dict(indptr=None), "holds no indptr"),
    "no matrix": (dict(data=None, shape=None), "holds no data, shape"),
    "index too large": (
        dict(indices=np.where(_indices == 16, 17, _indices)),
        "from 0 to 17, outside 0 to 16",
    ),
    "negative index": (dict(indices=_indices - 1), "from -1 to 15, outside 0 to 16"),
    "float indices": (dict(indices=_indices / 1), "whole numbers"),
    "data too short": (dict(data=np.ones(4)), "have lengths 4"),
    "indptr too short": (dict(indptr=_indptr[:-1]), "truncated or damaged"),
    "indptr ends early": (dict(indptr=np.minimum(_indptr, 50)), "must rise from 0"),
    "indptr falls": (dict(indptr=np.r_[0, 90, 40, _indptr[3:]]), "must rise from 0"),
    "indptr falls, unsigned": (
        dict(indptr=np.r_[0, 90, 40, _indptr[3:]].astype(np.uint32)),
        "must rise from 0",
    ),
    "indptr starts late": (dict(indptr=np.r_[1, _indptr[1:]]), "must rise from 0"),
    "two-dimensional data": (dict(data=np.ones((len(_indices), 1))), "lengths"),
    "huge shape, rows": (dict(shape=np.array([10**12, 17])), "declares 1000000000000 x 17"),
    "huge shape, columns": (dict(shape=np.array([23, 10**12])), "declares 23 x 1000000000000"),
    "negative shape": (dict(shape=np.array([-1, 17])), "declares -1 x 17"),
    "shape of three": (dict(shape=np.array([23, 17, 1])), "shape of two"),
    "fractional shape": (dict(shape=np.array([23.0, 17.0])), "whole numbers"),
    "unknown form": (dict(format=np.array(b"bsr")), "in the form 'bsr'"),
    "too few genes": (dict(genes=GENES[1:]), r"genes has shape \(16,\), needs \(17,\)"),
    "too few cells": (dict(cells=CELLS[1:]), r"cells has shape \(22,\), needs \(23,\)"),
    "too few labels": (dict(labels=TYPES[1:]), r"obs\['labels'\] has shape \(22,\), needs \(23,\)"),
    "matrix of names": (dict(genes=np.array([GENES])), r"genes has shape \(1, 17\)"),
    "text for data": (dict(data=_indices.astype(str)), "damaged|dtype"),
    "complex data": (dict(data=_indices * 1j), "complex128, not numbers"),
    "fractional": (dict(data=_indices + 0.25), "looks normalised or scaled, and rounding"),
    "negative": (dict(data=_indices - 5), "which is negative"),
    "not a number": (dict(data=np.where(_indices == 7, np.nan, 1)), "is nan; counts are finite"),
    "half floats that overflow": (
        dict(data=np.full(len(_indices), np.inf, np.float16)),
        "is inf; counts are finite",
    ),
    "no cells": (
        dict(
            data=_indices[:0],
            indices=_indices[:0],
            indptr=[0],
            shape=[0, 17],
            cells=None,
            labels=None,
        ),
        "no cells",
    ),
}


@pytest.mark.parametrize("case", HOSTILE_NPZ)
def test_hostile_npz(tmp_path, case):
    changes, message = HOSTILE_NPZ[case]
    with pytest.raises(ValueError, match=message) as error:
        read(npz(tmp_path / "a.npz", **changes))
    assert str(error.value).startswith(str(tmp_path / "a.npz")) and "\n" not in str(error.value)


BOMBS = {
    "zip bomb": lambda path: npz(path, data=np.zeros(10**8, np.uint8)),
    "zip bomb in an unused array": lambda path: npz(path, extra=np.zeros((10**4, 10**4), np.uint8)),
    "huge declared array": lambda path: npz_with_member(path, "indptr", header_only((10**13,))),
    "negative declared shape": lambda path: npz_with_member(
        path, "indptr", header_only((-3, -8)) + bytes(96)
    ),
    "header that is no header": lambda path: npz_with_member(
        path, "indptr", b"\x93NUMPY\x01\x00\x08\x00[[[[[[[["
    ),
    "truncated": truncated,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are for POSIX")
@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.mtx", "a.npz", "a.h5ad", "a.loom"])
@pytest.mark.parametrize("reader", [read, guarded.read])
def test_what_may_never_end_is_refused(tmp_path, name, reader):
    """A pipe that nobody writes to, and a device without end behind a link."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: {name} is a pipe, a device or a folder"):
        reader(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{name}: {name} is a pipe, a device or a folder"):
        reader(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are for POSIX")
def test_a_pipe_beside_a_matrix_or_as_a_table_of_cells_is_refused(tmp_path):
    scipy.io.mmwrite(tmp_path / "matrix.mtx", sparse.csc_matrix(X.T))
    (tmp_path / "genes.tsv").write_text("\n".join(GENES))
    os.mkfifo(tmp_path / "barcodes.tsv")
    with pytest.raises(ValueError, match="barcodes.tsv is a pipe"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="barcodes.tsv: no such file"):
        read(npz(tmp_path / "a.npz"), obs=tmp_path / "barcodes.tsv")


def test_names_in_bytes_and_with_zeros_and_controls_are_kept(tmp_path):
    genes = np.array([f"g\0{i}" for i in range(17)])
    cells = np.array([f"c\x1b[2J{i}" for i in range(23)])
    counts = read(npz(tmp_path / "a.npz", genes=genes, cells=cells.astype("S")))
    check(counts, genes=genes, cells=cells)


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_and_ruins(tmp_path, case):
    BOMBS[case](tmp_path / "a.npz")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a\.npz: .*(declares|damaged)"):
            read(tmp_path / "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


noise = np.random.default_rng(0).bytes(10**5).replace(b"\n", b"")
MTX = "%%MatrixMarket matrix coordinate integer general\n"
HOSTILE_TEXT = {
    "huge mtx shape": (
        "a.mtx",
        MTX + "1000000000 1000000000 1\n1 1 1\n",
        "declares 1000000000 x 1000000000",
    ),
    "huge mtx count": (
        "a.mtx",
        MTX + "%\n9 9 10000000000\n1 1 1\n",
        "holds 3 numbers where 10000000000 entries need 30000000000",
    ),
    "huge dense mtx": (
        "a.mtx",
        "%%MatrixMarket matrix array integer general\n1000000 1000000\n1\n",
        "holds 1 numbers",
    ),
    "truncated mtx": ("a.mtx", MTX + "9 9 3\n1 1 1\n", "holds 3 numbers where 3 entries need 9"),
    "mtx row": ("a.mtx", MTX + "2 2 1\n3 1 1\n", "outside the shape"),
    "mtx column": (
        "a.mtx",
        "%%MatrixMarket matrix coordinate real general\n2 2 1\n1 0 1\n",
        "outside the shape",
    ),
    "mtx word": ("a.mtx", MTX + "2 2 1\n1 x 1\n", "damaged"),
    "symmetric mtx": (
        "a.mtx",
        "%%MatrixMarket matrix coordinate integer symmetric\n2 2 1\n1 1 1\n",
        "starts with",
    ),
    "mtx without sizes": ("a.mtx", MTX, "damaged"),
    "complex mtx": (
        "a.mtx",
        MTX.replace("integer", "complex") + "2 2 1\n1 1 1 1\n",
        "'%%m.* complex general'; write",
    ),
    "no mtx": ("a.mtx", "", "starts with ''"),
    "short line": ("a.csv", "cell,g1,g2\nc1,1,2\nc2,1\n", "line 3 has 1 count for 2 genes"),
    "word": (
        "a.csv",
        "cell,g1,g2\nc1,1,2\nc2,1,NA\n",
        "line 3, column 'g2': 'NA' is no number; counts are written without commas, and as 0 where",
    ),
    "empty field": ("a.csv", "cell,g1\nc1,\n", "line 2, column 'g1': '' is no number"),
    "Python's underscore": ("a.csv", "cell,g1,g2\nc1,3,1_0\n", "column 'g2': '1_0' is no number"),
    "decimal commas": ("a.csv", "cell;g1;g2\nc1;3,0;1,0\n", "column 'g1': '3,0' is no number"),
    "hexadecimal": ("a.csv", "cell,g1,g2\nc1,3,0x10\n", "column 'g2': '0x10' is no number"),
    "NaN": ("a.csv", "cell,g1,g2\nc1,3,nan\n", "column 1 .* is nan; counts are finite"),
    "infinity": ("a.csv", "cell,g1,g2\nc1,3,Infinity\n", "column 1 .* is inf; counts are finite"),
    "beyond all numbers": ("a.csv", "cell,g1,g2\nc1,3,1e999\n", "is inf; counts are finite"),
    "nan": ("a.csv", "cell,g1\nc1,nan\n", "row 0, column 0 .* is nan"),
    "header only": ("a.csv", "cell,g1\n", "holds no cells"),
    "nothing": ("a.csv", "", "holds no cells"),
    "no genes": ("a.csv", "cell\nc1\n", "its lines hold one field each, and no counts"),
    "a page of the web": ("a.csv", "<html>\n<body>\n</html>\n", "its lines hold one field each"),
    "UTF-16": ("a.txt", "cell,g1\nc1,1\n".encode("utf-16"), "is UTF-16, as Excel's .*; save it as"),
    "latin-1": ("a.csv", "cell,Gène\nc1,1\n".encode("latin-1"), r"no UTF-8, such as b'\\xe8'; sav"),
    "decimal comma": (
        "a.csv",
        "c;g1;g2\nc1;1;2,5\n",
        "line 2, column 'g2': '2,5' is no number; cou",
    ),
    "thousands": ("a.csv", 'c,g1,g2\nc1,1,"1,234"\n', "column 'g2': '1,234' is no number"),
    "what is known of cells": (
        "a.csv",
        "cell,type,g1\nc1,T,4\n",
        r"column 'type': 'T' .* in a table of its own: read\(\.\.\., obs=TABLE\)",
    ),
    "names only": ("a.tsv", "a,b\nc,d\n", "line 2, column 'b': 'd' is no number"),
    "two lines in quotes": (
        "a.csv",
        'cell,g1\nc1,"1\n2"\n',
        "line 3, column 'g1': .* is no number",
    ),
    "no text": ("a.csv", b"\xfe\xfd\x00", r"no UTF-8, such as b'\\xfe'; save it"),
    "delimiter at the end of counts only": (
        "a.csv",
        "cell,g1\nc1,1,\n",
        "line 2, column 'g[12]': '' is no number",
    ),
    "last count missing": (
        "a.csv",
        "cell,g1,g2\nc1,1,\nc2,1,1\n",
        "line 2, column 'g[12]': '' is no number",
    ),
    "no names of cells": ("a.csv", "g1,g2\n0,2\n0,0\n3,1\n", "the first column holds counts where"),
    "no names at all": ("a.csv", "0,2\n0,0\n3,1\n0,0\n", "the first column holds counts where"),
    "comments only": ("a.csv", "# cell,g1\n# c1,1\n", "holds no cells"),
    "nothing, named gz": ("a.csv.gz", "", "holds no cells"),
    "gzip cut off": ("a.csv.gz", gzip.compress(b"cell,g1\nc1,1\n" * 99)[:40], "damaged"),
    "gzip bomb": ("a.csv.gz", gzip.compress(b"c,g\n" + b"1,0\n" * 10**7), "the text declares"),
    "gzip bomb that lies": (
        "a.csv.gz",
        gzip.compress(b"c,g\n" + (b"1," + b"0" * 10**5 + b"\n") * 300)[:-4] + bytes(4),
        "the text declares",
    ),
    "one endless line": ("a.tsv.gz", gzip.compress(b"\t0" * 10**7 + noise), "more than 16 MB"),
    "unknown": ("a.dat", "", r"unknown format; known: a 10x folder, a zarr store, \.npz"),
    "spreadsheet": ("a.xlsx", "", r"unknown format: save the sheet as \.csv; known: a 10x folder"),
    "of R": ("a.Rds", "", r"unknown format: R reads it; write the counts there, with Matrix::writ"),
    "packed": ("a.csv.zip", "", "unknown format: unpack it first; known"),
    "of several parts": ("a.h5mu", "", "unknown format: MuData of several parts; write the one"),
}


def test_lines_may_end_as_on_any_system(tmp_path):
    table = "cell,g1,g2\nc1,1,2\nc2,0,4\n"
    for i, end in enumerate(("\n", "\r\n", "\r")):
        path = tmp_path / f"{i}.csv"
        path.write_bytes(table.replace("\n", end).encode())
        counts = read(path)
        assert counts.X.toarray().tolist() == [[1, 2], [0, 4]]
        assert counts.cells.tolist() == ["c1", "c2"] and counts.genes.tolist() == ["g1", "g2"]


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("what", ["line", "column", "both", "neither"])
def test_a_line_or_column_of_sums_is_a_warning(tmp_path, what, gzipped):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X[6:12, :5], [f"c{i}" for i in range(6)], [f"g{i}" for i in range(5)])
    if what in ("line", "both"):
        frame.loc["Total"] = frame.sum()
    if what in ("column", "both"):
        frame["Sum"] = frame.sum(axis=1)
    path = tmp_path / ("a.csv.gz" if gzipped else "a.csv")
    frame.to_csv(path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert read(path).shape == frame.shape
    words = " ".join(str(warning.message) for warning in said)
    assert ("the last line, 'Total', is the sum of the others" in words) == (
        what in ("line", "both")
    )
    found = "the last column, 'Sum', is the sum of the others; if it is none of the cells or genes"
    assert (found in words) == (what in ("column", "both"))


@pytest.mark.parametrize("case", HOSTILE_TEXT)
def test_hostile_text(tmp_path, case):
    name, content, message = HOSTILE_TEXT[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)
