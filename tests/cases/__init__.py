"""The op table: every op of the project with its inputs and what it must equal."""

from . import attention, conv, elementwise, linear, loss, norm, pool, reduce, resize, shape

CASES = [
    *attention.CASES, *conv.CASES, *elementwise.CASES, *linear.CASES, *loss.CASES, *norm.CASES, *pool.CASES,
    *reduce.CASES, *resize.CASES, *shape.CASES,
]
