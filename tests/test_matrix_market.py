"""Matrix Market files: which way round they are read, and the names that lie beside them.

Know before reading: models/matrix_market.py.
"""

import gzip
import re

import numpy as np
import pytest
import scipy.io
from scipy import sparse

from models.counts import read
from tests.example_counts import CELLS, GENES, X, check, npz, write_folder, zipped


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("prefix", ["", "GSM1_"])
@pytest.mark.parametrize("cells_first", [False, True])
def test_tenx_folder(tmp_path, version, prefix, cells_first):
    write_folder(tmp_path, version, prefix, cells_first)
    check(read(tmp_path))
    check(read(next(tmp_path.glob("*matrix.mtx*"))))


def test_tenx_folder_drops_antibodies(tmp_path):
    write_folder(tmp_path, 3)
    path = tmp_path / "features.tsv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines[4] = lines[4].replace("Gene Expression", "Antibody Capture")
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.warns(UserWarning, match="left out, as they are no genes: 1 'Antibody Capture'"):
        counts = read(tmp_path)
    check(counts, genes=np.delete(GENES, 4), X=np.delete(X, 4, axis=1))


# Layouts of other software, and what becomes of them


def write(folder, matrix, gene_file=None, cell_file=None, genes_are_rows=True, counts=X):
    """A matrix and its files of names; those whose names end in .gz are gzipped."""
    folder.mkdir(exist_ok=True)
    scipy.io.mmwrite(folder / "x.mtx", sparse.coo_matrix(counts.T if genes_are_rows else counts))
    texts = {matrix: (folder / "x.mtx").read_text()}
    (folder / "x.mtx").unlink()
    if gene_file is not None:
        texts[gene_file] = "".join(f"{name}\n" for name in GENES[: counts.shape[1]])
    if cell_file is not None:
        texts[cell_file] = "".join(f"{name}\n" for name in CELLS[: counts.shape[0]])
    for name, text in texts.items():
        content = text.encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder / matrix


LAYOUTS = {  # matrix, genes, cells, are genes its rows
    "Cell Ranger 2": ("matrix.mtx", "genes.tsv", "barcodes.tsv", True),
    "Cell Ranger 3": ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz", True),
    "STARsolo": ("matrix.mtx", "features.tsv", "barcodes.tsv", True),
    "STARsolo, multimappers": ("UniqueAndMult-EM.mtx", "features.tsv", "barcodes.tsv", True),
    "barcodes.csv": ("matrix.mtx", "features.tsv", "barcodes.csv", True),
    "features.txt": ("matrix.mtx.gz", "features.txt", "barcodes.tsv.gz", True),
    "genes.txt.gz": ("matrix.mtx.gz", "genes.txt.gz", "Barcodes.tsv", True),
    "cells": ("matrix.mtx", "gene_names.txt", "cells.tsv", True),
    "an archive": (
        "GSM1_S1_matrix.mtx.gz",
        "GSM1_S1_genes.tsv.gz",
        "GSM1_S1_barcodes.tsv.gz",
        True,
    ),
    "dots": ("GSM1.matrix.mtx.gz", "GSM1.features.tsv.gz", "GSM1.barcodes.tsv.gz", True),
    "a matrix of another name": (
        "GSE1_raw_counts.mtx",
        "GSE1_genes.tsv",
        "GSE1_barcodes.tsv",
        True,
    ),
    "genes of all samples": (
        "GSE1_S1_matrix.mtx",
        "GSE1_features.tsv",
        "GSE1_S1_barcodes.tsv",
        True,
    ),
    "a prefix on one": ("matrix.mtx.gz", "features.tsv.gz", "prefix_barcodes.tsv.gz", True),
    "kallisto": (
        "cells_x_genes.mtx",
        "cells_x_genes.genes.txt",
        "cells_x_genes.barcodes.txt",
        False,
    ),
    "kallisto, older": ("genes.mtx", "genes.genes.txt", "genes.barcodes.txt", False),
    "alevin": ("quants_mat.mtx.gz", "quants_mat_cols.txt", "quants_mat_rows.txt", False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("as_usual", [True, False])
def test_the_numbers_of_names_say_which_way_round_it_is(tmp_path, layout, as_usual, recwarn):
    *names, genes_are_rows = LAYOUTS[layout]
    path = write(tmp_path, *names, genes_are_rows=genes_are_rows == as_usual)
    check(read(path))
    check(read(tmp_path))
    assert not recwarn.list


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_the_numbers_fit_both_ways_it_is_as_programs_write_it(tmp_path, layout):
    counts = X[:17]
    path = write(tmp_path, *LAYOUTS[layout], counts=counts)
    check(read(path), cells=CELLS[:17], X=counts)
    turned = read(path, transpose=True)  # the matrix alone: names belong to what their files say
    check(turned, cells=CELLS[:17], X=counts.T)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("missing", ["genes", "cells"])
@pytest.mark.parametrize("genes_are_rows", [True, False])
def test_one_file_of_names_is_enough(tmp_path, layout, missing, genes_are_rows):
    matrix, gene_file, cell_file, _ = LAYOUTS[layout]
    there = dict(gene_file=gene_file) if missing == "cells" else dict(cell_file=cell_file)
    path = write(tmp_path, matrix, genes_are_rows=genes_are_rows, **there)
    rows = "genes" if genes_are_rows else "cells"
    (label_file,) = there.values()
    said = rf"{matrix}: no file with names of {missing} .*{label_file} \(\d+ names\) .* are {rows}"
    with pytest.warns(UserWarning, match=said):
        counts = read(path)
    names = {"genes": GENES, "cells": CELLS}
    names[missing] = [f"{missing[:-1]}_{i}" for i in range(len(names[missing]))]
    check(counts, **names)


@pytest.mark.parametrize("there", ["genes", "cells"])
def test_one_file_of_names_beside_a_square_matrix(tmp_path, there):
    """Programs that write names write genes as rows, whatever the name of the matrix."""
    file = {"genes": dict(gene_file="genes.tsv"), "cells": dict(cell_file="barcodes.tsv")}[there]
    path = write(tmp_path, "counts.mtx", counts=X[:17], **file)
    with pytest.warns(UserWarning, match="its rows are genes"):
        counts = read(path)
    np.testing.assert_array_equal(counts.X.toarray(), X[:17])


NUMBERED = [f"gene_{g}" for g in range(17)], [f"cell_{c}" for c in range(23)]


@pytest.mark.parametrize(
    "matrix", [sparse.coo_matrix(X), X, sparse.coo_matrix(X.astype(np.uint32))]
)
def test_lone_mtx_has_cells_as_rows(tmp_path, matrix):
    scipy.io.mmwrite(tmp_path / "a.mtx", matrix)
    said = ": no file with names .* rows are cells: read as 23 cells and 17 genes; .*transpose=True"
    for path in tmp_path / "a.mtx", tmp_path:
        with pytest.warns(UserWarning, match=f"{path}{said}"):
            check(read(path), *NUMBERED)
    with pytest.warns(UserWarning, match=f"a.mtx.gz{said}"):
        check(read(zipped(tmp_path / "a.mtx")), *NUMBERED)


def test_lone_mtx_is_turned_without_a_word(tmp_path, recwarn):
    check(read(write(tmp_path, "a.mtx"), transpose=True), *NUMBERED)
    assert not recwarn.list


@pytest.mark.parametrize("name", ["matrix.mtx", "GSM1_matrix.mtx.gz", "UniqueAndMult-Uniform.mtx"])
def test_lone_matrix_of_a_name_that_says_genes_are_rows(tmp_path, name):
    path = write(tmp_path, name)
    with pytest.warns(
        UserWarning, match=r"rows are genes: read as 17 genes and 23 cells; .*transpose=True"
    ):
        check(read(path), *NUMBERED)
    check(read(write(tmp_path, name, genes_are_rows=False), transpose=True), *NUMBERED)


def test_cell_ranger_signs_its_files(tmp_path):
    path = write(tmp_path, "a.mtx")
    banner, rest = path.read_text().split("\n", 1)
    sign = '%metadata_json: {"software_version": "cellranger-7.1.0", "format_version": 2}'
    path.write_text("\n".join([banner, sign, rest]))
    with pytest.warns(UserWarning, match="rows are genes"):
        check(read(path), *NUMBERED)


def test_transposed_with_its_names(tmp_path):
    path = write(tmp_path, *LAYOUTS["Cell Ranger 2"])
    check(read(path, transpose=True), genes=CELLS, cells=GENES, X=X.T)


@pytest.mark.parametrize("layout", ["Cell Ranger 2", "barcodes.csv", "kallisto", "an archive"])
@pytest.mark.parametrize("short", [1, 2])
def test_names_that_do_not_fit_are_refused_by_name_and_number(tmp_path, layout, short):
    names = LAYOUTS[layout][:3]
    path = write(tmp_path, *names)
    lines = read_lines(tmp_path / names[short])
    write_lines(tmp_path / names[short], lines[:-1])
    numbers = [17, 23]
    numbers[short - 1] -= 1
    with pytest.raises(
        ValueError, match=f"{names[0]}: the matrix has shape 17 x 23, which"
    ) as error:
        read(path)
    for name, number in zip(names[1:], numbers):
        assert f"{name} ({number} names)" in str(error.value)


def read_lines(path):
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()


def write_lines(path, lines):
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_each_sample_has_its_own_names(tmp_path):
    write(tmp_path, "GSM1_matrix.mtx", "GSM1_genes.tsv", "GSM1_barcodes.tsv")
    write(tmp_path, "GSM12_matrix.mtx", "GSM12_genes.tsv", "GSM12_barcodes.tsv", counts=X[:9, :5])
    check(read(tmp_path / "GSM1_matrix.mtx"))
    check(read(tmp_path / "GSM12_matrix.mtx"), GENES[:5], CELLS[:9], X[:9, :5])
    with pytest.raises(
        ValueError, match="here are: GSM12_matrix.mtx, GSM1_matrix.mtx; pass the path"
    ):
        read(tmp_path)
    write(tmp_path, "GSM3_matrix.mtx")  # whose names are lost; those of GSM1 would fit
    with pytest.warns(UserWarning, match="GSM3_matrix.mtx: no file with names"):
        check(read(tmp_path / "GSM3_matrix.mtx"), *NUMBERED)


def test_symbols_are_preferred_to_identifiers(tmp_path):
    path = write(tmp_path, *LAYOUTS["kallisto"][:3], genes_are_rows=False)
    write_lines(tmp_path / "cells_x_genes.genes.txt", [f"ENSG{g}" for g in range(17)])
    write_lines(tmp_path / "cells_x_genes.genes.names.txt", GENES)
    check(read(path))


def test_a_list_of_other_genes_is_not_taken_for_names(tmp_path):
    path = write(tmp_path, "counts.mtx", "marker_genes.txt", genes_are_rows=False)
    write_lines(tmp_path / "marker_genes.txt", GENES[:4])
    with pytest.warns(UserWarning, match="no file with names"):
        check(read(path), *NUMBERED)


def test_of_several_matrices_in_a_folder_the_one_named_so(tmp_path):
    write(tmp_path, "UniqueAndMult-EM.mtx", counts=2 * X)
    write(tmp_path, *LAYOUTS["STARsolo"])
    check(read(tmp_path))
    check(read(tmp_path / "UniqueAndMult-EM.mtx"), X=2 * X)


# What is in files of names

NAMES = {
    "empty lines at the end": lambda lines: [*lines, "", " ", ""],
    "a comment": lambda lines: ["# of the second run", "#", *lines],
    "a title": lambda lines: ["Gene_ID", *lines],
    "R's title": lambda lines: ["x", *lines],
    "quotes": lambda lines: [f'"{line}"' for line in lines],
    "two columns": lambda lines: [f"ENSG{i}\t{line}" for i, line in enumerate(lines)],
    "two columns with titles": lambda lines: [
        "gene_id\tgene_name",
        *(f"E{i}\t{line}" for i, line in enumerate(lines)),
    ],
    "R's numbers": lambda lines: ['"x"', *(f'"{i + 1}"\t"{line}"' for i, line in enumerate(lines))],
    "R's numbers and corner": lambda lines: [
        "\tx",
        *(f"{i + 1}\t{line}" for i, line in enumerate(lines)),
    ],
    "Windows": lambda lines: ["\ufeff" + lines[0] + "\r", *(f"{line}\r" for line in lines[1:])],
}


@pytest.mark.parametrize("case", NAMES)
def test_files_of_names_as_they_are_found(tmp_path, case):
    path = write(tmp_path, *LAYOUTS["Cell Ranger 2"])
    write_lines(tmp_path / "genes.tsv", NAMES[case](GENES.tolist()))
    check(read(path))


@pytest.mark.parametrize("name", ["barcodes.tsv", "barcodes.csv"])
def test_barcodes_with_numbers_of_lines(tmp_path, name):
    path = write(tmp_path, "matrix.mtx", "genes.tsv", name)
    separator = "," if name.endswith("csv") else "\t"
    numbered = [f'"{i + 1}"{separator}"{cell}"' for i, cell in enumerate(CELLS)]
    write_lines(tmp_path / name, [f'""{separator}"x"', *numbered])
    check(read(path))


def test_plain_text_named_gz_and_gzipped_text_that_is_not(tmp_path):
    path = write(tmp_path, *LAYOUTS["Cell Ranger 3"])
    for file in tmp_path.iterdir():
        file.write_bytes(gzip.decompress(file.read_bytes()))
    check(read(path))
    path = write(tmp_path / "b", *LAYOUTS["Cell Ranger 2"])
    for file in (tmp_path / "b").iterdir():
        file.write_bytes(gzip.compress(file.read_bytes()))
    check(read(path))


def test_a_single_cell_below_a_title(tmp_path):
    path = write(tmp_path, *LAYOUTS["Cell Ranger 2"], counts=X[:1])
    write_lines(tmp_path / "barcodes.tsv", ["barcode", "AAAC-1"])
    found = read(path)
    assert found.shape == (1, X.shape[1]) and list(found.cells) == ["AAAC-1"]


@pytest.mark.parametrize(
    "form, field",
    [("coordinate", "pattern")]
    + [
        (form, n)
        for form in ("coordinate", "array")
        for n in ("integer", "unsigned-integer", "real")
    ],
)
def test_every_kind_of_file_that_the_format_knows(tmp_path, form, field):
    """A matrix with 2 rows, genes, and 3 columns, cells; an array is written column by column."""
    counts = np.array([[0, 1, 0], [4, 0, 2]])
    entries = [[2, 1, 4], [1, 2, 1], [2, 3, 2]]
    if field == "pattern":
        counts = np.minimum(counts, 1)
        entries = [entry[:2] for entry in entries]
    lines = {
        "coordinate": ["2 3 3", *(" ".join(map(str, entry)) for entry in entries)],
        "array": ["2 3", *map(str, counts.T.ravel())],
    }[form]
    write_lines(tmp_path / "x.mtx", [f"%%MatrixMarket matrix {form} {field} general", *lines])
    write_lines(tmp_path / "genes.tsv", GENES[:2])
    write_lines(tmp_path / "barcodes.tsv", CELLS[:3])
    np.testing.assert_array_equal(read(tmp_path).X.toarray(), counts.T)


@pytest.mark.parametrize("n_files, more", [(5, ""), (6, ", ...")])
def test_of_many_matrices_five_are_named(tmp_path, n_files, more):
    for i in range(n_files):
        (tmp_path / f"{i}.mtx").write_text("")
    says = re.escape(f"here are: 0.mtx, 1.mtx, 2.mtx, 3.mtx, 4.mtx{more}; pass")
    with pytest.raises(ValueError, match=says):
        read(tmp_path)


def test_a_folder_of_folders_with_counts_says_which_they_are(tmp_path):
    """Cell Ranger's outs, of which one folder is to be passed."""
    for name in ("filtered_feature_bc_matrix", "raw_feature_bc_matrix"):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name, 3)
    says = "its folders do: filtered_feature_bc_matrix, raw_feature_bc_matrix; pass one"
    with pytest.raises(ValueError, match=says):
        read(tmp_path)
    assert read(tmp_path / "filtered_feature_bc_matrix").shape == X.shape


def test_one_name_too_many_is_no_title(tmp_path):
    path = write(tmp_path, *LAYOUTS["Cell Ranger 2"])
    write_lines(tmp_path / "genes.tsv", ["MALAT1", *GENES])
    with pytest.raises(ValueError, match=r"genes.tsv \(18 names\)"):
        read(path)


def test_names_stay_as_they_are_and_in_their_order(tmp_path):
    path = write(tmp_path, *LAYOUTS["Cell Ranger 2"])
    names = [
        *GENES[:3],
        "",
        *GENES[:3],
        "#1",
        " a ",
        *GENES[3:10],
        "",
    ]  # twice the same; without; last without
    write_lines(tmp_path / "genes.tsv", names)
    check(read(path), genes=names)


# Refused


def test_paths_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.h5ad: no such file"):
        read(tmp_path / "none.h5ad")
    with pytest.raises(ValueError, match="holds one .mtx or .mtx.gz, .*; here are: none; pass"):
        read(tmp_path)
    with pytest.raises(ValueError, match="layer='x': only .h5ad and .loom files have layers"):
        read(npz(tmp_path / "a.npz"), layer="x")
