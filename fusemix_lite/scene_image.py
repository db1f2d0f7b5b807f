"""Sounding Scenes, seen: a scene drawn as a 64 x 64 picture with Pillow."""

from functools import cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from .scenes import POSITIONS, SIZES, Scene

PIXELS = 64
_SCALE = 2  # drawn at twice the size and reduced: smooth edges for 0.6 ms an image
_FULL = PIXELS * _SCALE

PAINT = {
    "red": (214, 48, 49), "orange": (240, 140, 30), "yellow": (246, 214, 50), "green": (46, 150, 70),
    "blue": (50, 100, 220), "purple": (128, 60, 180), "pink": (244, 130, 180), "brown": (120, 75, 40),
}  # fmt: skip
_INK = (35, 35, 40)
_LIGHT = (245, 245, 240)

_SKY = {  # colour at the top, colour at the horizon, ground, height of the horizon
    "meadow": ((120, 180, 240), (200, 228, 250), (120, 190, 90), 0.62),
    "beach": ((100, 190, 230), (180, 225, 240), (236, 214, 160), 0.66),
    "night": ((26, 32, 78), (66, 70, 122), (52, 60, 84), 0.70),
    "snow": ((190, 205, 220), (225, 232, 240), (250, 250, 252), 0.60),
    "city": ((150, 150, 165), (190, 188, 190), (95, 95, 100), 0.72),
    "desert": ((250, 190, 120), (252, 220, 170), (206, 150, 90), 0.58),
}


@cache
def _backdrop(name: str) -> Image.Image:
    top, low, ground, horizon = _SKY[name]
    rows = np.empty((_FULL, 1, 3))
    edge = int(horizon * _FULL)
    ramp = np.linspace(0, 1, edge)[:, None]
    rows[:edge, 0] = (1 - ramp) * np.array(top) + ramp * np.array(low)
    rows[edge:, 0] = ground
    return Image.fromarray(np.repeat(rows, _FULL, axis=1).astype(np.uint8))


def _decorate(draw: ImageDraw.ImageDraw, name: str, rng: np.random.Generator) -> None:
    edge = int(_SKY[name][3] * _FULL)
    at = rng.integers(0, _FULL, size=24)
    if name == "meadow":
        for x in at[:14]:
            draw.line([x, edge + 14, x + 2, edge + 6], fill=(70, 140, 60), width=2)
    elif name == "beach":
        draw.rectangle([0, edge - 16, _FULL, edge], fill=(40, 130, 190))
        for x in at[:6]:
            draw.arc([x, edge - 12, x + 14, edge - 4], 180, 360, fill=_LIGHT, width=2)
    elif name == "night":
        for x, y in zip(at[:12], at[12:], strict=True):
            draw.point([int(x), int(y) * edge // _FULL, int(x) + 1, int(y) * edge // _FULL], fill=(255, 255, 210))
        x = int(at[0])
        draw.ellipse([x, 6, x + 16, 22], fill=(240, 236, 200))
    elif name == "snow":
        for x, y in zip(at[:12], at[12:], strict=True):
            draw.ellipse([int(x), int(y), int(x) + 3, int(y) + 3], fill=(255, 255, 255))
    elif name == "city":
        x = -int(at[0]) // 4
        while x < _FULL:
            wide, tall = int(rng.integers(14, 28)), int(rng.integers(20, 60))
            draw.rectangle([x, edge - tall, x + wide, edge], fill=(70, 74, 88))
            for y in range(edge - tall + 5, edge - 4, 10):
                draw.rectangle([x + 4, y, x + wide - 5, y + 3], fill=(225, 205, 120))
            x += wide + 3
    else:
        x = int(at[0])
        draw.ellipse([x, 8, x + 18, 26], fill=(255, 245, 200))
        for x in at[1:3]:
            draw.rectangle([x, edge - 14, x + 4, edge + 4], fill=(70, 120, 70))
            draw.rectangle([x - 5, edge - 10, x + 4, edge - 7], fill=(70, 120, 70))


def _bell(d, x, y, r, c):
    d.pieslice([x - r, y - r, x + r, y + r], 180, 360, fill=c, outline=_INK)
    d.polygon([(x - r, y), (x + r, y), (x + 1.2 * r, y + 0.6 * r), (x - 1.2 * r, y + 0.6 * r)], fill=c, outline=_INK)
    d.ellipse([x - 0.25 * r, y + 0.5 * r, x + 0.25 * r, y + r], fill=_INK)


def _drum(d, x, y, r, c):
    d.rectangle([x - r, y - 0.4 * r, x + r, y + 0.8 * r], fill=c, outline=_INK)
    for i in (-0.6, 0.0, 0.6):
        d.line([x + (i - 0.3) * r, y - 0.3 * r, x + (i + 0.3) * r, y + 0.8 * r], fill=_LIGHT, width=1)
    d.ellipse([x - r, y - 0.8 * r, x + r, y], fill=_LIGHT, outline=_INK)


def _flute(d, x, y, r, c):
    d.line([x - 1.2 * r, y + 0.7 * r, x + 1.2 * r, y - 0.7 * r], fill=_INK, width=max(4, int(0.55 * r)))
    d.line([x - 1.15 * r, y + 0.67 * r, x + 1.15 * r, y - 0.67 * r], fill=c, width=max(2, int(0.38 * r)))
    for i in (-0.5, 0.0, 0.5):
        d.ellipse(
            [x + (1.2 * i - 0.1) * r, y - (0.7 * i + 0.1) * r, x + (1.2 * i + 0.1) * r, y - (0.7 * i - 0.1) * r],
            fill=_INK,
        )


def _guitar(d, x, y, r, c):
    d.line([x, y, x + r, y - 1.2 * r], fill=(90, 55, 30), width=max(2, int(0.25 * r)))
    d.ellipse([x - 0.9 * r, y, x + 0.3 * r, y + 1.2 * r], fill=c, outline=_INK)
    d.ellipse([x - 0.45 * r, y - 0.4 * r, x + 0.45 * r, y + 0.5 * r], fill=c, outline=_INK)
    d.ellipse([x - 0.45 * r, y + 0.25 * r, x - 0.05 * r, y + 0.65 * r], fill=_INK)


def _bird(d, x, y, r, c):
    d.ellipse([x - r, y - 0.4 * r, x + 0.6 * r, y + 0.7 * r], fill=c, outline=_INK)
    d.ellipse([x + 0.1 * r, y - r, x + r, y - 0.1 * r], fill=c, outline=_INK)
    d.polygon(
        [(x + 0.95 * r, y - 0.7 * r), (x + 1.45 * r, y - 0.5 * r), (x + 0.95 * r, y - 0.35 * r)], fill=(250, 170, 40)
    )
    d.polygon([(x - 0.7 * r, y), (x + 0.1 * r, y), (x - 0.5 * r, y - 0.9 * r)], fill=_LIGHT, outline=_INK)
    d.ellipse([x + 0.5 * r, y - 0.75 * r, x + 0.7 * r, y - 0.55 * r], fill=_INK)


def _dog(d, x, y, r, c):
    for i in (-0.8, -0.4, 0.3, 0.6):
        d.rectangle([x + i * r, y + 0.2 * r, x + (i + 0.22) * r, y + r], fill=c, outline=_INK)
    d.rectangle([x - 0.9 * r, y - 0.3 * r, x + 0.8 * r, y + 0.45 * r], fill=c, outline=_INK)
    d.line([x - 0.9 * r, y - 0.2 * r, x - 1.3 * r, y - 0.9 * r], fill=c, width=max(2, int(0.2 * r)))
    d.ellipse([x + 0.4 * r, y - r, x + 1.3 * r, y - 0.1 * r], fill=c, outline=_INK)
    d.polygon([(x + 0.45 * r, y - 0.9 * r), (x + 0.75 * r, y - 0.9 * r), (x + 0.5 * r, y - 0.2 * r)], fill=_INK)
    d.ellipse([x + 1.1 * r, y - 0.65 * r, x + 1.4 * r, y - 0.4 * r], fill=_INK)


def _bee(d, x, y, r, c):
    d.ellipse([x - 0.5 * r, y - 1.1 * r, x + 0.1 * r, y], fill=(225, 235, 250), outline=_INK)
    d.ellipse([x, y - 1.1 * r, x + 0.6 * r, y], fill=(225, 235, 250), outline=_INK)
    d.ellipse([x - r, y - 0.5 * r, x + r, y + 0.6 * r], fill=c, outline=_INK)
    for i in (-0.4, 0.05, 0.5):
        d.line([x + i * r, y - 0.42 * r, x + i * r, y + 0.52 * r], fill=_INK, width=max(2, int(0.18 * r)))


def _clock(d, x, y, r, c):
    d.ellipse([x - r, y - r, x + r, y + r], fill=c, outline=_INK)
    d.ellipse([x - 0.72 * r, y - 0.72 * r, x + 0.72 * r, y + 0.72 * r], fill=_LIGHT, outline=_INK)
    d.line([x, y, x, y - 0.6 * r], fill=_INK, width=2)
    d.line([x, y, x + 0.45 * r, y + 0.2 * r], fill=_INK, width=2)


def _car(d, x, y, r, c):
    d.polygon(
        [(x - 0.7 * r, y), (x - 0.4 * r, y - 0.7 * r), (x + 0.4 * r, y - 0.7 * r), (x + 0.8 * r, y)],
        fill=(190, 225, 240),
        outline=_INK,
    )
    d.rectangle([x - 1.3 * r, y - 0.1 * r, x + 1.3 * r, y + 0.5 * r], fill=c, outline=_INK)
    for i in (-0.75, 0.75):
        d.ellipse([x + (i - 0.35) * r, y + 0.2 * r, x + (i + 0.35) * r, y + 0.9 * r], fill=_INK)
        d.ellipse([x + (i - 0.13) * r, y + 0.42 * r, x + (i + 0.13) * r, y + 0.68 * r], fill=_LIGHT)


def _siren(d, x, y, r, c):
    d.pieslice([x - 0.7 * r, y - 0.9 * r, x + 0.7 * r, y + 0.9 * r], 180, 360, fill=c, outline=_INK)
    d.rectangle([x - 0.9 * r, y, x + 0.9 * r, y + 0.5 * r], fill=(90, 90, 98), outline=_INK)
    for a in (200, 235, 305, 340):
        u, v = cos(a * pi / 180), sin(a * pi / 180)
        d.line([x + u * r, y + v * r, x + 1.5 * u * r, y + 1.5 * v * r], fill=c, width=2)


def _rain(d, x, y, r, c):
    d.ellipse([x - 1.1 * r, y - 0.5 * r, x, y + 0.2 * r], fill=c, outline=_INK)
    d.ellipse([x, y - 0.6 * r, x + 1.1 * r, y + 0.2 * r], fill=c, outline=_INK)
    d.ellipse([x - 0.6 * r, y - 0.9 * r, x + 0.6 * r, y + 0.2 * r], fill=c)
    for i in (-0.7, -0.2, 0.3, 0.8):
        d.line([x + i * r, y + 0.35 * r, x + (i - 0.2) * r, y + r], fill=(90, 150, 230), width=2)


def _whistle(d, x, y, r, c):
    d.rectangle([x - 0.2 * r, y - 0.6 * r, x + 1.3 * r, y], fill=c, outline=_INK)
    d.ellipse([x - 0.9 * r, y - 0.6 * r, x + 0.6 * r, y + 0.9 * r], fill=c, outline=_INK)
    d.ellipse([x - 0.4 * r, y - 0.1 * r, x + 0.1 * r, y + 0.4 * r], fill=_INK)


ICONS = {
    "bell": _bell, "drum": _drum, "flute": _flute, "guitar": _guitar, "bird": _bird, "dog": _dog, "bee": _bee,
    "clock": _clock, "car": _car, "siren": _siren, "rain": _rain, "whistle": _whistle,
}  # fmt: skip
_FLIES = {"bird", "bee", "rain"}


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw a scene: an RGB image of 64 x 64 pixels. ``rng`` sets the jitter that no factor names."""
    image = _backdrop(scene.background).copy()
    pen = ImageDraw.Draw(image)
    _decorate(pen, scene.background, rng)
    for thing in scene.things:
        radius = (7.0, 10.0, 14.5)[SIZES.index(thing.size)] * (1 + 0.12 * thing.size_jitter)
        centre = (0.2, 0.5, 0.8)[POSITIONS.index(thing.position)] * _FULL + 0.05 * _FULL * thing.x_jitter
        paint = tuple(int(v) for v in np.clip(np.array(PAINT[thing.colour]) + rng.normal(0, 8, 3), 0, 255))
        base = (0.30 if thing.kind in _FLIES else 0.62) * _FULL
        for i in range(thing.count):  # several of a kind stand one above the other, slightly scattered
            dy = (i - (thing.count - 1) / 2) * 2.3 * radius
            dx, jitter = rng.normal(0, 2.0, 2)
            y = np.clip(base + dy + jitter, radius + 2, _FULL - radius - 2)
            ICONS[thing.kind](pen, centre + dx, float(y), radius, paint)
    pixels = np.asarray(image.reduce(_SCALE), dtype=np.float32)
    pixels = pixels * rng.uniform(0.92, 1.08) + rng.normal(0, 3, pixels.shape)  # exposure and grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
