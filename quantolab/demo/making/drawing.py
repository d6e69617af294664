"""Captions and the pictures that show them: what the demo model is trained on.

Every picture comes from a small grammar of five families:

* one figure: "a large red heart with white dots on a blue background", "a green star on a yellow
  background with white stripes";
* two figures: "a blue circle above a green triangle on a yellow background";
* several equal figures: "four pink flowers on a black background";
* a house: "a white house with a red roof left of an apple tree under a sun";
* a boat: "a red boat with a white sail on the sea under a moon".

A caption and its :class:`Spec` say the same thing: :func:`parse` is the inverse of
:attr:`Spec.caption`. The drawing itself also varies in what the caption leaves open (exact place
and size), which is drawn from the random generator that is passed in.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

from PIL import Image, ImageDraw

SIZE = 128
"""Width and height of a picture in pixels."""

_SUPERSAMPLE = 4

COLOURS = {
    "red": (214, 44, 48),
    "orange": (243, 140, 40),
    "yellow": (250, 212, 66),
    "green": (44, 156, 84),
    "turquoise": (64, 200, 196),
    "blue": (50, 92, 210),
    "purple": (128, 62, 172),
    "pink": (248, 160, 196),
    "white": (248, 248, 246),
    "black": (30, 30, 34),
}
"""The palette: the name of a colour in a caption, and its RGB value."""

SCENERY = {
    "day": (176, 224, 248),
    "night": (26, 32, 76),
    "grass": (124, 192, 84),
    "dark grass": (34, 92, 62),
    "sea": (44, 124, 196),
    "dark sea": (24, 66, 130),
    "foliage": (38, 134, 70),
    "wood": (122, 76, 44),
    "sun": (250, 200, 44),
    "moon": (246, 242, 214),
    "glass": (236, 248, 252),
    "light": (252, 222, 106),
    "foam": (196, 230, 246),
}
"""Colours that only the two kinds of scene use."""

SHAPES = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "diamond": "diamonds",
    "star": "stars",
    "heart": "hearts",
    "moon": "moons",
    "ring": "rings",
    "cross": "crosses",
    "flower": "flowers",
}
"""The name of each shape, and its plural."""

BULKY = ("circle", "square", "triangle", "diamond", "star", "heart", "flower")
"""Shapes with room for stripes, dots or an outline."""

HARD = ("star",)
"""Shapes that take long to learn: training sees each of them twice as often as another one."""

FINISHES = ("stripes", "dots", "outline")
RELATIONS = ("above", "below", "left of", "right of", "and")
NUMBERS = {2: "two", 3: "three", 4: "four"}
WALLS = ("red", "orange", "yellow", "turquoise", "purple", "pink", "white")
ROOFS = ("red", "orange", "green", "blue", "purple", "black")
TREES = ("tree", "pine", "apple tree")
HULLS = ("red", "orange", "yellow", "green", "purple", "pink", "white", "black")
SAILS = ("red", "orange", "yellow", "green", "purple", "pink", "white")
LIGHTS = ("sun", "moon")
FAMILIES = {
    "plain": 0.15,
    "finish": 0.25,
    "ground": 0.14,
    "pair": 0.20,
    "count": 0.12,
    "house": 0.09,
    "boat": 0.05,
}
"""How often each kind of caption is drawn."""

_RADIUS = {"small": 0.185, "": 0.27, "large": 0.36}
_LAYOUT = {
    2: (0.19, ((0.27, 0.5), (0.73, 0.5))),
    3: (0.175, ((0.28, 0.3), (0.72, 0.3), (0.5, 0.71))),
    4: (0.175, ((0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72))),
}


@dataclass(frozen=True)
class Figure:
    """One thing in a picture.

    Parameters
    ----------
    shape
        A key of :data:`SHAPES`, or "house" or "boat".
    colour
        Its colour; of a house the walls, of a boat the hull.
    size
        "small", "large" or "" (not said).
    finish
        "stripes", "dots", "outline" or "".
    second
        The colour of the finish; of a house the roof, of a boat the sail.
    """

    shape: str
    colour: str
    size: str = ""
    finish: str = ""
    second: str = ""


@dataclass(frozen=True)
class Spec:
    """What a caption says.

    Parameters
    ----------
    figures
        One figure, or two where `relation` says how they stand to each other.
    ground
        The colour of the background; of a scene the light over it ("sun" or "moon").
    count
        How many of the one figure there are.
    relation
        One of :data:`RELATIONS`; of a house where it stands to the tree.
    pattern
        "stripes" or "dots" on the background, or "".
    second
        The colour of that pattern.
    tree
        The kind of tree beside a house.
    """

    figures: tuple[Figure, ...]
    ground: str
    count: int = 1
    relation: str = ""
    pattern: str = ""
    second: str = ""
    tree: str = field(default="")

    @property
    def family(self) -> str:
        """Which of :data:`FAMILIES` this belongs to."""
        first = self.figures[0]
        if first.shape in ("house", "boat"):
            return first.shape
        if self.count > 1:
            return "count"
        if self.relation:
            return "pair"
        if self.pattern:
            return "ground"
        return "finish" if first.finish else "plain"

    @property
    def caption(self) -> str:
        """The caption in words."""
        first = self.figures[0]
        if first.shape == "house":
            return (
                f"{_a(first.colour)} house with {_a(first.second)} roof {self.relation} "
                f"{_a(self.tree)} under a {self.ground}"
            )
        if first.shape == "boat":
            return (
                f"{_a(first.colour)} boat with {_a(first.second)} sail on the sea "
                f"under a {self.ground}"
            )
        if self.count > 1:
            what = f"{NUMBERS[self.count]} {first.colour} {SHAPES[first.shape]}"
        else:
            what = _phrase(first)
        if self.relation:
            what += f" {self.relation} {_phrase(self.figures[1])}"
        where = f"{_a(self.ground)} background"
        if self.pattern:
            where += f" with {self.second} {self.pattern}"
        return f"{what} on {where}"


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _phrase(figure: Figure) -> str:
    words = _a(f"{figure.size} {figure.colour} {figure.shape}".strip())
    if figure.finish == "outline":
        return f"{words} with {_a(figure.second)} outline"
    return f"{words} with {figure.second} {figure.finish}" if figure.finish else words


_COLOUR = "|".join(COLOURS)
_FIGURE = (
    rf"(?:(small|large) )?({_COLOUR}) ({'|'.join(SHAPES)})"
    rf"(?: with (?:an? )?({_COLOUR}) (stripes|dots|outline))?"
)
_GROUND = rf"(?: on an? ({_COLOUR}) background(?: with ({_COLOUR}) (stripes|dots))?)?"
_RE_HOUSE = re.compile(
    rf"an? ({_COLOUR}) house with an? ({_COLOUR}) roof (left of|right of) "
    rf"an? ({'|'.join(TREES)}) under (?:a|the) (sun|moon)"
)
_RE_BOAT = re.compile(
    rf"an? ({_COLOUR}) boat with an? ({_COLOUR}) sail on the sea under (?:a|the) (sun|moon)"
)
_RE_COUNT = re.compile(
    rf"({'|'.join(NUMBERS.values())}) ({_COLOUR}) ({'|'.join(SHAPES.values())}){_GROUND}"
)
_RE_FIGURES = re.compile(rf"an? {_FIGURE}(?: ({'|'.join(RELATIONS)}) an? {_FIGURE})?{_GROUND}")
_SINGULAR = {plural: shape for shape, plural in SHAPES.items()}
_VALUE = {word: number for number, word in NUMBERS.items()}


def parse(caption: str) -> Spec:
    """Read a caption of the grammar.

    Parameters
    ----------
    caption
        The words; upper and lower case, commas and a full stop do not matter. A caption without a
        background means a white one.

    Returns
    -------
    Spec
        What it says.

    Raises
    ------
    ValueError
        If the caption is not in the grammar.
    """
    words = " ".join(re.sub(r"[,.]", " ", caption.lower()).split())
    if match := _RE_HOUSE.fullmatch(words):
        wall, roof, relation, tree, light = match.groups()
        house = Figure("house", wall, second=roof)
        return Spec((house,), light, relation=relation, tree=tree)
    if match := _RE_BOAT.fullmatch(words):
        hull, sail, light = match.groups()
        return Spec((Figure("boat", hull, second=sail),), light)
    if match := _RE_COUNT.fullmatch(words):
        number, colour, plural, ground, second, pattern = match.groups()
        return Spec(
            (Figure(_SINGULAR[plural], colour),),
            ground or "white",
            count=_VALUE[number],
            pattern=pattern or "",
            second=second or "",
        )
    if match := _RE_FIGURES.fullmatch(words):
        parts = match.groups()
        figures = [_figure(parts[:5])]
        if parts[5]:
            figures.append(_figure(parts[6:11]))
        return Spec(
            tuple(figures),
            parts[11] or "white",
            relation=parts[5] or "",
            pattern=parts[13] or "",
            second=parts[12] or "",
        )
    raise ValueError(f"not a caption of the demo grammar: {caption!r}")


def _figure(parts: tuple[str | None, ...]) -> Figure:
    size, colour, shape, second, finish = parts
    return Figure(shape or "", colour or "", size or "", finish or "", second or "")


def vocabulary() -> list[str]:
    """All words the grammar uses, in a fixed order."""
    words = ["a", "an", "and", "on", "with", "under", "the", "background"]
    words += ["house", "roof", "boat", "sail", "sea", "small", "large"]
    words += " ".join(RELATIONS).split()
    words += [*COLOURS, *SHAPES, *SHAPES.values(), *FINISHES, *NUMBERS.values(), *LIGHTS]
    words += " ".join(TREES).split()
    return list(dict.fromkeys(words))


def random_spec(
    rng: random.Random, family: str | None = None, emphasis: Sequence[str] = ()
) -> Spec:
    """Draw what a caption says.

    Parameters
    ----------
    rng
        The source of chance.
    family
        A key of :data:`FAMILIES`; chosen by its weight if not given.
    emphasis
        Shapes that are to come twice as often as the others.
    """
    family = family or rng.choices(list(FAMILIES), list(FAMILIES.values()))[0]
    if family == "house":
        wall = rng.choice(WALLS)
        roof = rng.choice([colour for colour in ROOFS if colour != wall])
        return Spec(
            (Figure("house", wall, second=roof),),
            rng.choice(LIGHTS),
            relation=rng.choice(("left of", "right of")),
            tree=rng.choice(TREES),
        )
    if family == "boat":
        boat = Figure("boat", rng.choice(HULLS), second=rng.choice(SAILS))
        return Spec((boat,), rng.choice(LIGHTS))
    ground, colour, second = rng.sample(list(COLOURS), 3)
    shapes = [*SHAPES, *emphasis]
    shape = rng.choice(shapes)
    if family == "plain":
        return Spec((Figure(shape, colour, rng.choice(("small", "", "large"))),), ground)
    if family == "finish":
        shape, finish = rng.choice([*BULKY, *emphasis]), rng.choice(FINISHES)
        return Spec((Figure(shape, colour, rng.choice(("", "large")), finish, second),), ground)
    if family == "ground":
        figure = Figure(shape, colour, rng.choice(("", "large")))
        return Spec((figure,), ground, pattern=rng.choice(FINISHES[:2]), second=second)
    if family == "count":
        return Spec((Figure(shape, colour),), ground, count=rng.choice(list(NUMBERS)))
    other = Figure(rng.choice(shapes), rng.choice((colour, second, second, second)))
    return Spec((Figure(shape, colour), other), ground, relation=rng.choice(RELATIONS))


def held_out(spec: Spec) -> bool:
    """Whether this combination is kept out of training (about one in ten is)."""
    return zlib.crc32(spec.caption.encode()) % 10 == 0


def random_caption(rng: random.Random, held: bool = False) -> tuple[Spec, str]:
    """Draw what a picture is to show, and a caption that says so.

    Parameters
    ----------
    rng
        The source of chance.
    held
        A held-out combination instead of one for training.
    """
    emphasis = () if held else HARD
    spec = random_spec(rng, emphasis=emphasis)
    while held_out(spec) != held:
        spec = random_spec(rng, emphasis=emphasis)
    caption = spec.caption
    # People often say no background: the model is to take that for a white one.
    if not held and caption.endswith(" on a white background") and rng.random() < 0.4:
        caption = caption.removesuffix(" on a white background")
    return spec, caption


def sample(rng: random.Random, held: bool = False) -> tuple[Image.Image, str]:
    """Draw a picture and its caption.

    Parameters
    ----------
    rng
        The source of chance; the same state gives the same picture.
    held
        Draw a held-out combination instead of one for training.

    Returns
    -------
    tuple
        The picture and its caption.
    """
    spec, caption = random_caption(rng, held)
    return draw(spec, rng), caption


def held_out_prompts(n: int, seed: int = 0, families: Sequence[str] = ()) -> list[str]:
    """Captions that training never saw.

    Parameters
    ----------
    n
        How many; all different.
    seed
        Which ones.
    families
        Only of these keys of :data:`FAMILIES`; of all, by their weights, if none are given.
    """
    rng = random.Random(f"held-out {seed}")
    prompts: dict[str, None] = {}
    while len(prompts) < n:
        spec = random_spec(rng, rng.choice(families) if families else None)
        if held_out(spec):
            prompts[spec.caption] = None
    return list(prompts)


# Drawing. All coordinates are in fractions of the picture, on a canvas that is reduced at the end.

Point = tuple[float, float]
_CANVAS = SIZE * _SUPERSAMPLE


class _Pen:
    """Draws into one supersampled image in fractional coordinates."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)

    def polygon(self, points: list[Point], fill: object) -> None:
        self._draw.polygon([(x * _CANVAS, y * _CANVAS) for x, y in points], fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: object) -> None:
        box = (x - radius, y - radius, x + radius, y + radius)
        self._draw.ellipse([value * _CANVAS for value in box], fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: object) -> None:
        self._draw.rectangle([value * _CANVAS for value in (left, top, right, bottom)], fill=fill)


def _spokes(x: float, y: float, radii: tuple[float, ...], n: int) -> list[Point]:
    angles = [2 * math.pi * i / n for i in range(n)]
    return [
        (x + radii[i % len(radii)] * math.sin(a), y - radii[i % len(radii)] * math.cos(a))
        for i, a in enumerate(angles)
    ]


def shape_mask(shape: str, x: float, y: float, r: float) -> Image.Image:
    """Draw the supersampled mask of a shape.

    Parameters
    ----------
    shape
        A key of :data:`SHAPES`.
    x, y
        Its centre, in fractions of the picture.
    r
        Its radius, in fractions of the picture.
    """
    if shape not in _OUTLINES:
        raise ValueError(f"unknown shape: {shape!r}")
    mask = Image.new("L", (_CANVAS, _CANVAS))
    _OUTLINES[shape](_Pen(mask), x, y, r)
    return mask


def _circle(pen: _Pen, x: float, y: float, r: float) -> None:
    pen.disc(x, y, r, 255)


def _square(pen: _Pen, x: float, y: float, r: float) -> None:
    pen.box(x - 0.86 * r, y - 0.86 * r, x + 0.86 * r, y + 0.86 * r, 255)


def _triangle(pen: _Pen, x: float, y: float, r: float) -> None:
    pen.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], 255)


def _diamond(pen: _Pen, x: float, y: float, r: float) -> None:
    pen.polygon([(x, y - r), (x + 0.78 * r, y), (x, y + r), (x - 0.78 * r, y)], 255)


def _star(pen: _Pen, x: float, y: float, r: float) -> None:
    pen.polygon(_spokes(x, y, (1.08 * r, 0.54 * r), 10), 255)


def _heart(pen: _Pen, x: float, y: float, r: float) -> None:
    points = []
    for i in range(120):
        t = 2 * math.pi * i / 120
        across = 16 * math.sin(t) ** 3
        up = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x + r * across / 16, y - r * (up + 2.5) / 16))
    pen.polygon(points, 255)


def _moon(pen: _Pen, x: float, y: float, r: float) -> None:
    pen.disc(x, y, r, 255)
    pen.disc(x + 0.5 * r, y - 0.18 * r, 0.82 * r, 0)


def _ring(pen: _Pen, x: float, y: float, r: float) -> None:
    pen.disc(x, y, r, 255)
    pen.disc(x, y, 0.52 * r, 0)


def _cross(pen: _Pen, x: float, y: float, r: float) -> None:
    pen.box(x - 0.3 * r, y - 0.92 * r, x + 0.3 * r, y + 0.92 * r, 255)
    pen.box(x - 0.92 * r, y - 0.3 * r, x + 0.92 * r, y + 0.3 * r, 255)


def _flower(pen: _Pen, x: float, y: float, r: float) -> None:
    for px, py in _spokes(x, y, (0.58 * r,), 6):
        pen.disc(px, py, 0.4 * r, 255)
    pen.disc(x, y, 0.5 * r, 255)


_OUTLINES: dict[str, Callable[[_Pen, float, float, float], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "ring": _ring,
    "cross": _cross,
    "flower": _flower,
}


def _stripes(pen: _Pen, x: float, y: float, period: float, slant: float, fill: object) -> None:
    """Stripes over the whole picture; one runs through (x, y)."""
    n = math.ceil(2 / period)
    for i in range(-n, n + 1):
        a, b = y + (i - 0.25) * period, y + (i + 0.25) * period
        left, right = -x * slant, (1 - x) * slant
        pen.polygon([(0, a + left), (1, a + right), (1, b + right), (0, b + left)], fill)


def _dots(pen: _Pen, x: float, y: float, step: float, radius: float, fill: object) -> None:
    """Staggered dots over the whole picture; one sits at (x, y)."""
    n = math.ceil(1 / step) + 1
    for row in range(-n, n + 1):
        for column in range(-n, n + 1):
            shift = 0.5 * (row % 2)
            pen.disc(x + (column + shift) * step, y + 0.87 * row * step, radius, fill)


def _put(image: Image.Image, figure: Figure, x: float, y: float, r: float) -> None:
    mask = shape_mask(figure.shape, x, y, r)
    colour = COLOURS[figure.colour]
    if not figure.finish:
        image.paste(colour, mask=mask)
        return
    second = COLOURS[figure.second]
    if figure.finish == "outline":
        image.paste(second, mask=mask)
        image.paste(colour, mask=_shrunk(figure.shape, x, y, r))
        return
    skin = Image.new("RGB", image.size, colour)
    if figure.finish == "stripes":
        _stripes(_Pen(skin), x, y, 0.1, 0.0, second)
    else:
        _dots(_Pen(skin), x, y, 0.15, 0.043, second)
    image.paste(skin, mask=mask)


def _shrunk(shape: str, x: float, y: float, r: float) -> Image.Image:
    """Draw the inside of an outlined shape."""
    # A scaled copy leaves an uneven outline on pointed shapes; their centre is moved and the scale
    # chosen so that the outline stays about as wide all around.
    scale, drop = {
        "triangle": (0.66, 0.06),
        "star": (0.7, 0.0),
        "heart": (0.76, -0.02),
        "diamond": (0.74, 0.0),
        "flower": (0.78, 0.0),
    }.get(shape, (0.82, 0.0))
    return shape_mask(shape, x, y + drop * r, r * scale)


def draw(spec: Spec, rng: random.Random) -> Image.Image:
    """Draw what a caption says.

    Parameters
    ----------
    spec
        What to draw.
    rng
        Chooses what the caption leaves open.

    Returns
    -------
    PIL.Image.Image
        The picture, RGB, :data:`SIZE` pixels wide and high.
    """
    family = spec.family
    if family in ("house", "boat"):
        image = Image.new("RGB", (_CANVAS, _CANVAS), SCENERY["day"])
        (_house if family == "house" else _boat)(image, spec, rng)
        return image.reduce(_SUPERSAMPLE)
    image = _ground(spec.ground, spec.pattern, spec.second).copy()
    if family == "pair":
        places, r = _pair_places(spec.relation), 0.195
    elif spec.count > 1:
        r, layout = _LAYOUT[spec.count]
        places = list(layout)
    else:
        first = spec.figures[0]
        r = _RADIUS[first.size]
        if not first.size and (first.finish or spec.pattern):
            r = 0.31
        places = [(0.5, 0.5)]
    jitter = 0.04 if len(places) == 1 else 0.02
    for i, (x, y) in enumerate(places):
        figure = spec.figures[i % len(spec.figures)]
        _put(
            image,
            figure,
            x + rng.uniform(-jitter, jitter),
            y + rng.uniform(-jitter, jitter),
            r * rng.uniform(0.95, 1.05),
        )
    return image.reduce(_SUPERSAMPLE)


@cache
def _ground(colour: str, pattern: str, second: str) -> Image.Image:
    image = Image.new("RGB", (_CANVAS, _CANVAS), COLOURS[colour])
    if pattern == "stripes":
        _stripes(_Pen(image), 0.5, 0.5, 0.1875, 1.0, COLOURS[second])
    elif pattern == "dots":
        _dots(_Pen(image), 0.5, 0.5, 0.1667, 0.046, COLOURS[second])
    return image


def _pair_places(relation: str) -> list[Point]:
    near, far = (0.265, 0.5), (0.735, 0.5)
    if relation in ("above", "below"):
        near, far = (0.5, 0.265), (0.5, 0.735)
    return [far, near] if relation in ("below", "right of") else [near, far]


def _sky(image: Image.Image, light: str, x: float, y: float) -> None:
    """Sky with a sun or a moon."""
    pen = _Pen(image)
    day = light == "sun"
    pen.box(0, 0, 1, 1, SCENERY["day" if day else "night"])
    if day:
        for (ax, ay), (bx, by) in zip(
            _spokes(x, y, (0.115,), 12), _spokes(x, y, (0.165,), 12), strict=True
        ):
            dx, dy = (by - ay) * 0.2, (bx - ax) * 0.2
            pen.polygon(
                [(ax - dx, ay + dy), (bx - dx, by + dy), (bx + dx, by - dy), (ax + dx, ay - dy)],
                SCENERY["sun"],
            )
        pen.disc(x, y, 0.095, SCENERY["sun"])
        return
    image.paste(SCENERY["moon"], mask=shape_mask("moon", x, y, 0.11))
    for sx, sy, r in ((0.1, 0.12, 0.02), (0.27, 0.06, 0.015), (0.72, 0.07, 0.015)):
        pen.polygon(_spokes(sx, sy, (r, 0.4 * r), 8), SCENERY["moon"])
    for sx, sy, r in ((0.9, 0.16, 0.022), (0.08, 0.34, 0.015), (0.93, 0.36, 0.015)):
        pen.polygon(_spokes(sx, sy, (r, 0.4 * r), 8), SCENERY["moon"])


def _house(image: Image.Image, spec: Spec, rng: random.Random) -> None:
    day = spec.ground == "sun"
    left = spec.relation == "left of"
    x = (0.32 if left else 0.68) + rng.uniform(-0.02, 0.02)
    tree_x = (0.78 if left else 0.22) + rng.uniform(-0.02, 0.02)
    _sky(image, spec.ground, 0.5 + rng.uniform(-0.04, 0.04), 0.2)
    pen = _Pen(image)
    pen.box(0, 0.8, 1, 1, SCENERY["grass" if day else "dark grass"])
    house = spec.figures[0]
    pen.box(x - 0.19, 0.55, x + 0.19, 0.87, COLOURS[house.colour])
    pen.polygon([(x - 0.25, 0.56), (x, 0.33), (x + 0.25, 0.56)], COLOURS[house.second])
    pen.box(x - 0.13, 0.68, x - 0.03, 0.87, SCENERY["wood"])
    pane, frame = SCENERY["glass" if day else "light"], SCENERY["wood"]
    pen.box(x + 0.025, 0.63, x + 0.145, 0.75, frame)
    for dx in (0.04, 0.09):
        for dy in (0.645, 0.695):
            pen.box(x + dx, dy, x + dx + 0.04, dy + 0.04, pane)
    _tree(pen, spec.tree, tree_x)


def _tree(pen: _Pen, kind: str, x: float) -> None:
    pen.box(x - 0.025, 0.66, x + 0.025, 0.88, SCENERY["wood"])
    green = SCENERY["foliage"]
    if kind == "pine":
        for top, bottom, half in ((0.36, 0.52, 0.09), (0.45, 0.63, 0.125), (0.55, 0.76, 0.155)):
            pen.polygon([(x, top), (x + half, bottom), (x - half, bottom)], green)
        return
    for dx, dy, r in ((0, 0.52, 0.115), (-0.075, 0.61, 0.095), (0.075, 0.61, 0.095)):
        pen.disc(x + dx, dy, r, green)
    if kind == "apple tree":
        for dx, dy in ((-0.09, 0.62), (0.0, 0.64), (0.09, 0.61), (-0.045, 0.53), (0.05, 0.52)):
            pen.disc(x + dx, dy, 0.021, COLOURS["red"])


def _boat(image: Image.Image, spec: Spec, rng: random.Random) -> None:
    day = spec.ground == "sun"
    x = 0.5 + rng.uniform(-0.05, 0.05)
    # The light stands clear of the sail, on either side.
    _sky(image, spec.ground, rng.choice((0.2, 0.8)) + rng.uniform(-0.02, 0.02), 0.23)
    pen = _Pen(image)
    pen.box(0, 0.68, 1, 1, SCENERY["sea" if day else "dark sea"])
    boat = spec.figures[0]
    pen.box(x - 0.012, 0.2, x + 0.012, 0.68, SCENERY["wood"])
    sail = COLOURS[boat.second]
    pen.polygon([(x + 0.025, 0.22), (x + 0.27, 0.58), (x + 0.025, 0.58)], sail)
    pen.polygon([(x - 0.025, 0.3), (x - 0.2, 0.58), (x - 0.025, 0.58)], sail)
    hull = [(x - 0.3, 0.63), (x + 0.3, 0.63), (x + 0.2, 0.78), (x - 0.2, 0.78)]
    pen.polygon(hull, COLOURS[boat.colour])
    foam = SCENERY["foam"]
    for row, y in enumerate((0.84, 0.92)):
        for i in range(-1, 5):
            wave_x = 0.13 + 0.24 * i + 0.12 * row
            pen.polygon(
                [(wave_x - 0.06, y), (wave_x, y - 0.018), (wave_x + 0.06, y), (wave_x, y + 0.006)],
                foam,
            )


def plain_ground(colour: str, pattern: str = "", second: str = "") -> Image.Image:
    """Draw a background without figures.

    Parameters
    ----------
    colour
        Its colour.
    pattern
        "stripes", "dots" or "".
    second
        The colour of the pattern.
    """
    return _ground(colour, pattern, second).reduce(_SUPERSAMPLE)
