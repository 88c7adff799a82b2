"""Small versions to learn from, each to be read before the real one.

    engine.py       the autograd engine, for tensor.py and graph.py
"""
