"""The spectrum of a kernel: which patterns in the targets are learned, and when."""

from tangency.analysis.spectrum.full import Spectrum, spectrum
from tangency.analysis.spectrum.tail import PowerLawTail, power_law_tail

__all__ = ["PowerLawTail", "Spectrum", "power_law_tail", "spectrum"]
