"""Says whether a picture shows its caption, by measuring it: no neural network is involved.

Colours are the nearest ones of the palette; figures are connected components against the
background, told apart by how well they cover templates of all shapes; stripes, dots and outlines
are counted; the scenes are read at the places where their parts stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from .drawing import COLOURS, SCENERY, SHAPES, SIZE, Figure, Spec, parse, plain_ground, shape_mask

_NAMES = list(COLOURS)
_PALETTE = np.array(list(COLOURS.values()), dtype=float)
_NEAR = 62.0
"""A colour further than this from every palette colour (in RGB) is none of them."""
_SPECK = 45
"""Components of fewer pixels are no figures."""
_BOX = 40
"""Side of the square in which shapes are compared."""


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows its caption.

    Parameters
    ----------
    right
        Whether it does.
    reasons
        What is wrong, in words; empty if nothing is.
    """

    right: bool
    reasons: tuple[str, ...] = ()


def judge(image: Image.Image, caption: str) -> Verdict:
    """Judge one picture.

    Parameters
    ----------
    image
        The picture; scaled to the size of the drawings if it has another one.
    caption
        A caption of the grammar.

    Raises
    ------
    ValueError
        If the caption is not in the grammar.
    """
    spec = parse(caption)
    image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    pixels = np.asarray(image, dtype=float)
    check = {"house": _house, "boat": _boat}.get(spec.family, _figures)
    reasons = tuple(check(pixels, spec))
    return Verdict(not reasons, reasons)


def _colour_name(pixels: np.ndarray) -> str:
    """Name the median of some pixels."""
    if len(pixels) == 0:
        return "nothing"
    distances = np.linalg.norm(_PALETTE - np.median(pixels, axis=0), axis=1)
    best = int(distances.argmin())
    return _NAMES[best] if distances[best] < _NEAR else "no palette colour"


def _labels(pixels: np.ndarray, names: list[str]) -> np.ndarray:
    """For each pixel, which of these colours is nearest."""
    table = np.array([COLOURS[name] for name in names], dtype=float)
    return np.linalg.norm(pixels[..., None, :] - table, axis=-1).argmin(-1)


def _frame(width: int = 4) -> np.ndarray:
    mask = np.ones((SIZE, SIZE), dtype=bool)
    mask[width:-width, width:-width] = False
    return mask


# One figure, two figures, several equal figures.


def _figures(pixels: np.ndarray, spec: Spec) -> list[str]:
    if spec.pattern:
        masks, reasons = _on_pattern(pixels, spec)
    else:
        masks, reasons = _on_plain(pixels, spec)
    expected = spec.count * len(spec.figures)
    if len(masks) != expected:
        return [*reasons, f"{len(masks)} figures instead of {expected}"]
    if spec.relation:
        masks = _in_order(masks, spec.relation)
        # "and" leaves open which comes first.
        orders = (masks, masks[::-1]) if spec.relation == "and" else (masks,)
        return [*reasons, *min((_pair_faults(pixels, spec, order) for order in orders), key=len)]
    for mask in masks:
        reasons += _figure_faults(pixels, spec.figures[0], mask)
    return reasons


def _pair_faults(pixels: np.ndarray, spec: Spec, masks: list[np.ndarray]) -> list[str]:
    if not masks:
        return [f"the figures do not stand {spec.relation} each other"]
    return [
        fault
        for figure, mask in zip(spec.figures, masks, strict=True)
        for fault in _figure_faults(pixels, figure, mask)
    ]


def _in_order(masks: list[np.ndarray], relation: str) -> list[np.ndarray]:
    """Put two masks in the order of the caption; empty if they do not stand as it says."""
    (ay, ax), (by, bx) = (ndimage.center_of_mass(mask) for mask in masks)
    vertical = relation in ("above", "below")
    along, across = (by - ay, bx - ax) if vertical else (bx - ax, by - ay)
    if relation != "and" and abs(along) < 1.5 * abs(across):
        return []
    forward = (along > 0) != (relation in ("below", "right of"))
    return masks if forward else masks[::-1]


def _on_plain(pixels: np.ndarray, spec: Spec) -> tuple[list[np.ndarray], list[str]]:
    reasons = []
    name = _colour_name(pixels[_frame()])
    if name != spec.ground:
        return [], [f"the background is {name}"]
    # The nearest palette colour, not a distance: what is nearer to another colour is foreground.
    foreground = _labels(pixels, _NAMES) != _NAMES.index(spec.ground)
    if spec.figures[0].finish:
        # Where two colours of a finish meet, their blend can look like the background.
        foreground = ndimage.binary_closing(foreground, np.ones((3, 3)))
    if foreground[_frame()].mean() > 0.06:
        reasons.append("the background is not plain")
    parts, n = ndimage.label(foreground)
    masks, specks = [], 0
    for i in range(1, n + 1):
        mask = parts == i
        if mask.sum() >= _SPECK:
            masks.append(mask)
        else:
            specks += int(mask.sum())
    if specks > 2 * _SPECK:
        reasons.append("specks on the background")
    return masks, reasons


def _on_pattern(pixels: np.ndarray, spec: Spec) -> tuple[list[np.ndarray], list[str]]:
    figure = spec.figures[0]
    names = [spec.ground, spec.second, figure.colour]
    # Blends of the pattern's colours can look like the figure's: thin parts do not count.
    found = ndimage.binary_opening(_labels(pixels, _NAMES) == _NAMES.index(figure.colour))
    parts, n = ndimage.label(found)
    masks = [parts == i for i in range(1, n + 1)]
    masks = [mask for mask in masks if mask.sum() >= 2 * _SPECK]
    if not masks:
        return [], []
    around = ~ndimage.binary_dilation(np.any(masks, axis=0), iterations=4)
    second = _labels(pixels, names[:2]) == 1
    drawn = np.asarray(plain_ground(spec.ground, spec.pattern, spec.second), dtype=float)
    wanted = _labels(drawn, names[:2]) == 1
    reasons = []
    for side, name in ((wanted, spec.second), (~wanted, spec.ground)):
        if not _covered(pixels, side & around, second == wanted, name):
            reasons.append(f"the {spec.pattern} of the background are not {spec.second}")
            break
    return masks, reasons


def _covered(pixels: np.ndarray, side: np.ndarray, agreed: np.ndarray, name: str) -> bool:
    """Whether one colour of a background pattern is where it belongs."""
    if side.sum() < 100:
        return False
    core = ndimage.binary_erosion(side)
    core = core if core.any() else side
    return bool(_colour_name(pixels[core]) == name and agreed[side].mean() >= 0.75)


def _figure_faults(pixels: np.ndarray, figure: Figure, mask: np.ndarray) -> list[str]:
    reasons = []
    shape, cover, radius = read_shape(mask)
    if shape != figure.shape:
        reasons.append(f"a {shape} instead of a {figure.shape}")
    elif cover < 0.72:
        reasons.append(f"a badly shaped {shape}")
    if (figure.size == "small" and radius > 0.215) or (figure.size == "large" and radius < 0.31):
        reasons.append(f"the {figure.shape} is not {figure.size}")
    if figure.finish:
        return reasons + _finish_faults(pixels, figure, mask)
    inside = ndimage.binary_erosion(mask, iterations=2)
    inside = inside if inside.sum() > 20 else mask
    colour = _colour_name(pixels[inside])
    if colour != figure.colour:
        reasons.append(f"a {colour} {figure.shape}, not a {figure.colour} one")
    else:
        off = np.linalg.norm(pixels[inside] - np.median(pixels[inside], axis=0), axis=1) > 60
        if off.mean() > 0.12:
            reasons.append(f"the {figure.shape} is not plain")
    return reasons


@cache
def _templates() -> dict[str, tuple[np.ndarray, float, float]]:
    """Per shape: its mask in the comparison square, its aspect ratio, height over radius."""
    result = {}
    for shape in SHAPES:
        mask = np.asarray(shape_mask(shape, 0.5, 0.5, 0.3).reduce(4)) > 127
        square, height, width = _in_square(mask)
        result[shape] = square, width / height, height / (0.3 * SIZE)
    return result


def _in_square(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray(part.astype(np.uint8) * 255)
    square = np.asarray(image.resize((_BOX, _BOX), Image.Resampling.BILINEAR)) > 127
    return square, *part.shape


def read_shape(mask: np.ndarray) -> tuple[str, float, float]:
    """Tell which shape a mask is.

    Parameters
    ----------
    mask
        Where the figure is.

    Returns
    -------
    tuple
        The name of the shape, how well it covers the template (intersection over union), and its
        radius in fractions of the picture.
    """
    square, height, width = _in_square(mask)

    def cover(shape: str) -> float:
        template, aspect, _ = _templates()[shape]
        overlap = (square & template).sum() / (square | template).sum()
        # A stretched figure is a worse match.
        ratio = (width / height) / aspect
        return float(overlap * min(ratio, 1 / ratio) ** 0.5)

    best = max(SHAPES, key=cover)
    return best, cover(best), height / _templates()[best][2] / SIZE


def _finish_faults(pixels: np.ndarray, figure: Figure, mask: np.ndarray) -> list[str]:
    fault = [f"no {figure.second} {figure.finish} on a {figure.colour} {figure.shape}"]
    # Stripes and dots of another colour than the caption's give a median of another name.
    second = (_labels(pixels, [figure.colour, figure.second]) == 1) & mask
    first = mask & ~second
    inner = ndimage.binary_erosion(mask, iterations=2)
    for part, name in ((first, figure.colour), (second, figure.second)):
        core = ndimage.binary_erosion(part) & inner
        if core.sum() < 20 or _colour_name(pixels[core]) != name:
            return fault
    test = {"stripes": _striped, "dots": _dotted, "outline": _outlined}[figure.finish]
    return [] if test(second & mask, mask, inner) else fault


def _striped(second: np.ndarray, mask: np.ndarray, inner: np.ndarray) -> bool:
    rows = np.flatnonzero(inner.sum(1) >= 8)
    if len(rows) == 0:
        return False
    share = np.array([second[row][inner[row]].mean() for row in rows])
    pure = np.maximum(share, 1 - share).mean()
    bands = ndimage.label(share > 0.5)[1]
    return bool(pure > 0.85 and bands >= 3 and 0.25 < (share > 0.5).mean() < 0.75)


def _dotted(second: np.ndarray, mask: np.ndarray, inner: np.ndarray) -> bool:
    parts, _ = ndimage.label(second & inner)
    dots = 0
    for i, place in enumerate(ndimage.find_objects(parts), start=1):
        area = (parts[place] == i).sum()
        height, width = (piece.stop - piece.start for piece in place)
        dots += bool(area >= 18 and max(height, width) <= 14)
    return bool(dots >= 4 and 0.1 < second[inner].mean() < 0.5)


def _outlined(second: np.ndarray, mask: np.ndarray, inner: np.ndarray) -> bool:
    depth = ndimage.distance_transform_edt(mask)
    shell, core = (depth > 1.2) & (depth < 3.5), depth > 0.72 * depth.max()
    return bool(second[shell].mean() > 0.7 and second[core].mean() < 0.15)


# The scenes. Their parts stand at known places, give or take the drawing's freedom.


def _box(pixels: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    left, top, right, bottom = (round(value * SIZE) for value in (left, top, right, bottom))
    return pixels[top:bottom, left:right]


def _is(pixels: np.ndarray, name: str) -> bool:
    """Whether the median of some pixels is a colour of the scenery."""
    median = np.median(pixels.reshape(-1, 3), axis=0)
    return bool(np.linalg.norm(median - SCENERY[name]) < 48)


def _like(pixels: np.ndarray, colour: tuple[int, int, int], distance: float = 55) -> np.ndarray:
    return np.linalg.norm(pixels - np.array(colour, dtype=float), axis=-1) < distance


def _part(pixels: np.ndarray, what: str, colour: str) -> list[str]:
    seen = _colour_name(pixels.reshape(-1, 3))
    return [] if seen == colour else [f"the {what} is {seen}, not {colour}"]


def _sky(pixels: np.ndarray, light: str, sides: tuple[tuple[float, float], ...]) -> list[str]:
    """Faults of the sky; one light is looked for, on one of the sides."""
    day = light == "sun"
    reasons = []
    if not _is(_box(pixels, 0, 0, 1, 0.05), "day" if day else "night"):
        reasons.append(f"not the sky under a {light}")
    least, most = (300, 1200) if day else (90, 420)
    areas = [_largest(_box(pixels, left, 0.0, right, 0.42), light) for left, right in sides]
    lights = [area for area in areas if area >= 0.5 * least]
    if len(lights) != 1 or not least <= lights[0] <= most:
        reasons.append(f"no {light}" if not lights else f"not one {light}")
    return reasons


def _largest(pixels: np.ndarray, light: str) -> int:
    """Pixels of the largest part that has the colour of a light."""
    parts, n = ndimage.label(_like(pixels, SCENERY[light], 60))
    return max((int((parts == i).sum()) for i in range(1, n + 1)), default=0)


def _house(pixels: np.ndarray, spec: Spec) -> list[str]:
    house = spec.figures[0]
    day = spec.ground == "sun"
    left = spec.relation == "left of"
    x, tree_x = (0.32, 0.78) if left else (0.68, 0.22)
    reasons = _sky(pixels, spec.ground, ((0.33, 0.67),))
    reasons += _part(_box(pixels, x + 0.0, 0.78, x + 0.15, 0.84), "wall", house.colour)
    reasons += _part(_box(pixels, x - 0.06, 0.45, x + 0.06, 0.53), "roof", house.second)
    if not _is(_box(pixels, 0, 0.93, 1, 1), "grass" if day else "dark grass"):
        reasons.append("no grass")
    if not _is(_box(pixels, x - 0.1, 0.72, x - 0.06, 0.84), "wood"):
        reasons.append("no door")
    pane = _like(_box(pixels, x, 0.6, x + 0.17, 0.78), SCENERY["glass" if day else "light"])
    if pane.sum() < 40 and house.colour not in ("white", "yellow"):
        reasons.append("no window")
    return reasons + _tree(pixels, spec.tree, tree_x)


def _tree(pixels: np.ndarray, kind: str, x: float) -> list[str]:
    crown = _box(pixels, x - 0.18, 0.35, x + 0.18, 0.78)
    green = _like(crown, SCENERY["foliage"])
    if green.sum() < 350:
        return [f"no {kind}"]
    # Only a pine reaches so low beside its trunk.
    low = _like(_box(pixels, x - 0.12, 0.72, x + 0.12, 0.755), SCENERY["foliage"]).mean()
    top = _box(pixels, x - 0.18, 0.35, x + 0.18, 0.675)
    apples = ndimage.binary_opening(_like(top, COLOURS["red"], 75), np.ones((2, 2)))
    n = ndimage.label(apples)[1]
    seen = "pine" if low > 0.4 else "apple tree" if n >= 3 else "tree" if n == 0 else "sick tree"
    return [] if seen == kind else [f"a {seen} instead of a {kind}"]


def _boat(pixels: np.ndarray, spec: Spec) -> list[str]:
    boat = spec.figures[0]
    day = spec.ground == "sun"
    # A sail can have the colour of the light: it is looked for above and beside the sail.
    reasons = _sky(pixels, spec.ground, ((0.0, 0.34), (0.66, 1.0)))
    reasons += _part(_box(pixels, 0.39, 0.66, 0.61, 0.75), "hull", boat.colour)
    reasons += _part(_box(pixels, 0.58, 0.49, 0.62, 0.55), "sail", boat.second)
    if not _is(_box(pixels, 0, 0.94, 1, 1), "sea" if day else "dark sea"):
        reasons.append("no sea")
    return reasons
