"""Which colour and marker a label has in pictures, and how it keeps them from report to report.

This is engineering.

Know before reading: nothing. In a picture by itself labels take the colours in order, `look_of`:

    >>> [look["color"] for look in look_of(["B", "NK", "T"]).values()]
    ['#0072B2', '#E69F00', '#009E73']

Then B is blue, and in the picture of a sample without B, NK is. So in reports a colour follows from
the label's name alone, by a hash (`look_by_name`). But there are few colours: ten that colour-blind
readers tell apart as well as ten can be, and twenty more for pictures with more labels. Where a
hash sends two names of one picture to the same colour, one of them has to take another. So a name
mostly has the same colour in two reports, but not always. To have it always, it must be remembered:
a report keeps the colours of its labels in a file (`write_colors`), and later ones begin from there
(`read_colors`). It may be edited by hand:

    {"B": "#0072B2", "NK": "#E69F00"}

Know after: why one colour for one type, in all reports ever, cannot be had without a list.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from minigrad.checkpoint import whole_file

# Okabe & Ito (2008), then three more for up to ten classes; markers help where colours do not.
COLORS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#000000",
    "#C4BB34",
    "#7F7F7F",
    "#882255",
)
# Twenty more, each as far as can be from all before it: by distance in OKLab (Ottosson 2020), as it
# is and as dark pages turn it, and for a quarter as seen with red-green blindness (Machado et al.
# 2009), among colours that are neither so light nor so dark as to look alike when small.
PALETTE = (
    *COLORS,
    "#005500",
    "#CE31FF",
    "#000CFF",
    "#6D79FF",
    "#DB9EFF",
    "#24CE9E",
    "#00C200",
    "#616D00",
    "#FF2461",
    "#793D00",
    "#F39EAA",
    "#6149CE",
    "#86920C",
    "#004979",
    "#186D61",
    "#DB6DE7",
    "#3D92C2",
    "#F37961",
    "#925549",
    "#866DAA",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
OTHERS = "others"  # labels that have no colour of their own
NO_LABEL = "(no label)"  # what cells without one are called
GREY = {
    OTHERS: {"color": "#BBBBBB", "marker": "."},
    NO_LABEL: {"color": "#999999", "marker": "d"},
}
MOST_LIGHT = 0.475  # luminance of markers: on white, whose is 1, a contrast of 2
MOST_BYTES = 1_000_000  # of a file of colours


def legible(color) -> str:
    """A colour of matplotlib as "#RRGGBB", darkened in its own hue where white would swallow it.

    Luminance and contrast are those of WCAG 2.1.
    """
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    if luminance <= MOST_LIGHT:
        return to_hex(color)
    linear = linear * (MOST_LIGHT / luminance)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = rgb.tolist()
    return to_hex((red, green, blue))


def look_of(names: Iterable[str]) -> dict[str, dict]:
    """A colour and a marker for each name, in order, as matplotlib's options.

    After 30 names the palette begins anew. "others" are grey if there are more than ten names.
    """
    names = list(names)
    found = {}
    for i, name in enumerate(names):
        found[name] = _look(PALETTE[i % len(PALETTE)])
    if OTHERS in found and len(names) > len(COLORS):
        found[OTHERS] = dict(GREY[OTHERS])
    return found


def look_by_name(names: Iterable[str], known: Mapping[str, str] | None = None) -> dict[str, dict]:
    """A colour and a marker for each name, as matplotlib's options, that other names hardly change.

    names: at most 30; no two get the same colour. "others" and "(no label)" are added, in grey.
    known: name -> "#RRGGBB", the colour that it had before and gets again; if two names had the
    same, the first in alphabetical order gets it.
    """
    names = sorted(set(names) - set(GREY))
    chosen: dict[str, str] = {}
    for name in names:
        color = (known or {}).get(name)
        if color is not None and color not in chosen.values():
            chosen[name] = color
    for name in names:
        if name not in chosen:
            chosen[name] = _preferred(name, set(chosen.values()))
    found = {name: _look(chosen[name]) for name in names}
    return found | {name: dict(look) for name, look in GREY.items()}


def _preferred(name: str, taken: set[str]) -> str:
    """The free colour that a name would rather have: of the first ten, if there is one."""
    for colors in (COLORS, PALETTE):
        free = [color for color in colors if color not in taken]
        if free:
            return min(free, key=lambda color: _draw(name, color))
    raise ValueError(f"there are {len(PALETTE)} colours, too few for one more label, {name!r}")


def _draw(name: str, color: str) -> bytes:
    """A random number, the same one whenever this name and colour are asked.

    Names from files may hold bytes that are no text, as surrogates; these must be let pass.
    """
    return hashlib.blake2b(f"{color} {name}".encode(errors="surrogatepass")).digest()


def _look(color: str) -> dict:
    """matplotlib's options for a colour: its own marker if it is of the palette, else the first."""
    place = PALETTE.index(color) if color in PALETTE else 0
    return {"color": color, "marker": MARKERS[place % len(MARKERS)]}


def write_colors(path: Path, colors: Mapping[str, str]) -> None:
    """Write name -> colour, "#RRGGBB", as JSON, a line for each."""
    with whole_file(path) as temporary:
        text = json.dumps(dict(sorted(colors.items())), indent=0, ensure_ascii=False)
        temporary.write_bytes(text.encode(errors="surrogatepass") + b"\n")


def read_colors(path: Path) -> dict[str, str]:
    """Name -> colour, "#RRGGBB", as `write_colors` or somebody's hand wrote them.

    ValueError, in a sentence, for a file of anything else. A colour too light for white is
    darkened.
    """
    wanted = 'it must be like {"B": "#0072B2", "NK": "#E69F00"}; mend or remove it'
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes are no list of colours; {wanted}")
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); {wanted}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds no names with colours; {wanted}")
    for name, color in found.items():
        if not (isinstance(color, str) and re.fullmatch("#[0-9A-Fa-f]{6}", color)):
            raise ValueError(f"{path}: the colour of {name!r} is {color!r}; {wanted}")
    return {name: _as_written(color) for name, color in found.items()}


def _as_written(color: str) -> str:
    """The palette's own spelling of a colour, so that equal ones are seen to be."""
    return color.upper() if color.upper() in PALETTE else legible(color).upper()
