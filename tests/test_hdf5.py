"""HDF5 files: of other software, and hostile ones.

Know before reading: models/hdf5.py. Know after: which files are read, and in what words others are
refused.
"""

import re
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from scipy import sparse

from models import counts as C
from models import hdf5 as H
from models.counts import Counts, as_matrix, read
from tests.example_counts import (
    CELLS,
    GENES,
    TYPES,
    X,
    adata,
    check,
    edit,
    replace,
    write_loom,
    write_tenx,
)

_indices = sparse.csr_matrix(X).indices


@pytest.mark.parametrize(
    "form", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.asfortranarray, np.array]
)
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_h5ad(tmp_path, form, compression):
    a = adata(form(X.astype(np.float32)))
    a.uns["nothing"] = None
    a.write_h5ad(tmp_path / "a.h5ad", compression=compression)
    counts = check(read(tmp_path / "a.h5ad"))
    assert counts.obs["type"].tolist() == counts.obs["lane"].tolist() == TYPES.tolist()
    assert counts.obs["donor"].tolist() == [c % 2 for c in range(23)]


def test_h5ad_layer_and_raw(tmp_path):
    a = adata(sparse.csr_matrix(X), counts=sparse.csc_matrix(X), dense=X)
    a.raw = a
    a = a[:, 2:9].copy()
    a.X = np.log1p(a.X)
    a.write_h5ad(tmp_path / "a.h5ad")
    check(read(tmp_path / "a.h5ad", layer="raw"))
    for layer in "counts", "dense":
        check(read(tmp_path / "a.h5ad", layer=layer), genes=GENES[2:9], X=X[:, 2:9])
    with pytest.raises(ValueError, match=r'looks normalised.*layer="counts".*layer="raw"'):
        read(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"a\.h5ad: no layer 'count'; there are: counts, dense"):
        read(tmp_path / "a.h5ad", layer="count")
    check(Counts(as_matrix(a, layer="raw"), GENES, CELLS))
    check(Counts(as_matrix(a, layer="counts"), GENES[2:9], CELLS), genes=GENES[2:9], X=X[:, 2:9])
    a.X = None
    a.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(ValueError, match="has no X; say which layer to read: counts, dense"):
        read(tmp_path / "b.h5ad")
    with pytest.raises(
        ValueError, match=r"^counts: no X; there are the layers \['counts', 'dense'\]"
    ):
        as_matrix(a)


def test_h5ad_columns_with_missing_values(tmp_path):
    a, pandas = adata(), pytest.importorskip("pandas")
    a.obs["type"] = a.obs["type"].where(np.arange(23) != 4)
    a.obs["n"] = pandas.array([None] + list(range(22)), dtype="Int64")
    a.obs["m"] = pandas.array(range(23), dtype="Int64")
    a.obs["none"] = pandas.Categorical([None] * 23)
    a.write_h5ad(tmp_path / "a.h5ad")
    obs = read(tmp_path / "a.h5ad").obs
    assert (
        obs["type"][4] is None
        and obs["type"][5] == TYPES[5]
        and obs["none"].tolist() == [None] * 23
    )
    assert obs["n"].tolist() == [None] + list(range(22)) and obs["m"].tolist() == list(range(23))
    with pytest.raises(ValueError, match="1 of 23 cells has no label, the first of them cell 4"):
        C.batch_codes("type", 23, obs=obs)


def test_h5ad_categories_of_anndata_0_7(tmp_path):
    h5py = pytest.importorskip("h5py")
    adata().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        obs = file["obs"]
        codes, categories = obs["type/codes"][()], obs["type/categories"][()]
        del obs["type"]
        obs["type"], obs["__categories/type"] = codes, categories
        obs["type"].attrs["categories"] = obs["__categories/type"].ref
    assert check(read(tmp_path / "a.h5ad")).obs["type"].tolist() == TYPES.tolist()


def test_h5ad_opened_backed(tmp_path):
    anndata = pytest.importorskip("anndata")
    for matrix in X, sparse.csr_matrix(X):
        adata(matrix).write_h5ad(tmp_path / "a.h5ad")
        a = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
        result = as_matrix(a)
        assert np.array_equal(result.toarray() if sparse.issparse(matrix) else result, X)
        a.file.close()


@pytest.mark.parametrize("version, antibodies", [(2, 0), (3, 0), (3, 4)])
def test_tenx_h5(tmp_path, version, antibodies):
    write_tenx(tmp_path / "filtered.h5", version, antibodies)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check(read(tmp_path / "filtered.h5"))
    assert len(said) == (antibodies > 0)
    if antibodies:
        found = "of 21 features 17 are 'Gene Expression'; left out, .*: 4 'Antibody Capture'"
        assert re.search(found, str(said[0].message))


def test_loom(tmp_path, monkeypatch):
    write_loom(tmp_path / "a.loom")
    monkeypatch.setattr(H, "BLOCK", 1)
    counts = check(read(tmp_path / "a.loom"))
    assert list(counts.obs) == ["type"] and counts.obs["type"].tolist() == TYPES.tolist()
    check(read(tmp_path / "a.loom", layer="spliced"), X=2 * X)


def test_dense_files_are_read_in_blocks(tmp_path):
    h5py = pytest.importorskip("h5py")
    many = np.arange(200 * 3).reshape(200, 3)
    with h5py.File(tmp_path / "a.h5", "w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(H, "BLOCK", 1)  # blocks of 64 cells
        assert np.array_equal(H._dense(file.create_dataset("a", data=many)).toarray(), many)
        assert np.array_equal(
            H._dense(file.create_dataset("b", data=many.T), genes_first=True).toarray(), many
        )


def test_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.h5ad").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'h5py: pip install "minigrad-scvi\[singlecell\]"'):
        read(tmp_path / "a.h5ad")


# Files of other languages, and of other times


def text_type(padding, length):
    """The HDF5 type of strings of one length, in bytes."""
    h5t = pytest.importorskip("h5py").h5t
    kind = h5t.C_S1.copy()
    kind.set_size(length)
    kind.set_cset(h5t.CSET_ASCII)  # which R's packages say whatever is in it
    kind.set_strpad(getattr(h5t, padding))
    return kind


def stored_as(padding, strings):
    """(type, bytes): strings at one length, as another language stores them."""
    strings = [string.encode() for string in np.ravel(strings).tolist()]
    length = max(map(len, strings)) + 3
    end = {"STR_SPACEPAD": b" ", "STR_NULLPAD": b"\0", "STR_NULLTERM": b"\0"}[padding]
    return text_type(padding, length), b"".join(string.ljust(length, end) for string in strings)


def put_text(group, name, strings, padding):
    """An array of strings of one length."""
    h5py = pytest.importorskip("h5py")
    kind, content = stored_as(padding, strings)
    space = h5py.h5s.create_simple(np.shape(strings))
    made = h5py.h5d.create(group.id, name.encode(), kind, space)
    made.write(space, space, np.frombuffer(content, f"V{kind.get_size()}"), mtype=kind)


def put_text_attribute(item, name, strings, padding, as_list):
    """An attribute of strings of one length, one alone as a list of one if as_list."""
    h5py = pytest.importorskip("h5py")
    kind, content = stored_as(padding, strings)
    is_one = np.ndim(strings) == 0
    shape = (1,) if is_one and as_list else np.shape(strings)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    if name in item.attrs:
        del item.attrs[name]
    made = h5py.h5a.create(item.id, name.encode(), kind, space)
    made.write(np.frombuffer(content, f"V{kind.get_size()}"), mtype=kind)


def store_strings_at_one_length(path, padding, as_list):
    """All strings of a file, its attributes too, as HDF5.jl, rhdf5 and hdf5r store them."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "r+") as file:
        items = [file]
        file.visititems(lambda name, item: items.append(item))
        arrays = []
        for item in items:
            for name, value in dict(item.attrs).items():
                if isinstance(value, str) or np.asarray(value).dtype.kind == "O" and np.size(value):
                    put_text_attribute(item, name, value, padding, as_list)
            if isinstance(item, h5py.Dataset) and item.dtype == object and item.shape is not None:
                arrays.append(item)
        for item in arrays:
            parent, name = item.parent, item.name.split("/")[-1]
            strings = item.asstr()[()].astype(str)
            attributes = {key: item.attrs[key] for key in item.attrs}
            del parent[name]
            put_text(parent, name, strings, padding)
            parent[name].attrs.update(attributes)


PADDINGS = ["STR_NULLTERM", "STR_NULLPAD", "STR_SPACEPAD"]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.array])
def test_h5ad_with_strings_of_one_length(tmp_path, padding, as_list, form):
    adata(form(X.astype(np.float32))).write_h5ad(tmp_path / "a.h5ad")
    store_strings_at_one_length(tmp_path / "a.h5ad", padding, as_list)
    counts = check(read(tmp_path / "a.h5ad"))
    assert list(counts.obs) == ["type", "donor", "lane"]
    assert counts.obs["type"].tolist() == counts.obs["lane"].tolist() == TYPES.tolist()
    assert counts.obs["donor"].tolist() == [c % 2 for c in range(23)]


@pytest.mark.parametrize("padding", PADDINGS)
def test_other_formats_with_strings_of_one_length(tmp_path, padding):
    write_loom(tmp_path / "a.loom")
    write_tenx(tmp_path / "a.h5", 3, 4)
    for name in "a.loom", "a.h5":
        store_strings_at_one_length(tmp_path / name, padding, as_list=True)
    with pytest.warns(UserWarning, match="'pca' left out"):
        assert check(read(tmp_path / "a.loom")).obs["type"].tolist() == TYPES.tolist()
    check(read(tmp_path / "a.h5"))


def test_backed_with_strings_of_one_length(tmp_path):
    adata(sparse.csr_matrix(X)).write_h5ad(tmp_path / "a.h5ad")
    store_strings_at_one_length(tmp_path / "a.h5ad", "STR_NULLPAD", as_list=True)
    counts = read(tmp_path / "a.h5ad", backed=True)
    assert counts.genes.tolist() == GENES.tolist()
    assert np.array_equal(counts.X.block(0).toarray(), X[: counts.X.bounds[1]])


@pytest.mark.parametrize("as_list", [False, True])
def test_results_are_added_beside_strings_of_one_length(tmp_path, as_list):
    adata().write_h5ad(tmp_path / "a.h5ad")
    store_strings_at_one_length(tmp_path / "a.h5ad", "STR_SPACEPAD", as_list)
    C.annotate_h5ad(tmp_path / "a.h5ad", tmp_path / "a.h5ad", obs={"cluster": TYPES[::-1]})
    counts = check(read(tmp_path / "a.h5ad"))
    assert list(counts.obs) == ["type", "donor", "lane", "cluster"]
    assert counts.obs["type"].tolist() == counts.obs["cluster"][::-1].tolist() == TYPES.tolist()


def test_text_that_is_no_utf8_can_be_read(tmp_path):
    adata().write_h5ad(tmp_path / "a.h5ad")
    lanes = np.array(["M\xfcnchen", "K\xf6ln"] * 11 + [""]).astype("U9")
    edit(tmp_path / "a.h5ad", replace("obs/lane", [lane.encode("latin-1") for lane in lanes]))
    lane = check(read(tmp_path / "a.h5ad")).obs["lane"]
    assert lane[0] == "M\\xfcnchen" and lane[1] == "K\\xf6ln" and lane[22] == ""


def test_h5ad_without_what_only_python_writes(tmp_path):
    adata().write_h5ad(tmp_path / "a.h5ad")

    def change(file):
        del (
            file["obs"].attrs["column-order"],
            file["obs"].attrs["_index"],
            file["var"].attrs["_index"],
        )

    edit(tmp_path / "a.h5ad", change)
    counts = check(read(tmp_path / "a.h5ad"))
    assert sorted(counts.obs) == ["donor", "lane", "type"]


def set_column(name, make):
    """A change of a file: another column of obs, in the column order too."""

    def change(file):
        if name in file["obs"]:
            del file["obs"][name]
        make(file["obs"])
        order = [*file["obs"].attrs["column-order"], name]
        file["obs"].attrs["column-order"] = np.array(order, dtype=object)

    return change


def group_of(**arrays):
    def make(obs):
        for key, values in arrays.items():
            obs.create_dataset(f"odd/{key}", data=values)

    return make


def records(obs):
    obs["odd"] = np.zeros(23, [("a", "i4"), ("b", "f4")])


def lists(obs):
    h5py = pytest.importorskip("h5py")
    obs.create_dataset("odd", (23,), dtype=h5py.vlen_dtype(np.int32))


ODD_COLUMNS = {
    "two-dimensional": (
        lambda obs: obs.create_dataset("odd", data=np.ones((23, 2))),
        r"\(23, 2\), not \(23,\)",
    ),
    "of another length": (
        lambda obs: obs.create_dataset("odd", data=np.ones(22)),
        r"\(22,\), not \(23,\)",
    ),
    "one number": (lambda obs: obs.create_dataset("odd", data=1), r"\(\), not \(23,\)"),
    "an unknown group": (
        group_of(starts=[1], stops=[2]),
        "form that is not known, a group of starts, stops",
    ),
    "an empty group": (lambda obs: obs.create_group("odd"), "a group of nothing"),
    "records": (records, "not numbers or text"),
    "lists": (lists, "object, not numbers or text"),
    "complex": (lambda obs: obs.create_dataset("odd", data=np.ones(23) * 1j), "complex128, not"),
    "not there": (lambda obs: None, "KeyError"),
    "codes without categories": (
        group_of(codes=np.full(23, 9, "i1"), categories=["a"]),
        "IndexError",
    ),
    "codes that are no numbers": (group_of(codes=np.ones(23), categories=["a", "b"]), "IndexError"),
    "a mask that is missing": (group_of(values=np.ones(23)), "a group of values"),
    "values that are missing": (group_of(mask=np.ones(23, bool)), "a group of mask"),
    "codes alone": (group_of(codes=np.zeros(23, "i1")), "a group of codes"),
    "categories alone": (group_of(categories=["a"]), "a group of categories"),
    "mask of another length": (group_of(values=np.ones(23), mask=np.ones(4, bool)), "IndexError"),
}


@pytest.mark.parametrize("case", ODD_COLUMNS)
@pytest.mark.parametrize("backed", [False, True])
def test_a_column_that_cannot_be_read_is_named_and_the_rest_is_read(tmp_path, case, backed):
    make, reason = ODD_COLUMNS[case]
    adata(sparse.csr_matrix(X)).write_h5ad(tmp_path / "a.h5ad")
    edit(tmp_path / "a.h5ad", set_column("odd", make))
    with pytest.warns(
        UserWarning, match=rf"a\.h5ad: obs column 'odd' left out: .*{reason}"
    ) as said:
        counts = read(tmp_path / "a.h5ad", backed=backed)
    assert len(said) == 1 and list(counts.obs) == ["type", "donor", "lane"]
    assert counts.obs["type"].tolist() == TYPES.tolist()
    if not backed:
        check(counts)


@pytest.mark.parametrize("gene_key", ["Gene", "gene_names", "var_names", "Accession"])
@pytest.mark.parametrize("cell_key", ["CellID", "cell_names", "obs_names"])
def test_names_of_loom(tmp_path, gene_key, cell_key):
    write_loom(tmp_path / "a.loom")

    def rename(file):
        del file["col_attrs/pca"]
        if gene_key != "Gene":
            file["row_attrs"].move("Gene", gene_key)
        if cell_key != "CellID":
            file["col_attrs"].move("CellID", cell_key)

    edit(tmp_path / "a.loom", rename)
    assert list(check(read(tmp_path / "a.loom")).obs) == ["type"]


def test_loom_without_known_names_and_with_odd_attributes(tmp_path):
    write_loom(tmp_path / "a.loom")

    def change(file):
        file["row_attrs"].move("Gene", "Nom")
        del file["col_attrs/CellID"], file["col_attrs/pca"]
        file.create_group("col_attrs/odd")

    edit(tmp_path / "a.loom", change)
    with pytest.warns(UserWarning) as said:
        counts = read(tmp_path / "a.loom")
    said = sorted(str(warning.message) for warning in said)
    assert len(said) == 2 and "column attribute 'odd' left out" in said[0]
    assert "genes are numbered: of the row attributes (Nom) none is known" in said[1]
    check(counts, [f"gene_{g}" for g in range(17)], [f"cell_{c}" for c in range(23)])
    edit(tmp_path / "a.loom", lambda file: file.__delitem__("row_attrs"))
    with pytest.warns(UserWarning, match=r"row attributes \(none\)"):
        check(
            read(tmp_path / "a.loom"), *(names.tolist() for names in (counts.genes, counts.cells))
        )


def write_anndata_0_6(path, form=sparse.csr_matrix, text="O"):
    """obs and var as records, the categories in uns; of a sparse matrix form and shape under names
    of their own.
    """
    h5py = pytest.importorskip("h5py")
    kind = h5py.string_dtype() if text == "O" else text
    obs = np.zeros(
        23,
        [
            ("index", kind),
            ("type", "i1"),
            ("donor", "f8"),
            ("lane", kind),
            ("one", "i1"),
            ("odd", "f4", 2),
        ],
    )
    for name, values in (("index", CELLS), ("lane", TYPES)):
        obs[name] = [value.encode() for value in values]
    categories = ["B, naive", "NK", "T"]
    obs["type"] = [categories.index(name) for name in TYPES]
    obs["type"][4] = -1
    obs["donor"] = np.arange(23)
    var = np.zeros(17, [("index", kind), ("n", "i4")])
    var["index"] = [gene.encode() for gene in GENES]
    with h5py.File(path, "w") as file:
        for place in "X", "raw.X":
            matrix = form(X.astype(np.float32))
            if isinstance(matrix, np.ndarray):
                file[place] = matrix
                continue
            group = file.create_group(place)
            group.attrs["h5sparse_format"] = matrix.format
            group.attrs["h5sparse_shape"] = matrix.shape
            for part in "data", "indices", "indptr":
                group[part] = getattr(matrix, part)
        file["obs"], file["var"], file["raw.var"] = obs, var, var
        file["uns/type_categories"] = categories
        file["uns/one_categories"] = "only"


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.array])
@pytest.mark.parametrize("text", ["O", "S20"])
def test_h5ad_of_anndata_0_6(tmp_path, form, text):
    write_anndata_0_6(tmp_path / "a.h5ad", form, text)
    for layer in None, "raw":
        with pytest.warns(UserWarning, match=r"'odd' left out: its shape is \(23, 2\)"):
            counts = check(read(tmp_path / "a.h5ad", layer))
        assert list(counts.obs) == ["type", "donor", "lane", "one"]
        assert counts.obs["type"].tolist() == [*TYPES[:4], None, *TYPES[5:]]
        assert counts.obs["donor"].tolist() == list(range(23))
        assert counts.obs["lane"].tolist() == TYPES.tolist()
        assert counts.obs["one"].tolist() == ["only"] * 23


@pytest.mark.parametrize("form", [sparse.csr_matrix, np.array])
def test_h5ad_of_anndata_0_6_as_anndata_reads_it(tmp_path, form):
    anndata = pytest.importorskip("anndata")
    write_anndata_0_6(tmp_path / "a.h5ad", form)
    edit(
        tmp_path / "a.h5ad",
        replace("obs", np.array([(cell.encode(),) for cell in CELLS], [("index", "S9")])),
    )
    a = anndata.read_h5ad(tmp_path / "a.h5ad")
    counts = read(tmp_path / "a.h5ad")
    check(counts, a.var_names, a.obs_names, a.X.toarray() if sparse.issparse(a.X) else a.X)
    backed = read(tmp_path / "a.h5ad", backed=True)
    assert np.array_equal(backed.X.block(0).toarray(), X[: backed.X.bounds[1]])


def test_nothing_is_added_to_a_file_of_anndata_0_6(tmp_path):
    pytest.importorskip("anndata")
    write_anndata_0_6(tmp_path / "a.h5ad")
    content = (tmp_path / "a.h5ad").read_bytes()
    with pytest.raises(
        ValueError, match=r"a\.h5ad: written by anndata before 0.7.*open and write it"
    ):
        C.annotate_h5ad(tmp_path / "a.h5ad", tmp_path / "a.h5ad", obsm={"z": np.ones((23, 2))})
    assert (tmp_path / "a.h5ad").read_bytes() == content


@pytest.mark.parametrize("form", [sparse.csr_matrix, np.array])
def test_h5ad_transposed(tmp_path, form):
    a = adata(form(X))
    a.var["length"] = np.arange(17)
    a.write_h5ad(tmp_path / "a.h5ad")
    counts = check(read(tmp_path / "a.h5ad", transpose=True), genes=CELLS, cells=GENES, X=X.T)
    assert list(counts.obs) == ["length"] and counts.obs["length"].tolist() == list(range(17))
    with pytest.raises(ValueError, match="transpose=True: columns cannot .* without backed=True"):
        read(tmp_path / "a.h5ad", backed=True, transpose=True)


def test_other_formats_transposed(tmp_path):
    write_tenx(tmp_path / "a.h5", 3)
    check(read(tmp_path / "a.h5", transpose=True), genes=CELLS, cells=GENES, X=X.T)
    write_loom(tmp_path / "a.loom")
    counts = check(read(tmp_path / "a.loom", transpose=True), genes=CELLS, cells=GENES, X=X.T)
    assert counts.var["type"].tolist() == TYPES.tolist()


def test_names_that_occur_twice_stay_in_their_order(tmp_path):
    genes = ["b", "a"] * 8 + ["b"]
    cells = ["d", "c", "d"] * 7 + ["c", "c"]
    adata().write_h5ad(tmp_path / "a.h5ad")
    edit(
        tmp_path / "a.h5ad",
        lambda file: (replace("obs/_index", cells)(file), replace("var/_index", genes)(file)),
    )
    check(read(tmp_path / "a.h5ad"), genes, cells)


# Hostile files


def set_shape(*shape):
    return lambda file: file["X"].attrs.__setitem__("shape", shape)


def h5py_link(*where):
    return pytest.importorskip("h5py").ExternalLink(*where)


def external(file):
    del file["X"]
    file.create_dataset("X", (23, 17), "i4", external=[("/etc/hostname", 0, 23 * 17 * 4)])


def deep(file):
    """Groups in groups."""
    for _ in range(2000):
        file = file.create_group("g")


def large_piece(file):
    """A column of 23 numbers, in one piece that has room for 100 million, packed to nothing."""
    options = dict(maxshape=(None,), chunks=(10**8,), compression="gzip", dtype="f8")
    column = file.create_dataset("obs/large", (23,), **options)
    column.id.write_direct_chunk((0,), zlib.compress(bytes(10**5)))


def links_to_itself(file):
    h5py = pytest.importorskip("h5py")
    del file["X"]
    file["X"] = h5py.SoftLink("/X")


HOSTILE_HDF5 = {
    "groups without end": (deep, "groups in groups, more than 50 deep"),
    "a large piece": (large_piece, "a piece of obs/large declares 800,000,000 bytes but stores"),
    "a link to itself": (links_to_itself, "too many links|damaged"),
    "names outside": (
        lambda file: file["obs"].attrs.__setitem__("_index", "../var/_index"),
        "obs has no array '../var/_index'",
    ),
    "indices beyond int32": (
        replace("X/indices", np.full(len(_indices), 2**40)),
        "outside 0 to 16",
    ),
    "text for data": (replace("X/data", np.full(len(_indices), b"1")), "must be numbers"),
    "records for data": (replace("X/data", np.zeros(len(_indices), [("a", "i4")])), "not numbers"),
    "huge dense": (
        replace("X", shape=(10**6, 10**6), dtype="f4", chunks=(9, 9)),
        "X declares 4,000,000,000,000 bytes",
    ),
    "huge data": (
        replace("X/data", shape=(10**11,), dtype="f4", chunks=(100,)),
        "declares 400,000,000,000 bytes",
    ),
    "bomb in data": (replace("X/data", np.zeros(10**7, "u1"), compression="gzip"), "lengths"),
    "a large bomb in data": (
        replace("X/data", np.zeros(10**8, "u1"), compression="gzip"),
        "the file declares 100,",
    ),
    "another file": (
        lambda file: file["obs"].__setitem__("x", h5py_link("b.h5", "/x")),
        "keeps obs/x in another file",
    ),
    "huge shape": (set_shape(23, 10**12), "declares 23 x 1000000000000"),
    "wrong shape": (set_shape(24, 17), "lengths"),
    "indices": (replace("X/indices", np.full(len(_indices), 40)), "outside 0 to 16"),
    "no obs names": (lambda file: file["obs"].__delitem__("_index"), "obs has no array '_index'"),
    "names that are a number": (
        lambda file: file["var"].attrs.__setitem__("_index", 3),
        "_index = .*must be text",
    ),
    "no form": (
        lambda file: file["X"].attrs.__delitem__("encoding-type"),
        "X says in no attribute",
    ),
    "no shape": (lambda file: file["X"].attrs.__delitem__("shape"), "X has no attribute shape"),
    "no data": (lambda file: file["X"].__delitem__("data"), "KeyError"),
    "short names": (replace("obs/_index", ["a", "b"]), r"cells has shape \(2,\)"),
    "a name that fills memory": (
        replace("obs/_index", ["a" * 10**6] + ["b"] * 22),
        "declares 92,000,000 bytes",
    ),
    "values in another file": (external, "keeps X in another file"),
}


@pytest.mark.parametrize("case", HOSTILE_HDF5)
def test_hostile_h5ad(tmp_path, case):
    change, message = HOSTILE_HDF5[case]
    adata(sparse.csr_matrix(X)).write_h5ad(tmp_path / "a.h5ad")
    edit(tmp_path / "a.h5ad", change)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / "a.h5ad")
    assert str(error.value).startswith(str(tmp_path / "a.h5ad"))


def test_a_long_string_that_all_places_name_does_not_fill_the_memory(tmp_path):
    """Strings of any length lie in a heap, and a place of an array says where."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5ad"
    adata(sparse.csr_matrix(X)).write_h5ad(path)
    n = 400
    with h5py.File(path, "r+") as file:
        names = file.create_dataset("obs/names", (n,), dtype=h5py.string_dtype())
        names[:] = ["a" * 10**6] + ["b"] * (n - 1)
        place = names.id.get_offset()
        file["obs"].attrs["column-order"] = ["type", "names"]
    content = bytearray(path.read_bytes())
    content[place : place + 16 * n] = bytes(content[place : place + 16]) * n
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.warns(UserWarning, match="'names' left out: /obs/names declares [0-9,]+ bytes"):
            counts = read(path)
        assert tracemalloc.get_traced_memory()[1] < 330e6
    finally:
        tracemalloc.stop()
    assert list(counts.obs) == ["type"]


def test_many_strings_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(H, "AT_ONCE", 0)
    monkeypatch.setattr(H, "LEAST_STRINGS", 3)
    adata(sparse.csr_matrix(X)).write_h5ad(tmp_path / "a.h5ad")
    check(read(tmp_path / "a.h5ad"))


def test_other_hdf5_is_refused(tmp_path):
    write_tenx(tmp_path / "a.h5", 2)
    with pytest.raises(ValueError, match="only .h5ad and .loom files have layers"):
        read(tmp_path / "a.h5", layer="x")
    edit(tmp_path / "a.h5", lambda file: file.copy("GRCh38", "mm10"))
    with pytest.raises(
        ValueError, match=r"one genome \(groups with barcodes: \['GRCh38', 'mm10'\]\)"
    ):
        read(tmp_path / "a.h5")


def test_mudata_is_said_to_be_it(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for name in ("mod/rna", "mod/prot", "obs", "var"):
            file.create_group(name)
    with pytest.raises(
        ValueError, match="MuData, with the parts prot, rna; write the one with the"
    ):
        read(tmp_path / "m.h5")
