"""Throughput over size with the machine's limit drawn in, as one SVG without any dependency.

Text and axes take the colour of the page they stand on, and the marks keep their contrast in light and dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import ceil, floor, log2, log10
from typing import Any

WIDTH, HEIGHT = 250, 170  # of one panel, in px
LEFT, TOP, RIGHT, BOTTOM = 40, 24, 10, 30
COLUMNS = 3
STYLE = """
svg.norms { color: #1b1f24; background: transparent; font: 11px system-ui, sans-serif; }
.norms text { fill: currentColor; } .norms .axis, .norms .grid { stroke: currentColor; fill: none; }
.norms .grid { opacity: .15; } .norms .limit { stroke: currentColor; fill: none; stroke-dasharray: 4 3; opacity: .6; }
.norms .old { stroke: #8250df; fill: #8250df; } .norms .new { stroke: #bc4c00; fill: #bc4c00; }
.norms .line { fill: none; stroke-width: 1.5; } .norms .open { fill: none; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  svg.norms { color: #e6edf3; } .norms .old { stroke: #bc8cff; fill: #bc8cff; }
  .norms .new { stroke: #ffa657; fill: #ffa657; } .norms .line, .norms .open { fill: none; }
}
"""
Point = tuple[float, float]


def throughput(result: dict[str, Any]) -> str:
    """The drawing of a comparison (`BenchResult.to_json()`): a panel for each norm and pass.

    Across: bytes that the kernel must move. Up: bytes moved a second. Both logarithmic. Filled marks are float32,
    open ones other dtypes; the dashed line is the copy measured in the same processes.
    """
    rows = [row for row in result["kernels"] if row["new_microseconds"] and row["layout"] == "contiguous"]
    panels = sorted({(row["norm"], row["pass"]) for row in rows})
    copies = [point for side in ("old", "new") for point in result["limits"].get(side, {}).get("copy", [])]
    points = [(row["bytes"], row[f"{side}_gigabytes_per_second"]) for row in rows for side in ("old", "new")] + copies
    if not points:
        return _svg(300, 40, [_text(10, 24, "nothing was measured")])
    scale = Scale(points)
    body = [*_legend(result)]
    for number, (norm, direction) in enumerate(panels):
        here = [row for row in rows if (row["norm"], row["pass"]) == (norm, direction)]
        x, y = number % COLUMNS * WIDTH, 40 + number // COLUMNS * HEIGHT
        body += [f'<g transform="translate({x},{y})">', *_panel(f"{norm} {direction}", here, result, scale), "</g>"]
    return _svg(COLUMNS * WIDTH, 40 + ceil(len(panels) / COLUMNS) * HEIGHT, body)


class Scale:
    """Maps bytes and GB/s to a panel's pixels, on logarithmic axes that are the same for every panel."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.x0, self.x1 = (_outward(log2(x) for x, _ in points)) if points else (0, 1)
        self.y0, self.y1 = (_outward(log10(y) for _, y in points)) if points else (0, 1)

    def __call__(self, point: Point) -> Point:
        across = (log2(point[0]) - self.x0) / (self.x1 - self.x0)
        up = (log10(point[1]) - self.y0) / (self.y1 - self.y0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _outward(values: Iterable[float]) -> tuple[int, int]:
    found = list(values)
    low = floor(min(found))
    return low, max(ceil(max(found)), low + 1)


def _panel(title: str, rows: list[dict[str, Any]], result: dict[str, Any], scale: Scale) -> list[str]:
    drawn = [_text(LEFT, 14, title, weight="600"), *_axes(scale)]
    for side in ("old", "new"):
        drawn.append(_line(result["limits"].get(side, {}).get("copy", []), scale, "limit"))
    for dtype in sorted({row["dtype"] for row in rows}):
        for side in ("old", "new"):
            line = sorted((row["bytes"], row[f"{side}_gigabytes_per_second"]) for row in rows if row["dtype"] == dtype)
            drawn.append(_line(line, scale, f"{side} line"))
            shape = side if dtype == "float32" else f"{side} open"
            drawn += [_mark(scale(point), shape, f"{side} {dtype}: {point[1]:.1f} GB/s") for point in line]
    return drawn


def _axes(scale: Scale) -> list[str]:
    drawn = []
    for exponent in range(scale.x0, scale.x1 + 1, max(1, (scale.x1 - scale.x0) // 4)):
        x, y = scale((2.0**exponent, 10.0**scale.y0))
        drawn += [_text(x, y + 13, size(2**exponent), anchor="middle")]
    for exponent in range(scale.y0, scale.y1 + 1):
        x, y = scale((2.0**scale.x0, 10.0**exponent))
        drawn += [
            f'<path class="grid" d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}"/>',
            _text(x - 4, y + 4, f"{10.0**exponent:g}", anchor="end"),
        ]
    return [*drawn, f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>']


def size(count: int) -> str:
    """`64 K`, `2 M`: bytes in powers of 1024."""
    for unit in ("", "K", "M", "G"):
        if count < 1024:
            return f"{count} {unit}".strip()
        count //= 1024
    return f"{count} T"


def _legend(result: dict[str, Any]) -> list[str]:
    return [
        _text(8, 14, "GB/s over bytes moved; dashed: copy, the limit; filled: float32, open: other dtypes"),
        _mark((14, 28), "old", "old"), _text(22, 32, f"old: torch {result['old'].get('torch', '?')}"),
        _mark((214, 28), "new", "new"), _text(222, 32, f"new: torch {result['new'].get('torch', '?')}"),
    ]  # fmt: skip


def _line(points: Sequence[Sequence[float]], scale: Scale, kind: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (scale((p[0], p[1])) for p in points))
    return f'<polyline class="{kind}" points="{path}"/>'


def _mark(at: Point, kind: str, title: str) -> str:
    return f'<circle class="{kind}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="3"><title>{escape(title)}</title></circle>'


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "400") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'


def _svg(width: int, height: int, body: Iterable[str]) -> str:
    opening = f'<svg class="norms" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    heading = "<title>Norm kernels: throughput over size</title>"
    return "\n".join([opening, heading, f"<style>{STYLE}</style>", *body, "</svg>\n"])
