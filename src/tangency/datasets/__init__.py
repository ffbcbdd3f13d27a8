"""Data sets to study: those of scikit-learn, and files."""

from tangency.datasets.dataset import Dataset, Task
from tangency.datasets.load import BUNDLED, FILE_HELP, load
from tangency.datasets.preparation import prepare
from tangency.datasets.table import Table, TaskChoice

__all__ = [
    "BUNDLED",
    "FILE_HELP",
    "Dataset",
    "Table",
    "Task",
    "TaskChoice",
    "load",
    "prepare",
]
