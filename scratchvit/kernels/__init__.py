"""Fast implementations of a few expressions that are too slow on the CPU in plain NumPy.

Each file shows the plain expression first. A test checks that the fast form gives the same result.
"""
