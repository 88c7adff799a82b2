"""Faster forms of a few expressions that are too slow on the CPU in plain NumPy.

Each file shows the plain expression first; the fast form must equal it, and a test compares the two.
"""
