"""Drawings that look a little like chest X-rays, for demonstrations without patient data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 512  # pixels a side
AIR, SOFT_TISSUE, LUNG, BONE, OPACITY = 8, 165, 55, 200, 150  # grey values, 0..255


def draw_phantom(seed: int, *, opacity: bool) -> Image.Image:
    """A torso with lungs, heart, spine and ribs (mode L, 512 x 512), and optionally an opacity in a lung."""
    random = np.random.default_rng(seed)
    image = Image.new("L", (SIZE, SIZE), AIR)
    draw = ImageDraw.Draw(image)
    width, shift = random.uniform(0.92, 1.08), random.uniform(-8, 8)

    def box(x: float, y: float, half_width: float, half_height: float) -> tuple[float, float, float, float]:
        middle = SIZE / 2 + shift + x * width
        return (middle - half_width * width, y - half_height, middle + half_width * width, y + half_height)

    draw.ellipse(box(0, 330, 235, 330), fill=SOFT_TISSUE)
    draw.rectangle(box(0, 40, 55, 60), fill=SOFT_TISSUE)  # neck
    for side in (-1, 1):
        draw.ellipse(box(side * 105, 260, 78, 170), fill=LUNG)
    draw.rectangle(box(0, 300, 16, 300), fill=BONE)  # spine
    for y in range(110, 420, 38):
        for side in (-1, 1):
            start, end = (180, 300) if side < 0 else (240, 360)
            draw.arc(box(side * 100, y + 60, 95, 60), start, end, fill=105, width=9)  # a rib over the lung
    draw.ellipse(box(25, 345, 82, 78), fill=SOFT_TISSUE + 10)  # heart
    if opacity:
        side = int(random.choice((-1, 1)))
        place, size = (side * random.uniform(85, 125), random.uniform(180, 330)), random.uniform(30, 48, 2)
        draw.ellipse(box(*place, *size), fill=OPACITY)
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(5)), dtype=np.float64)
    noisy = blurred + random.normal(0, 4, blurred.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_phantoms(folder: Path, count: int = 8) -> None:
    """Draw `count` phantoms as PNG files in a folder, every second one with an opacity."""
    for number in range(count):
        name = f"phantom-{number:02d}-{'opacity' if number % 2 else 'clear'}.png"
        draw_phantom(number, opacity=bool(number % 2)).save(folder / name)
