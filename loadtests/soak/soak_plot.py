"""The soak test's picture: what every process held over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from watching import Sample

__all__ = ["draw"]

_FIGURES: Final = (("rss", "RSS, MiB"), ("fds", "file descriptors"), ("threads", "threads"))


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Write a PNG with a panel per figure and a line per process."""
    figure, panels = plt.subplots(1, len(_FIGURES), figsize=(13, 4), layout="constrained")
    for axes, (name, title) in zip(panels, _FIGURES, strict=True):
        for process in dict.fromkeys(sample.process for sample in samples):
            own = [sample for sample in samples if sample.process == process]
            axes.plot(
                [s.seconds / 60 for s in own], [getattr(s, name) for s in own], label=process, linewidth=1
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("minutes")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)
