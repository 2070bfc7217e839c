// Kernel text: eight matrix registers of 16 rows x 16 words, AMX's tiles.
//
// Sums are registers 0 to 3, left operands 4 and 5, right ones 6 and 7, as configure() shapes them; with all 16 rows and words any is any. Elsewhere than at the
// level amx_bf16 plain loops emulate them, which proves the kernel texts. The instruction takes denormals for zeros; the emulation keeps
// them. Written as assembler, since GCC's own functions want the registers' numbers as literals.
//   Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and TDPBF16PS in volume 2.
#pragma once

#include "vec.h"

namespace gan_fast {
namespace GF_LEVEL {

constexpr int kRegisterRows = 16, kRegisterWords = 16;

#ifdef GF_AMX

struct alignas(64) RegisterShapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Left operands of `rows` rows and `depth` words, right ones of `depth` rows.
static inline void configure(int rows, int depth) {
  RegisterShapes shapes{};
  shapes.palette = 1;
  for (int r = 0; r < 8; ++r) {
    shapes.rows[r] = static_cast<uint8_t>(r < 6 ? rows : depth);
    shapes.row_bytes[r] = static_cast<uint16_t>(r == 4 || r == 5 ? 4 * depth : 4 * kRegisterWords);
  }
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}

// Back to the state in which a change of threads has no registers to save.
static inline void release() { asm volatile("tilerelease"); }

template <int R>
GF_INLINE void zero_register() {
  asm volatile("tilezero %%tmm%c0" : : "i"(R));
}

// Rows are `stride` bytes apart.
template <int R>
GF_INLINE void load_register(const void* p, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(R), "r"(p), "r"(stride) : "memory");
}

template <int R>
GF_INLINE void store_register(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(R), "r"(p), "r"(stride) : "memory");
}

// sums[row][column] += both products of left[row][word] and right[word][column], for all words.
template <int SUMS, int LEFT, int RIGHT>
GF_INLINE void multiply_registers() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(LEFT), "i"(RIGHT));
}

#else

struct Registers {
  uint32_t word[8][kRegisterRows][kRegisterWords];
  int rows[8], words[8];
};
static thread_local Registers registers;

static inline void configure(int rows, int depth) {
  for (int r = 0; r < 8; ++r) {
    registers.rows[r] = r < 6 ? rows : depth;
    registers.words[r] = r == 4 || r == 5 ? depth : kRegisterWords;
  }
}

static inline void release() {}

template <int R>
GF_INLINE void zero_register() {
  __builtin_memset(registers.word[R], 0, sizeof(registers.word[R]));
}

template <int R>
GF_INLINE void load_register(const void* p, int64_t stride) {
  for (int i = 0; i < registers.rows[R]; ++i) {
    __builtin_memcpy(registers.word[R][i], static_cast<const char*>(p) + i * stride, static_cast<size_t>(registers.words[R]) * 4);
  }
}

template <int R>
GF_INLINE void store_register(void* p, int64_t stride) {
  for (int i = 0; i < registers.rows[R]; ++i) {
    __builtin_memcpy(static_cast<char*>(p) + i * stride, registers.word[R][i], static_cast<size_t>(registers.words[R]) * 4);
  }
}

template <int SUMS, int LEFT, int RIGHT>
GF_INLINE void multiply_registers() {
  constexpr int lanes = VecOf<float>::lanes;
  for (int i = 0; i < registers.rows[LEFT]; ++i) {
    float* sums = reinterpret_cast<float*>(registers.word[SUMS][i]);
    // The instruction adds up its products before it adds them to a sum.
    for (int v = 0; v < kRegisterWords; v += lanes) {
      Vec<float> sum{};
      for (int k = 0; k < registers.words[LEFT]; ++k) {
        add_product(sum, splat<uint32_t>(registers.word[LEFT][i][k]), load<uint32_t>(registers.word[RIGHT][k] + v));
      }
      store<float>(sums + v, load<float>(sums + v) + sum);
    }
  }
}

#endif

}  // namespace GF_LEVEL
}  // namespace gan_fast
