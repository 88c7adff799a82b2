// Products by tensor cores: PTX's mma.sync, as kernels/cuda/mma.py calls it. Which lane holds which entry is taken from
// the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "for mma.m16n8k8".
#pragma once

namespace shim {
inline uint32_t registers[1024][6]; // what the lanes of a block give: four registers of A, two of B

// C (16, 8) += A (16, K) B (K, 8). a(row, k) and b(k, column) are read from the registers of the warp's lanes.
template <int K, class F, class G> void mma(float* c, const uint32_t* a, const uint32_t* b, F entry_a, G entry_b) {
    memcpy(registers[shim_state.current], a, 16);
    memcpy(registers[shim_state.current] + 4, b, 8);
    shim_warp_barrier(shim_active());
    const uint32_t(*warp)[6] = registers + (shim_state.current & ~31);
    for (int i = 0; i < 4; i++) {
        int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
        for (int k = 0; k < K; k++) c[i] += entry_a(warp, row, k) * entry_b(warp, k, column);
    }
    shim_warp_barrier(shim_active()); // before anyone gives the next ones
}

// Numbers of 16 bits: lane 4 (row % 8) + k % 8 / 2 has two of a row of A, in the half k % 2 of a register.
template <class F> void mma16816(float* c, const uint32_t* a, const uint32_t* b, F number) {
    mma<16>(
        c, a, b,
        [=](const uint32_t (*warp)[6], int row, int k) {
            return number(warp[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2] >> k % 2 * 16);
        },
        [=](const uint32_t (*warp)[6], int k, int column) {
            return number(warp[column * 4 + k % 8 / 2][4 + k / 8] >> k % 2 * 16);
        });
}
} // namespace shim

inline void mma16816_half(float* c, const uint32_t* a, const uint32_t* b) {
    shim::mma16816(c, a, b, [](uint32_t bits) { return (float)shim_bits<_Float16>((uint16_t)bits); });
}
inline void mma16816_bfloat16(float* c, const uint32_t* a, const uint32_t* b) {
    shim::mma16816(c, a, b, [](uint32_t bits) { return shim_bits<float>(bits << 16); });
}

// TF32: a tensor core does not see the last 13 bits of a float.
inline void mma1688_tf32(float* c, const uint32_t* a, const uint32_t* b) {
    auto number = [](uint32_t bits) { return shim_bits<float>(bits & ~0x1fffu); };
    shim::mma<8>(
        c, a, b,
        [=](const uint32_t (*warp)[6], int row, int k) {
            return number(warp[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2]);
        },
        [=](const uint32_t (*warp)[6], int k, int column) { return number(warp[column * 4 + k % 4][4 + k / 4]); });
}
inline uint32_t to_tf32(float x) { // to nearest; from the middle, away from 0
    return x != x ? 0x7fffffff : (shim_bits<uint32_t>(x) + 0x1000) & ~0x1fffu;
}
