"""Fast implementations of what the ops define: how fast, where ops/ says what.

Each file begins with the plain expression, what is slow about it, and the idea of the fast form. SCRATCHVIT_PLAIN=1
uses the plain forms instead (see `plain`); tests/kernels/test_plain.py holds both equal.
"""
