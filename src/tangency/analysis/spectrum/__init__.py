"""The spectrum of a kernel: which patterns in the targets are learned, and when."""

from tangency.analysis.spectrum.density import SpectralDensity, spectral_density
from tangency.analysis.spectrum.eigenfunctions import Eigenfunctions, eigenfunctions
from tangency.analysis.spectrum.full import Spectrum, spectrum
from tangency.analysis.spectrum.harmonics import HarmonicSpectrum, gegenbauer, harmonic_spectrum
from tangency.analysis.spectrum.patterns import PatternLearning, fourier_patterns, pattern_learning
from tangency.analysis.spectrum.tail import PowerLawTail, power_law_tail
from tangency.analysis.spectrum.top import TopSpectrum, top_spectrum
from tangency.analysis.spectrum.torus import TorusSpectrum, torus_spectrum

__all__ = [
    "Eigenfunctions",
    "HarmonicSpectrum",
    "PatternLearning",
    "PowerLawTail",
    "SpectralDensity",
    "Spectrum",
    "TopSpectrum",
    "TorusSpectrum",
    "eigenfunctions",
    "fourier_patterns",
    "gegenbauer",
    "harmonic_spectrum",
    "pattern_learning",
    "power_law_tail",
    "spectral_density",
    "spectrum",
    "top_spectrum",
    "torus_spectrum",
]
