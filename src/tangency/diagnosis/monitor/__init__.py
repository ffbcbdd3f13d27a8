"""A network watched while it trains: its kernel, outputs and curvature on a few examples."""

from tangency.diagnosis.monitor.course import Course
from tangency.diagnosis.monitor.monitor import Monitor, monitor_checkpoints

__all__ = ["Course", "Monitor", "monitor_checkpoints"]
