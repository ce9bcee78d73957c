"""The training curve as a picture: loss and validation recall by epoch, and the epoch that was taken.

Written by hand as SVG: two polylines do not earn a plotting library in every worker's image.
"""

from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN = 720, 320, 48


def write_curve(path: Path, result: dict[str, Any]) -> Path:
    """`result` is the ranks' result.json."""
    judged, served = result["judged"], result["served"]
    losses = [(e["epoch"], e["loss"]) for e in judged["curve"]]
    looks = [(e["epoch"], e["validation_recall"]) for e in judged["curve"] if e["validation_recall"] is not None]
    served_losses = [(e["epoch"], e["loss"]) for e in served["curve"]]
    last = max(epoch for epoch, _ in [*losses, *served_losses])
    path.write_text(
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
                'font-size="12"><rect width="100%" height="100%" fill="white"/>',
                f'<line x1="{_x(judged["epochs"], last)}" x2="{_x(judged["epochs"], last)}" y1="{MARGIN}" '
                f'y2="{HEIGHT - MARGIN}" stroke="#999" stroke-dasharray="4"/>',
                *_line(
                    losses,
                    last,
                    "#1f77b4",
                    f"loss, judged fit (ends at {losses[-1][1]:.4f})",
                    16,
                    [*losses, *served_losses],
                ),
                *_line(
                    served_losses,
                    last,
                    "#9ecae1",
                    f"loss, served fit ({served_losses[-1][1]:.4f})",
                    32,
                    [*losses, *served_losses],
                ),
                *_line(looks, last, "#d62728", f"validation recall (best {max(r for _, r in looks):.4f})", 48, looks),
                f'<text x="{MARGIN}" y="{HEIGHT - 12}">epoch 1 to {last}; dashed: epoch {judged["epochs"]}, '
                "the best look, taken by the served fit</text></svg>",
            ]
        )
    )
    return path


def _x(epoch: int, last: int) -> float:
    return round(MARGIN + (WIDTH - 2 * MARGIN) * (epoch - 1) / max(1, last - 1), 1)


def _line(
    points: list[tuple[int, float]], last: int, colour: str, label: str, at: int, scale: list[tuple[int, float]]
) -> list[str]:
    """One curve over the range of all curves that share its scale, and its line in the legend."""
    low, high = min(value for _, value in scale), max(value for _, value in scale)
    drawn = " ".join(
        f"{_x(epoch, last)},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / max(high - low, 1e-12):.1f}"
        for epoch, value in points
    )
    return [
        f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<text x="{WIDTH - MARGIN}" y="{at}" text-anchor="end" fill="{colour}">{label}</text>',
    ]
