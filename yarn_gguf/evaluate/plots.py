"""Pictures of what was measured, in colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def passkey_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """A heat map for each scaling: the share of keys that were found, by length and depth. rows: Cells."""
    from matplotlib.figure import Figure  # slow to import; without pyplot there is no display to need

    scalings, lengths, depths = (
        list(dict.fromkeys(row[name] for row in rows)) for name in ("scaling", "length", "depth")
    )
    shares = {(row["scaling"], row["length"], row["depth"]): row["found"] / row["trials"] for row in rows}
    figure = Figure(figsize=(1.5 + 3.2 * len(scalings), 1.5 + 0.4 * len(depths)), layout="constrained")
    panels = figure.subplots(1, len(scalings), squeeze=False, sharey=True)[0]
    for axes, scaling in zip(panels, scalings, strict=True):
        grid = np.array([[shares[scaling, length, depth] for length in lengths] for depth in depths])
        axes.imshow(grid, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for y, x in np.ndindex(grid.shape):  # the number too: for print in black and white
            colour = "black" if grid[y, x] > 0.5 else "white"
            axes.text(x, y, f"{grid[y, x]:.0%}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_title(scaling)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45)
        axes.set_xlabel("tokens")
    panels[0].set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    panels[0].set_ylabel("depth of the key")
    figure.suptitle("pass keys found")
    return figure
