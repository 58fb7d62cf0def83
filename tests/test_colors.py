"""models/colors.py: a label's colour follows its name, and stays where it is remembered."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from models import colors

TYPES = (
    "B NK T Monocyte Dendritic Platelet HSPC Plasma Treg MAIT Erythroid Neutrophil Mast ILC "
    "Basophil Eosinophil Fibroblast Endothelial Pericyte Schwann Astrocyte Microglia Oligo OPC"
).split()


def oklab(color, is_dark_page):
    """Ottosson (2020), of a colour as it is, or as the CSS of dark pages turns it."""
    x = np.array(to_rgb(color))
    if is_dark_page:  # invert(.93) hue-rotate(180deg) brightness(1.15), CSS Filter Effects 1
        x = 0.07 * x + 0.93 * (1 - x)
        rotate = [[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]]
        x = np.clip(np.clip(np.array(rotate) @ x, 0, 1) * 1.15, 0, 1)
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return 100 * lab @ np.cbrt(cones @ linear)


@pytest.mark.parametrize("is_dark_page", [False, True])
def test_no_two_colours_look_alike(is_dark_page):
    """Some 2 are just noticeable side by side."""
    lab = np.array([oklab(color, is_dark_page) for color in colors.PALETTE])
    distance = np.linalg.norm(lab[:, None] - lab, axis=2) + 99 * np.eye(len(lab))
    assert distance.min() > 7.9


def test_every_colour_shows_on_white():
    """The contrast of WCAG 2.1 is 2 at least."""
    assert len(set(colors.PALETTE)) == len(colors.PALETTE) == 30
    for color in (*colors.PALETTE, colors.legible("#FFFF00"), colors.legible("white")):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)
        ]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) > 1.97, color


def test_up_to_thirty_labels_have_a_look_of_their_own():
    for n in (1, 3, 10, 11, 29, 30):
        names = [f"{i:02d}" for i in range(n)]
        for look in (colors.look_of(names), colors.look_by_name(names)):
            assert len({look[name]["color"] for name in names}) == n
    twenty = [*(f"{i:02d}" for i in range(19)), "others"]
    assert colors.look_of(twenty)["others"]["color"] == "#BBBBBB"
    assert colors.look_by_name(twenty)["others"]["color"] == "#BBBBBB"
    assert colors.look_by_name(["(no label)", "B"])["(no label)"]["color"] == "#999999"
    with pytest.raises(ValueError, match="30 colours, too few"):
        colors.look_by_name(str(i) for i in range(31))


def color_of(look):
    return {name: of_name["color"] for name, of_name in look.items()}


def test_a_colour_follows_the_name_and_not_its_place():
    """Of types in two samples that each lack some, most have the same colour in both."""
    rng = np.random.default_rng(0)
    same = {"by name": [], "in order": []}
    for _ in range(100):
        one, other = [sorted(rng.choice(TYPES[:12], 9, replace=False).tolist()) for _ in range(2)]
        for way, look in (("by name", colors.look_by_name), ("in order", colors.look_of)):
            a, b = color_of(look(one)), color_of(look(other))
            same[way] += [a[name] == b[name] for name in set(one) & set(other)]
    assert np.mean(same["by name"]) > 0.75 > 0.55 > np.mean(same["in order"])
    assert colors.look_by_name(["T", "B"]) == colors.look_by_name(["B", "T", "T"])
    # The names alone decide, in every process and on every machine.
    assert color_of(colors.look_by_name(["T", "B"])) == {
        "B": "#7F7F7F",
        "T": "#CC79A7",
        "others": "#BBBBBB",
        "(no label)": "#999999",
    }


def test_colours_that_are_known_stay():
    before = color_of(colors.look_by_name(TYPES))
    for n in (1, 5, 12):
        after = color_of(colors.look_by_name([*TYPES[-n:], "new"], before))
        assert all(after[name] == before[name] for name in TYPES[-n:])
        assert after["new"] not in [after[name] for name in TYPES[-n:]]
    # Two names that come from different reports may have had the same.
    clash = color_of(colors.look_by_name(["a", "b"], {"a": "#0072B2", "b": "#0072B2"}))
    assert clash["a"] == "#0072B2" != clash["b"]
    own = colors.look_by_name(["a"], {"a": "#123456"})["a"]
    assert own == {"color": "#123456", "marker": "o"}


NAMES = {"B": "#0072B2", "γδ T": "#123456", '"<&>\n': "#009E73", "\udcff": "#E69F00"}


def test_colours_are_written_and_read(tmp_path):
    path = tmp_path / "colors.json"
    colors.write_colors(path, NAMES)
    assert colors.read_colors(path) == NAMES
    assert '"B": "#0072B2",\n' in path.read_text(encoding="utf-8", errors="surrogatepass")
    path.write_text('{"B": "#0072b2", "snow": "#FFFFFF", "mine": "#abcdef"}')
    found = colors.read_colors(path)
    assert found["B"] == "#0072B2"  # one of the palette's, so its marker is too
    assert found["snow"] == colors.legible("#FFFFFF").upper() != "#FFFFFF"


@pytest.mark.parametrize(
    "text, said",
    [
        (b"", "not readable as JSON"),
        (b"\xff\xfe{}", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"[]", "holds no names"),
        (b'{"B": "red"}', "the colour of 'B' is 'red'"),
        (b'{"B": "#00000g"}', "the colour of 'B' is '#00000g'"),
        (b'{"B": ["#000000"]}', "the colour of 'B' is"),
        (b'{"B": "#000000' + b" " * 1_000_000 + b'"}', "1,000,016 bytes are no list"),
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path, text, said):
    path = tmp_path / "colors.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=said) as error:
        colors.read_colors(path)
    assert str(error.value).startswith(str(path)) and "mend or remove it" in str(error.value)
