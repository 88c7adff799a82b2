"""Vision Transformers from scratch on NumPy and CuPy, with a hand-written autograd engine."""

__version__ = "0.1.0"
