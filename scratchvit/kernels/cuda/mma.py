"""Small matrix products by tensor cores: 16 × 8 sums of a warp, from numbers of 16 bits or in TF32.

    plain       C += A B, with A (16, STEP), B (STEP, 8) and C (16, 8); STEP is 16 for numbers of 16 bits, 8 in TF32
    problem     a thread that multiplies and adds makes 2 operations at a time. The tensor cores make 4,096 in one
                instruction, `mma.sync`, but the 32 lanes of a warp must hold the matrices between them, each lane the
                entries that NVIDIA's manual says (PTX ISA, "Matrix Fragments for mma.m16n8k16" and "mma.m16n8k8")
    idea        types for what a lane holds of A, B and C, and functions that fill them from memory. With these a
                kernel is written as if matrices were numbers. What is added up, is added up in float32
    who         lane 4 r + c holds, of all three matrices, what is in rows or columns r and r + 8, and in pairs c and
                c + 4 of neighbours:

        A, 16 bits                       B, 16 bits           C
            2c 2c+1     2c+8 2c+9               r                     2c 2c+1
        r   [ A0  ]  …  [  A2   ]        2c    ┌  ┐             r    [C0  C1 ]
                                         2c+1  │B0│
        r+8 [ A1  ]  …  [  A3   ]              └  ┘             r+8  [C2  C3 ]
                                         2c+8  ┌  ┐
        a register has two numbers       2c+9  │B1│             a register has one
                                               └  ┘

In TF32 a register has one number of A or B, and STEP is 8. The manual gives a lane columns c and c + 4 of A and rows c
and c + 4 of B. But a product does not change if the columns of A and the rows of B are numbered anew, both alike. So a
lane takes columns 2c and 2c + 1, as with 16 bits: A0 is (r, 2c), A2 is (r, 2c + 1), B0 is (2c, r), B1 is (2c + 1, r).

Then a C is an A of another product, without an exchange between lanes (`left_of`): that of one C in TF32, of two C that
stand beside each other with 16 bits. This is what flash.py is built on.

tests/fakegpu has the three instructions as functions, by the same manual.
"""

from __future__ import annotations

TEXT = r"""
// --- mma.py ---

#define STEP (sizeof(T) == 2 ? 16 : 8)

struct Left { uint32 at[4]; };  // a lane's part of A (16, STEP)
struct Right { uint32 at[2]; }; // of B (STEP, 8)
struct Sums { float at[4]; };   // of C (16, 8)

__device__ inline int lane_row() { return threadIdx.x % 32 / 4; }
__device__ inline int lane_column() { return threadIdx.x % 4 * 2; }

// Row and column of C's entry at[i].
__device__ inline int row_of(int i) { return lane_row() + i / 2 * 8; }
__device__ inline int column_of(int i) { return lane_column() + i % 2; }

#ifndef FAKEGPU // which has functions of these names
#define MMA(name, of_types)                                                                                            \
    __device__ inline void name(float* c, const uint32* a, const uint32* b) {                                          \
        asm volatile("mma.sync.aligned." of_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"   \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
    }
MMA(mma16816_half, "m16n8k16.row.col.f32.f16.f16.f32")
MMA(mma16816_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MMA(mma1688_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")

// x rounded to TF32, as a register.
__device__ inline uint32 to_tf32(float x) {
    uint32 rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
    return rounded;
}
#endif

// By the type that a null pointer has: the types of 16 bits are defined in modules of their arrays only.
struct __half;
struct __nv_bfloat16;
__device__ inline void mma(Sums& c, const Left& a, const Right& b, float*) { mma1688_tf32(c.at, a.at, b.at); }
__device__ inline void mma(Sums& c, const Left& a, const Right& b, __half*) { mma16816_half(c.at, a.at, b.at); }
__device__ inline void mma(Sums& c, const Left& a, const Right& b, __nv_bfloat16*) {
    mma16816_bfloat16(c.at, a.at, b.at);
}

// C += A B. All lanes of a warp call it together.
__device__ inline void add_product(Sums& c, const Left& a, const Right& b) { mma(c, a, b, (T*)0); }

// Two numbers as T in one register, or one of them.
__device__ inline uint32 pair(T x, T y) {
    __align__(4) T both[2] = {x, y};
    return *(const uint32*)both;
}
__device__ inline uint32 word(const T* x) { return *(const uint32*)x; }

// This lane's part of STEP numbers in a row; x is aligned to 8 bytes.
__device__ inline Right part_of(const T* x) {
    x += lane_column();
    if (sizeof(T) == 2) return {word(x), word(x + 8)};
    uint2 both = *(const uint2*)x;
    return {both.x, both.y};
}

// A, whose rows are `pitch` numbers apart.
__device__ inline Left left(const T* x, int pitch) {
    Right upper = part_of(x + lane_row() * pitch), lower = part_of(x + (lane_row() + 8) * pitch);
    return {upper.at[0], lower.at[0], upper.at[1], lower.at[1]};
}

// B, of which x is the transposed (8, STEP).
__device__ inline Right right_transposed(const T* x, int pitch) { return part_of(x + lane_row() * pitch); }

// B, of which x is the first of STEP rows.
__device__ inline Right right(const T* x, int pitch) {
    x += lane_column() * pitch + lane_row();
    if (sizeof(T) == 2) return {pair(x[0], x[pitch]), pair(x[8 * pitch], x[9 * pitch])};
    return {word(x), word(x + pitch)};
}

// A, of C (16, STEP): one in TF32, two beside each other with 16 bits.
__device__ inline Left left_of(const Sums* c) {
    if (sizeof(T) == 2)
        return {pair(c[0].at[0], c[0].at[1]), pair(c[0].at[2], c[0].at[3]), pair(c[1].at[0], c[1].at[1]),
                pair(c[1].at[2], c[1].at[3])};
    return {to_tf32(c->at[0]), to_tf32(c->at[2]), to_tf32(c->at[1]), to_tf32(c->at[3])};
}
"""
