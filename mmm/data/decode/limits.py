"""How large a picture may be: read from its header, before any pixel is."""

from __future__ import annotations

from mmm.data.errors import Unreadable

# a PNG of 100 KB can unfold to 1.6 GB (measured, 12 s in Pillow)
MAX_PIXELS = 50_000_000


def refuse_bomb(height: int, width: int) -> None:
    """Raises Unreadable for a picture of more pixels than are decoded."""
    if height * width > MAX_PIXELS:
        raise Unreadable(f"{height} x {width} pixels, more than the {MAX_PIXELS:,} that are decoded")
