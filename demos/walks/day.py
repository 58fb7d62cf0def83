# %% [markdown]
# # A day with counts
#
# In the morning a folder of counts comes from the sequencing core, in the afternoon a second
# sample. By the evening both should be one map of cells with names, with the genes that tell its
# clusters apart. This notebook walks through such a day as you would on data of your own: what to
# type, in Python and in a terminal, what can go wrong at each step, and how one sees it.
#
# **What you learn.** How the steps of an analysis with scVI follow one another: read, look, train,
# embed, cluster, find marker genes, report, map a second sample, label its cells.
#
# **Minutes.** 30. The notebook runs in a minute or two.
#
# **What to know before.** What scVI is (lessons `scvi_simplified` and `scvi_whole`), and a little
# of [scanpy](https://scanpy.readthedocs.io). To run it whole:
#
#     pip install -e ".[singlecell]" && pip install scanpy igraph
#
# Without scanpy and igraph, k-means stands in for leiden clusters and t-SNE for UMAP; without
# anndata, what is saved for scanpy is left out. As a plain demo: `python -m demos day`.

# %%
import gzip
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse
from scipy.io import mmwrite

from demos import show
from demos.scvi import principal_components
from demos.tsne import tsne
from models import SCVI, integration, report, transfer_labels
from models.clustering import kmeans
from models.counts import Counts, read

QUICK = "MINIGRAD_QUICK" in os.environ  # for tests: few cells, and trained a little only
plt.rcParams.update({"figure.dpi": 90, "font.size": 9})
pictures = Path(os.environ.get("MINIGRAD_OUT", "out"))
day = pictures / "day"  # all files of this day
day.mkdir(parents=True, exist_ok=True)


def show_warning(message, category, *_):
    """A warning as a line of text below the cell that gave it."""
    if issubclass(category, UserWarning):
        print(f"warning: {message}")


warnings.showwarning = show_warning

# %%
try:
    import igraph  # noqa: F401 (scanpy's leiden needs it)
    import scanpy
except ImportError as error:
    scanpy = None
    print(f"k-means and t-SNE stand in for leiden and UMAP ({error}): pip install scanpy igraph")
try:
    import anndata
except ImportError as error:
    anndata = None
    print(f"no .h5ad is written, no pandas used ({error}): pip install -e '.[singlecell]'")

# %% [markdown]
# ## Before the day: making its files
#
# **On data of your own, skip this section: you have the files.** The cells are real: 700 of human
# blood (Zheng et al. 2017; 10x Genomics), with the types that the authors gave them. But they have
# no donors, so **the donors are simulated**, and so is the percentage of mitochondrial counts:
#
# - Donors D1 and D2 are in the morning's sample, D3 in the afternoon's. Of each donor, every gene
#   is detected with an efficiency of its own: each molecule is kept with that probability.
# - A high percentage of mitochondrial counts says that a cell suffered. Here it is drawn by lot,
#   whatever the type of the cell, and the more it is, the more molecules are added of ten genes
#   that a cell under stress expresses.
#
# So we know what the model should find out, and what it should ignore.

# %%
real = read(show.DATA / "pbmc68k.npz")
rng = np.random.default_rng(0)
real = real[rng.permutation(len(real))[: 260 if QUICK else 700]]
n_cells, n_genes = real.shape

donor = np.array(["D1", "D2", "D1", "D2", "D3"])[np.arange(n_cells) % 5]
efficiency = {name: rng.uniform(0.15, 1.0, n_genes) for name in ("D1", "D2", "D3")}
kept = np.array([efficiency[name] for name in donor])
x = rng.binomial(real.X.toarray().astype(int), kept)

pct_mito = rng.gamma(4.0, 1.5, n_cells)
STRESS = "FOS JUNB EGR1 DUSP2 NFKBIA BTG1 DNAJB1 HSPB1 HSPD1 HSP90AB1".split()
is_stress = np.isin(real.genes, STRESS)
x[:, is_stress] += rng.poisson(0.15 * pct_mito[:, None], (n_cells, len(STRESS)))

barcodes = np.array(
    ["".join(letters) + "-1" for letters in rng.choice(list("ACGT"), (n_cells, 16))]
)
obs = {"donor": donor, "pct_mito": pct_mito.round(2), "type": real.obs["labels"]}
everything = Counts(sparse.csr_array(x.astype(np.float32)), real.genes, barcodes, obs)


# %%
def write_10x(folder, counts):
    """A folder as Cell Ranger writes it: genes as rows, names in files beside, all gzipped."""
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        mmwrite(file, sparse.coo_array(counts.X.T.astype(int)))
    features = "".join(f"{gene}\t{gene}\tGene Expression\n" for gene in counts.genes)
    (folder / "features.tsv.gz").write_bytes(gzip.compress(features.encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress("\n".join(counts.cells).encode()))


def write_metadata(path, counts, columns):
    """A table with a line for each cell."""
    lines = zip(counts.cells, *[counts.obs[name] for name in columns])
    text = "".join(",".join(map(str, line)) + "\n" for line in lines)
    path.write_text(",".join(["barcode", *columns]) + "\n" + text)


is_morning = everything.obs["donor"] != "D3"
write_10x(day / "morning", everything[is_morning])
write_metadata(day / "morning.csv", everything[is_morning], ["donor", "pct_mito", "type"])

# Another reference genome, in which 30 of the genes have other names; and nobody named the types.
is_known = rng.permutation(n_genes) >= 30
write_10x(day / "afternoon", everything[~is_morning].select_genes(is_known))
write_metadata(day / "afternoon.csv", everything[~is_morning], ["donor", "pct_mito"])
true_types = everything.obs["type"][~is_morning]  # to see in the evening who was right

# %% [markdown]
# ## 9:00. Read, and look
#
# The folder has the counts, the table what is known of the cells. `read` joins the two by the names
# of the cells.

# %%
counts = read(day / "morning", obs=day / "morning.csv")
print("cells:", *counts.cells[:3], "... genes:", *counts.genes[:3], "...")
counts

# %% [markdown]
# **What can go wrong.** *The wrong way round*: many tables have genes as rows, and read so they
# train without an error. Look at the names above: cells should be barcodes, genes genes. `read`
# warns where it looks otherwise, as in the next cell, which turns the folder on purpose. *Cells
# without metadata*: the names in the table are not those of the folder (a suffix `-1`, a prefix of
# the sample); `read` counts them in a warning, and refuses a table that has none of the cells.
# *Genes of one name*: a real folder has some, here there are none. They stay apart, by their order,
# and AnnData's `TBCE-1` is the second `TBCE`.

# %%
wrong = read(day / "morning", transpose=True)

# %% [markdown]
# Then the depth. A cell of few molecules or few genes may be an empty droplet, one of far more than
# all others two cells in one. What is to be thrown away, throw away now (`counts[depth > 150]`
# keeps the others): scVI is told the depth of each cell and does not mind that it varies, but it
# cannot know that a droplet was empty.

# %%
depth = counts.X.sum(axis=1)
n_detected = np.diff(counts.X.indptr)
figure, axes = show.figure(1, 2, width=3.6, height=2.6)
for i, name in enumerate(np.unique(counts.obs["donor"])):
    is_mine = counts.obs["donor"] == name
    look = {"histtype": "step", "color": show.COLORS[i], "linestyle": ["-", "--"][i], "label": name}
    axes[0, 0].hist(depth[is_mine], np.linspace(0, depth.max(), 25), **look)
    axes[0, 1].hist(n_detected[is_mine], np.linspace(0, n_detected.max(), 25), **look)
axes[0, 0].set(xlabel="molecules in a cell", ylabel="cells")
axes[0, 1].set(xlabel="genes detected in a cell")
axes[0, 1].legend(frameon=False)
show.save(
    figure,
    pictures,
    "day_depth",
    "Molecules and genes in each cell, by donor. No cell is empty, and none stands apart.",
)

# %% [markdown]
# ## 9:15. Train
#
# The model takes sizes and names from the data, and remembers the columns of `obs`: the donor as
# batch, and the percentage of mitochondrial counts as a covariate. The decoder is told both, so
# that the latent space need not say them. With `encode_covariates=True` the encoder is told them
# as well: in the afternoon it can then take away what is special about a new donor. All other
# settings have defaults that follow from the data. (Leave out `progress=False`, and a bar shows how
# far it is.)
#
# In a terminal:
#
#     python -m models train morning --obs morning.csv --batch-key donor \
#         --continuous pct_mito --encode-covariates --out run

# %%
model = SCVI.for_data(counts, batch="donor", continuous="pct_mito", encode_covariates=True)
history = model.fit(counts, epochs=10 if QUICK else None, progress=False)
model

# %%
show.save(
    history.plot(),
    pictures,
    "day_training",
    "Training: the loss of the cells trained on, and the ELBO of those held out with its parts.",
)

# %% [markdown]
# **What can go wrong.** *Trained too briefly*: the curve of the held-out ELBO (`validation_elbo`)
# still rises at its end; give more `epochs`. (Above it gains about a nat in the last two thirds of
# the epochs: that is enough.) *Learnt by heart*: it falls again while the loss of the training goes
# on falling; `early_stopping=True`, or fewer dimensions. *A latent space that says nothing*:
# `validation_kl` near 0. *A number taken for batches*: `batch="pct_mito"` is
# refused, as its numbers are not whole; a column of totals, `n_counts`, would make hundreds of
# batches of a cell each, and is warned of.

# %% [markdown]
# ## 9:30. Embed, and see
#
# `latent` gives each cell's place in the latent space. From there on it is scanpy's world: graph of
# neighbours, leiden clusters (`resolution` says how fine they are), UMAP. `to_anndata` makes the
# object that its functions take. (Tell them `use_rep="X_scVI"`, or they compute principal
# components of the counts.)
#
# In a terminal (or `--out morning.h5ad`, for scanpy):
#
#     python -m models embed run --out latent.csv


# %%
def with_scanpy(adata, space):
    """Clusters (n_cells,), numbered by size, and places in the plane (n_cells, 2)."""
    scanpy.pp.neighbors(adata, use_rep=space)
    scanpy.tl.leiden(adata, resolution=0.5, flavor="igraph", n_iterations=2)
    scanpy.tl.umap(adata)
    by_size = adata.obs["leiden"].value_counts().index.tolist()
    return np.array([by_size.index(c) for c in adata.obs["leiden"]]), adata.obsm["X_umap"].copy()


def without_scanpy(z):
    """The same by other means."""
    return kmeans(z, 8), tsne(z, n_steps=100 if QUICK else 400)


z = model.latent(counts)
components = principal_components(counts.X, 30)  # what one would look at without a model
if scanpy is None:
    _, plane_of_components = without_scanpy(components)
    cluster, plane = without_scanpy(z)
else:
    adata = counts.to_anndata()
    adata.obsm["X_pca"] = components
    adata.obsm["X_scVI"] = z
    _, plane_of_components = with_scanpy(adata, "X_pca")
    cluster, plane = with_scanpy(adata, "X_scVI")
counts.obs["cluster"] = np.array([f"cluster {number:02d}" for number in cluster])


# %%
names = [*np.unique(counts.obs["type"]), *np.unique(counts.obs["cluster"])]
looks = report.look_of(names)  # the same for a type all day, and for no cluster that of a type
looks |= report.look_of(["D1", "D2"]) | {"unknown": {"color": "#333333", "marker": "d"}}


def draw(axes, plane, labels, title):
    """Cells in the plane, by label, with a legend to the right."""
    drawn = {}
    for name in np.unique(labels):
        is_it = labels == name
        look = {"s": 9, "linewidths": 0, "alpha": 0.75, "zorder": 2 - np.mean(is_it)}  # rare on top
        drawn[name] = axes.scatter(*plane[is_it].T, **look, **looks[name])
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    show.legend(axes, drawn, fontsize=8, markerscale=1.6, frameon=False, **place)
    axes.set(title=title, xticks=[], yticks=[])


figure, axes = show.figure(2, 2, width=5.2, height=3.4)
draw(axes[0, 0], plane_of_components, counts.obs["donor"], "principal components, by donor")
draw(axes[0, 1], plane, counts.obs["donor"], "scVI, by donor")
draw(axes[1, 0], plane, counts.obs["cluster"], "scVI, by cluster")
draw(axes[1, 1], plane, counts.obs["type"], "scVI, by annotated type")
show.save(
    figure,
    pictures,
    "day",
    f"{len(counts)} blood cells, placed by {'t-SNE' if scanpy is None else 'UMAP'}. Without a "
    "model the (simulated) donors lie apart; in scVI's latent space they mix, and the types stay "
    "apart.",
)

# %% [markdown]
# A picture of the plane shows what it is made to show. The scores of the scIB benchmark ask the
# latent space itself: between 0 and 1, and 1 is best. The first four ask whether donors mix, the
# last three whether types stay apart; an integration is good where neither is bought with the
# other. Below them: how much of `pct_mito` can be read off the space, by linear regression (R²,
# adjusted for the number of dimensions). Here less is better. (An encoder that is told the
# percentage can also write it down: without `encode_covariates` next to nothing of it is left. But
# then no encoder is told the afternoon's donor, either.)


# %%
def readable(z, y):
    """The share of the variance of y (n,) that a linear function of z (n, d) explains, adjusted."""
    design = np.column_stack([np.ones(len(z)), z])
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return 1 - np.var(residual) / np.var(y) * (len(z) - 1) / (len(z) - design.shape[1])


spaces = {"PCA": components, "scVI": z}
found = {}
for name, space in spaces.items():
    found[name] = integration.scores(space, counts.obs["donor"], counts.obs["type"], components)
    found[name]["pct_mito in it (R²)"] = readable(space, counts.obs["pct_mito"])
print(f"{'':<22}" + "".join(f"{name:>8}" for name in spaces))
for score in found["PCA"]:
    print(f"{score:<22}" + "".join(f"{found[name][score]:>8.2f}" for name in spaces))

# %% [markdown]
# **What can go wrong.** *Donors apart*: was the right column given as batch? *All mixed, types as
# well* (`ilisi` high, `clisi` and `label_silhouette` low): what differs between donors is their
# cells, as in a healthy and a sick one, and the model was told to forget it. No score can say
# which of the two differences you wanted to keep.

# %% [markdown]
# ## 10:00. Which genes tell the clusters apart?
#
# Every cluster against all other cells, in one call. A gene is marked (`is_de`) where the means
# differ by more than a fold change that matters; of those marked in a comparison, 5 % are expected
# to be false. How much matters follows from the genes of each comparison, and is in the second line
# of its table; `delta=0.5` would set it for all. The donors are averaged over: what only differs by
# donor is no difference.
#
# In a terminal, of the groups in a column of the table:
#
#     python -m models de run --key type --all-groups --csv types.csv

# %%
n_samples = 300 if QUICK else 5000  # draws of z; 5,000 is what it takes by default
markers = model.differential_expression(counts, groupby="cluster", n_samples=n_samples)
markers.to_csv(day / "markers.csv")
markers[markers["group"] == "cluster 00"]

# %% [markdown]
# Which cells are these? The genes by which immunologists tell blood cells apart have been known for
# long, and we look for them among those marked. A cluster gets the name of the cells whose markers
# are raised in it the most; a gene that is not marked counts as not raised. Where no more than half
# of these markers are raised, none of the names fits, and the cluster stays unknown.

# %%
KNOWN = {
    "B cells": "CD79A CD79B MS4A1".split(),
    "plasma cells": "MZB1 IGJ TNFRSF17".split(),
    "T cells": "CD3D CD3E CD3G IL32".split(),
    "cytotoxic T cells": "CD8A CD8B GZMK".split(),
    "NK cells": "NKG7 GNLY PRF1 GZMB".split(),
    "classical monocytes": "LYZ S100A8 S100A9 FCN1".split(),
    "CD16+ monocytes": "FCGR3A C1QA LST1".split(),
    "dendritic cells (cDC1)": "IRF8 CPVL".split(),
    "dendritic cells (cDC2)": "FCER1A CLEC10A".split(),
    "progenitors": "SPINK2 PRSS57 EGFL7".split(),
}
kind_of = {}
for cluster in np.unique(counts.obs["cluster"]):
    mine = markers[markers["group"] == cluster]
    higher = mine[mine["is_de"] & (mine["lfc_mean"] > 0)]
    lfc = dict(zip(higher["gene"], higher["lfc_mean"]))
    raised = {kind: np.mean([lfc.get(g, 0.0) for g in genes]) for kind, genes in KNOWN.items()}
    kind = max(raised, key=raised.get)
    known = [gene for gene in KNOWN[kind] if gene in lfc]
    kind_of[cluster] = kind if 2 * len(known) > len(KNOWN[kind]) else "unknown"
    types, n = np.unique(counts.obs["type"][counts.obs["cluster"] == cluster], return_counts=True)
    print(f"{cluster}, {n.sum():>3} cells: {kind_of[cluster]}")
    print(f"    surest:    {' '.join(higher['gene'][:8])}")
    print(f"    known:     {' '.join(known)}")
    print(f"    annotated: {types[n.argmax()]} ({n.max() / n.sum():.0%} of them)")

# %% [markdown]
# The genes are those of the textbooks: two parts of the B cell's receptor (CD79A, CD79B) and CD20
# (MS4A1); perforin, granulysin and the granzymes with which cells kill; CD3 of T cells. Where a
# name differs from the annotation, the genes say more. What the authors call B cells is two
# clusters here, of which one makes antibodies (IGJ is the chain that joins them): plasma cells. And
# their monocytes express CD16 (FCGR3A). The authors compared each cell with sorted ones, and had no
# plasma cells among these. A small cluster stays unknown: genes of monocytes (AIF1, LST1) and of
# NK cells (NKG7, GNLY) are raised in it, and most of its cells are annotated as dendritic ones. It
# is to be looked at, not to be named: doublets, for one, look like this.
#
# Several clusters have the same name: they are parts of a kind that these few markers do not tell
# apart. Compare them with each other (`group_a` and `group_b`, masks of cells), or have fewer, by a
# lower `resolution`.
#
# `to_frame` gives a table as a pandas DataFrame, for whatever else you want to know of it: here the
# three genes of each cluster that are raised the most, and in which share of the cluster's cells
# (`nonzero_a`) and of the others (`nonzero_b`) they were found. The largest fold changes are often
# of genes found in few cells, and known less exactly (`lfc_std`).

# %%
if anndata is not None:
    frame = markers[markers["is_de"]].to_frame()
    frame = frame.sort_values("lfc_mean", ascending=False).groupby("group").head(3)
    shown = frame.sort_values(["group", "lfc_mean"], ascending=[True, False])
    shown = shown[["group", "gene", "lfc_mean", "lfc_std", "nonzero_a", "nonzero_b"]]
    print(shown.round(2).to_string(index=False))

# %%
b_cells = [cluster for cluster, kind in kind_of.items() if kind == "B cells"] or ["cluster 00"]
show.save(
    markers[markers["group"] == b_cells[0]].volcano(),
    pictures,
    "day_volcano",
    "A point a gene: fold change of the cluster of B cells (right) against all other cells, and "
    "how sure it is that it lies beyond the dotted lines.",
)

# %% [markdown]
# **What can go wrong.** *Genes that differ by construction*: clusters were made so that they
# differ, so some genes always will; that a cluster has marked genes does not make it a type. *Ten
# thousand cells are not ten thousand donors*: cells of one donor are no independent witnesses, and
# what differs between conditions needs donors of both. *A cluster that the model has not learnt*:
# a warning says so, and names it. *Two kinds of markers in one cluster*: doublets.

# %% [markdown]
# ## 10:30. A page to send to the others
#
# Training, latent space, use of its dimensions, and counts drawn from the model beside those of the
# data, as one HTML file without a network. Open `out/day/report.html`.
#
# In a terminal:
#
#     python -m models report run --color type

# %%
report.write(
    day / "report.html",
    model,
    history,
    counts,
    batch=counts.obs["donor"],
    labels=counts.obs["type"],
    label_name="type",
    title="The morning's sample",
)
page = (day / "report.html").read_text(encoding="utf-8")
print(f"report.html: {len(page) / 1e6:.1f} MB, {page.count('<img')} pictures")

# %% [markdown]
# ## 14:00. A second sample arrives
#
# Another donor, whose cells nobody has named. To train anew with all cells would change the
# morning's latent coordinates, and with them its clusters. `map_query` keeps them: the new donor
# gets weights of its own, which alone are trained, and all else stays as it is, to the bit
# (architecture surgery: Lotfollahi et al. 2022). Genes are matched by name; those that the sample
# lacks are filled with zeros, and how many there are is said.
#
# In a terminal:
#
#     python -m models map run afternoon --obs afternoon.csv --out run2

# %%
second = read(day / "afternoon", obs=day / "afternoon.csv")
second = model.align_genes(second)  # the genes of the model, in its order
mapped = model.map_query(second, epochs=10 if QUICK else None, progress=False)
z_second = mapped.latent(second)
print("batches:", *mapped.batches)
print("the morning's cells stay where they were:", np.array_equal(mapped.latent(counts), z))
second

# %% [markdown]
# **What can go wrong.** *Genes of another name* (Ensembl ids here, symbols there; mouse and human):
# where fewer than 80 % of the model's genes are found it is an error that says how many;
# `read(..., gene_names=...)` takes names from another column. *More cells of a donor that the model
# knows*: there is nothing to map. Ask the model itself, after `align_genes`; in a terminal,
# `embed run tuesday --obs tuesday.csv --min-overlap 0.8`. *A sample that does not fit*: see below
# how sure the labels are, and where its cells lie.
#
# ## 14:15. Names for its cells
#
# Each new cell asks its 15 nearest neighbours of the morning, and gets the type with most of their
# votes. The uncertainty is the share of the votes that other types got.
#
# In a terminal:
#
#     python -m models embed run2 --out second.csv
#     python -m models label latent.csv second.csv --labels morning.csv --column type \
#         --out labels.csv

# %%
labels, uncertainty = transfer_labels(z, counts.obs["type"], z_second)
named = np.where(uncertainty > 0.2, "unknown", labels)
second.obs |= {"label": labels, "uncertainty": uncertainty}
print(f"{'type':<30}{'cells':>6}{'uncertainty':>13}")
for name in np.unique(labels):
    is_it = labels == name
    print(f"{name:<30}{is_it.sum():>6}{uncertainty[is_it].mean():>13.2f}")

# %% [markdown]
# Cells of less certain name are called unknown below. Were the others right? Today we can look, as
# the types of these cells are known. And what becomes of cells of a type that the morning lacks? We
# ask again, with the morning's B cells left out.

# %%
is_sure = uncertainty <= 0.2
is_right = labels == true_types
print(f"of the {is_sure.sum()} cells named, right: {is_right[is_sure].mean():.0%}")
print(f"of the {(~is_sure).sum()} unknown ones it would be: {is_right[~is_sure].mean():.0%}")

without_b = counts.obs["type"] != "CD19+ B"
blind = transfer_labels(z[without_b], counts.obs["type"][without_b], z_second)
is_b = true_types == "CD19+ B"
print(f"B cells of the afternoon: {is_b.sum()}; asked where no B cells are, they are called:")
for name, n in zip(*np.unique(blind.labels[is_b], return_counts=True)):
    print(f"    {name:<30}{n:>3}")
print(f"and {np.mean(blind.uncertainty[is_b] > 0.2):.0%} of them unknown, for their uncertainty")

# %% [markdown]
# B cells lie between others here, whose votes differ. That was luck: the uncertainty knows votes
# only, and the neighbours of an unknown type may agree. So look at the two samples together: do the
# new cells lie among the old ones? (The kinds of T cells are uncertain because they differ little,
# and some monocytes because the authors call cells like them dendritic.)

# %%
if scanpy is None:
    _, plane_of_both = without_scanpy(np.concatenate([z, z_second]))
else:
    query = second.to_anndata()
    query.obsm["X_scVI"] = z_second
    _, plane_of_both = with_scanpy(anndata.concat([adata, query]), "X_scVI")

is_second = np.arange(len(plane_of_both)) >= len(counts)
sample = np.where(is_second, "afternoon (D3)", "morning (D1, D2)")
looks |= report.look_of(["morning (D1, D2)", "afternoon (D3)"])
figure, axes = show.figure(2, 2, width=5.2, height=3.4)
draw(axes[0, 0], plane_of_both, sample, "both samples")
for place in (axes[0, 1], axes[1, 0], axes[1, 1]):
    place.scatter(*plane_of_both[~is_second].T, s=6, color="#DDDDDD", linewidths=0, zorder=0)
draw(axes[0, 1], plane_of_both[is_second], named, "the afternoon's cells, as named")
draw(axes[1, 1], plane_of_both[is_second], true_types, "as their authors named them")
where = {"c": uncertainty, "s": 9, "linewidths": 0, "cmap": "cividis_r", "vmin": 0, "vmax": 1}
points = axes[1, 0].scatter(*plane_of_both[is_second].T, **where)
figure.colorbar(points, ax=axes[1, 0], label="uncertainty", location="bottom", shrink=0.8)
axes[1, 0].set(title="how uncertain the names are", xticks=[], yticks=[])
print(
    f"kBET of morning and afternoon: {integration.kbet(np.concatenate([z, z_second]), sample):.2f}"
)
show.save(
    figure,
    pictures,
    "day_second",
    "Both samples in one latent space, in which the morning's cells (grey in three panels) keep "
    "their coordinates; the plane is laid out anew, of all cells. The afternoon's lie among them, "
    "and get their names from them.",
)

# %% [markdown]
# ## 17:00. Save everything
#
# The models, so that tomorrow's sample can be mapped too; the tables; and for scanpy an `.h5ad` of
# the morning with counts, latent space and clusters, and one of both samples with the names, of the
# genes that both have.

# %%
model.save(day / "morning.npz")
mapped.save(day / "both.npz")
again = SCVI.load(day / "both.npz")
print("as saved, so loaded:", np.array_equal(again.latent(second), z_second))
if anndata is not None:
    adata = counts.to_anndata()
    adata.obsm["X_scVI"] = z
    adata.obsm["X_tsne" if scanpy is None else "X_umap"] = plane
    adata.obs["kind"] = [kind_of[cluster] for cluster in counts.obs["cluster"]]
    adata.write_h5ad(day / "morning.h5ad")

    query = second.to_anndata()
    query.obsm["X_scVI"] = z_second
    query.obs["type"] = named
    query = query[:, query.var["is_measured"]]  # the zeros of the others nobody counted
    both = anndata.concat({"morning": adata, "afternoon": query}, label="sample")
    both.obsm["X_tsne" if scanpy is None else "X_umap"] = plane_of_both
    both.write_h5ad(day / "both.h5ad")
    print(both)

# %% [markdown]
# **What can go wrong.** *A table opened in a spreadsheet*: it turns the gene `MARCH1` into the 1st
# of March; import the column of genes as text. *A model without its genes*: `save` keeps their
# names and the columns of `obs`, and a file with other genes is refused later.
#
# ## The same day in a terminal
#
# All commands from above, in the folder of the day. A run is a folder with settings, history and
# weights; `--help` after any command says more.


# %%
def terminal(command):
    """Run a command of `python -m models` in the folder of the day; what it prints, as text."""
    print("$ python -m models", command)
    done = subprocess.run(
        [sys.executable, "-m", "models", *shlex.split(command)],
        cwd=day,
        env={**os.environ, "PYTHONPATH": str(Path(show.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


for folder in ("run", "run2"):  # of an earlier walk
    shutil.rmtree(day / folder, ignore_errors=True)
told = "--batch-key donor --continuous pct_mito --encode-covariates"
quickly = " --epochs 10" if QUICK else ""
terminal(f"train morning --obs morning.csv {told} --out run{quickly}")
terminal("embed run --out latent.csv")
terminal(f"map run afternoon --obs afternoon.csv --out run2{quickly}")
terminal("embed run2 --out second.csv")
print(terminal("label latent.csv second.csv --labels morning.csv --column type --out labels.csv"))

# %% [markdown]
# With the same seed, the same processor and as many threads, the numbers are those of Python, to
# the digits of a table:

# %%
for file, above in (("latent.csv", z), ("second.csv", z_second)):
    in_terminal = np.loadtxt(day / file, delimiter=",", skiprows=1, usecols=range(1, 31))
    print(f"{file}: largest difference from above {np.abs(in_terminal - above).max():.0e}")

# %% [markdown]
# Marker genes, and the page; and then all the files of the day.

# %%
if not QUICK:
    table = terminal("de run --key type --all-groups --rows 4 --csv types.csv")
    print("\n\n".join(table.split("\n\n")[:2]), "\n\n...")
    terminal("report run --color type")
print(*sorted(str(path.relative_to(day)) for path in day.rglob("*") if path.is_file()), sep="\n")
