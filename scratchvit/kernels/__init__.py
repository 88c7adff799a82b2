"""The few places where the plain expression was too slow on the CPU: the same mathematics over rows that stay in cache.

Each file shows the plain expression first; the fast form must equal it, and a test holds the two together.
"""
