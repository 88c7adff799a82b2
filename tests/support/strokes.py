"""Digits as strokes, drawn as people draw them: lists of points [x, y], 0 … 1 on the canvas, for each digit."""

import numpy as np


def arc(x, y, width, height, start, end, points=24):
    """Points on an ellipse around (x, y), from one angle in degrees to another; 0 is to the right, 90 down."""
    angles = np.radians(np.linspace(start, end, points))
    return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1)


def line(*points):
    return np.array(points, float)


DIGITS = {
    0: [arc(0.5, 0.5, 0.28, 0.42, -90, 275)],
    1: [line((0.35, 0.3), (0.52, 0.1), (0.52, 0.9))],
    2: [np.concatenate([arc(0.5, 0.32, 0.25, 0.22, -170, 30), line((0.25, 0.88), (0.78, 0.88))])],
    3: [np.concatenate([arc(0.48, 0.3, 0.24, 0.2, -150, 80), arc(0.48, 0.7, 0.27, 0.22, -80, 150)])],
    4: [line((0.6, 0.1), (0.2, 0.62), (0.82, 0.62)), line((0.62, 0.35), (0.62, 0.9))],
    5: [line((0.75, 0.1), (0.32, 0.1), (0.28, 0.45)),
        np.concatenate([line((0.28, 0.45)), arc(0.48, 0.65, 0.26, 0.24, -120, 150)])],
    6: [np.concatenate([line((0.66, 0.1), (0.45, 0.28), (0.3, 0.55)), arc(0.5, 0.68, 0.22, 0.21, 180, -190)])],
    7: [line((0.22, 0.12), (0.78, 0.12), (0.42, 0.9)), line((0.35, 0.5), (0.75, 0.5))],
    8: [np.concatenate([arc(0.5, 0.3, 0.2, 0.19, 90, -270), arc(0.5, 0.7, 0.25, 0.21, -90, 270)])],
    9: [np.concatenate([arc(0.5, 0.32, 0.23, 0.21, 0, -360), line((0.73, 0.32), (0.7, 0.6), (0.62, 0.9))])],
}


def moved(strokes, scale=1.0, slant=0.0, left=0.0, top=0.0):
    """Strokes made smaller or larger around (left, top), and slanted to the right."""
    return [np.stack([left + scale * (x - slant * (y - 0.5)), top + scale * y], axis=1) for x, y in
            (stroke.T for stroke in strokes)]
