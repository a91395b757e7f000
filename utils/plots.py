"""YOLOv5's import path; the code is in `utils.draw`."""

from utils.draw.boxes import Annotator, colors, save_one_box
from utils.draw.plots import plot_evolve, plot_labels, plot_results

__all__ = ["Annotator", "colors", "plot_evolve", "plot_labels", "plot_results", "save_one_box"]
