"""Do these names look like those of cells, or of genes? This is engineering.

Half of all tables of counts have a line for each cell, the other half (most of those in GEO) a line
for each gene, and nothing in them says so. Read the wrong way round, a table trains without an
error: genes are taken for cells. Only the names can tell:

    >>> barcodes = ["d1_ACGTACGTACGT", "d1_TTTTACGTACGT"]
    >>> symbols = ["Actb", "Cd3e", "Rpl13", "Gapdh"]
    >>> advice(cells=symbols, genes=barcodes)
    "what are taken for genes have names of cells ('d1_ACGTACGTACGT'), and what are taken for \
cells have names of genes ('Actb'): if that is the wrong way round, pass transpose=True"
    >>> advice(cells=barcodes, genes=symbols)

Know before reading: regular expressions. Know after: which names are held for barcodes and genes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

Names = Sequence[str] | np.ndarray
LOOKED_AT = 2000  # names at most, spread over all of them
LONGEST = 80  # characters that are looked at: a stranger's name may have millions
MOST = 0.5  # share of the names above which they are those of cells
# Share of names of well-known families above which they are those of genes. Of the genes of mouse
# and human a third have such names, of the most variable ones more; of cells hardly any.
FAMILIES = 0.1

CELL = re.compile(
    r"""
    (.*[^ACGTN])?[ACGTN]{8,}([^A-Za-z].*)?            # a barcode, and what stands around
    | (GSM|SR[RXS]|ER[RXS]|DR[RXS]|SAM[NED]A?)\d+.*   # a sample of an archive
    | .+[-_. ][A-H](0?[1-9]|1[0-2])                   # a well of a plate, plate1_A05
    | .*(cell|sample|barcode|patient|donor|spot|well|plate)s?[-_. ]?\d.*
    """,
    re.VERBOSE | re.IGNORECASE,
)
GENE = re.compile(
    r"""
    ENS[A-Z]{0,5}G\d{9,}.* | FBgn\d+ | WBGene\d+ | AT[1-5MC]G\d{5} | LOC\d+ | A[CLP]\d{6}\.\d+
    | (LINC|Gm|MIR)\d+ | \w+Rik | MT-\w+ | RP[LS][A-Z]?\d+\w*(-?ps\d*)? | HLA-\w+ | H2-\w+
    | (ACTB|GAPDH|B2M|MALAT1|XIST|VIM|FOS|JUNB?|EGR\d|ALB|INS|EPCAM|PTPRC|NEAT1|FTH1|FTL1?)
    | CD\d+[A-Z]?\d? | I[LF]\w?\d+\w* | (CC|CXC)[LR]\d+ | TN[FN]\w+ | IG[HKL]\w+ | TR[ABDG][CV]\w*
    | (SLC|ABC)\w?\d*[A-Z]\d+ | (ZNF|ZFP|ZBTB|TMEM|FAM|TRIM|KIF|MAPK?|RAB|CDK|CDC|WNT|FGF|TGF|HOX
    | SOX|PAX|FOX|GATA|STAT|KLF|NFK|EIF|POL|PSM|UBE|USP|NDUF|COX|ATP|CYP|GST|HSP|DNAJ|HIST|COL|LAM
    | KRT|MYH?|MYL|ACT|TUB|GPR|ADR|GAB|GRI|KCN|CACN|SCN|PCDH|CDH|ITG|SERPIN|CTS|MMP|ADAM|LGALS|S100
    | ANXA|APO|FAB|PLA|PPP|PRK|PTP|RAS|RHO|ARHG|DUSP|IRF|IFI|ISG|LRR|ANK|CCD|KLH|FBX|SNX|VPS|TBC
    | SH3|SPT|EPH|SEMA|NOTCH|LYZ|GZM|KLR|NKG|CLEC|FCER|FCGR|C1Q|HB[ABG])[A-Z]{0,3}\d*[A-Z]{0,2}\d*
    """,
    re.VERBOSE | re.IGNORECASE,
)


def advice(cells: Names, genes: Names, what_to_do: str = "pass transpose=True") -> str | None:
    """A sentence to warn with where the names (n_cells,) and (n_genes,) seem to be exchanged, or
    None. what_to_do: its end.
    """
    found = []
    if _share(CELL, genes) > max(MOST, _share(CELL, cells)):
        found.append(f"what are taken for genes have names of cells ({_first(CELL, genes)!r})")
    if _share(GENE, cells) > max(FAMILIES, 2 * _share(GENE, genes)):
        found.append(f"what are taken for cells have names of genes ({_first(GENE, cells)!r})")
    if not found:
        return None
    return f"{', and '.join(found)}: if that is the wrong way round, {what_to_do}"


def _share(pattern: re.Pattern, names: Names) -> float:
    """The share of the names that the pattern fits."""
    step = max(1, len(names) // LOOKED_AT)
    looked_at = names[::step]
    if len(looked_at) == 0:
        return 0.0
    return sum(_fits(pattern, name) for name in looked_at) / len(looked_at)


def _first(pattern: re.Pattern, names: Names) -> str:
    """The first name that the pattern fits."""
    return next(str(name) for name in names if _fits(pattern, name))


def _fits(pattern: re.Pattern, name: str) -> bool:
    return pattern.fullmatch(str(name)[:LONGEST]) is not None
