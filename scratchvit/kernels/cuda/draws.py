"""Entries of a random mask where a kernel needs them: what `random.Draw` computes, position by position.

    plain       hash(position) < threshold, with two keys: see scratchvit/random.py
    idea        the mask is a function of the position, so a kernel needs no memory for it, and has the same one in
                backward. It is the same on every device, bit for bit

A kernel counts the entries of its own mask. If that is a part of a larger one, `first` is where it begins. Keys and
`first` are arguments of the kernel or, if a captured step is replayed with other ones, an array on the device.
"""

from __future__ import annotations

from typing import Any

from scratchvit.random import Draw

TEXT = r"""
// --- draws.py ---

typedef unsigned int uint32;

struct Draw {
    uint32 first_key, second_key, first; // first: its lower half; second_key: that of the upper half
    size threshold;
    A factor;
};

#define BEYOND 0x7FEB352Du // added to the second key for every 2^32 positions

// What is the same for all entries of a draw. keys: first_key, second_key and the halves of first, if not null.
__device__ inline Draw draw_of(const uint32* keys, size first_key, size second_key, size first, size threshold,
                               double factor) {
    if (keys) {
        first_key = keys[0];
        second_key = keys[1];
        first = keys[2] | (size)keys[3] << 32;
    }
    second_key += (first >> 32) * BEYOND;
    return {(uint32)first_key, (uint32)second_key, (uint32)first, threshold, (A)factor};
}

// "lowbias32", C. Wellons 2018
__device__ inline uint32 mix(uint32 x) {
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    return x ^ x >> 16;
}

// What dropout multiplies the entry at a position by: factor where it is kept, else 0. There are fewer than 2^32.
__device__ inline A keep(const Draw& draw, size position) {
    uint32 place = draw.first + (uint32)position;
    uint32 second_key = draw.second_key + (place < draw.first ? BEYOND : 0);
    return mix(mix(place ^ draw.first_key) + second_key) < draw.threshold ? draw.factor : (A)0;
}
"""


def arguments(draw: Draw | None) -> tuple[Any, ...]:
    """The arguments of `draw_of`: keys, first_key, second_key, first, threshold, factor."""
    if draw is None:
        return None, 0, 0, 0, 0, 0.0
    keys = (None, *draw.keys, draw.first) if isinstance(draw.keys, tuple) else (draw.keys, 0, 0, 0)
    return *keys, draw.threshold, 1 / draw.probability
