"""Python imports this when it starts, if tests/fakegpu/run has put it on the path: `import cupy` finds the stand-in."""

from fakegpu import hook

hook.install()
