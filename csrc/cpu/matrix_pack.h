// Kernel text: what the kernels of the matrix registers multiply, packed.
#pragma once

#include <utility>

#include "bf16_parts.h"
#include "common/activation.h"
#include "float_parts.h"
#include "matrix_kernels.h"
#include "matrix_registers.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

// ---- pixels of few channels -----------------------------------------------------------------------------------------------------

template <int ACT>
void pack_pixels_impl(const MatrixPixels<Bf16>& row) {
  const int64_t words = ceil_div(row.elements, 2);
  Bf16* out = reinterpret_cast<Bf16*>(row.out);
  const int64_t first = row.input == nullptr ? row.columns : row.first, last = row.input == nullptr ? row.columns : row.last;
  __builtin_memset(out, 0, static_cast<size_t>(first * words) * sizeof(Bf16Pair));
  out += first * 2 * words;
  for (int64_t j = first; j < last; ++j, out += 2 * words) {
    const int64_t at = (j - first) * row.pixel_stride;
    const Bf16* in = row.input + at;
    if constexpr (ACT == kNone) {
#if defined(__AVX512BW__)
      const __m512i pixel = _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << row.elements) - 1), in);
      _mm512_mask_storeu_epi32(out, static_cast<__mmask16>((1u << words) - 1), pixel);
#else
      for (int64_t c = 0; c < row.elements; ++c) out[c] = in[c];
      if (row.elements % 2 != 0) out[row.elements] = Bf16{};
#endif
    } else {
      const Bf16* y = row.prologue_y + at;
      for (int64_t c = 0; c < 2 * words; c += kVectorLanes) {
        write_part(out + c, read_part<ACT>(in + c, y + c, row.elements - c, row.prologue_slope), 2 * words - c);
      }
    }
  }
  __builtin_memset(out, 0, static_cast<size_t>((row.columns - last) * words) * sizeof(Bf16Pair));
}

template <int ACT>
void pack_pixels_impl(const MatrixPixels<float>& row) {
  const int64_t words = ceil_div(row.elements, 2);
  const int64_t first = row.input == nullptr ? row.columns : row.first, last = row.input == nullptr ? row.columns : row.last;
  for (int64_t part = 0; part < kParts<float>; ++part) {
    Bf16Pair* const out = row.out + part * row.parts.stride;
    __builtin_memset(out, 0, static_cast<size_t>(first * words) * sizeof(Bf16Pair));
    __builtin_memset(out + last * words, 0, static_cast<size_t>((row.columns - last) * words) * sizeof(Bf16Pair));
  }
  for (int64_t j = first; j < last; ++j) {
    const float* in = row.input + (j - first) * row.pixel_stride;
    const float* y = ACT == kNone ? nullptr : row.prologue_y + (j - first) * row.pixel_stride;
    for (int64_t w = 0; w < words; w += kVectorLanes) {
      const auto values = [&](int64_t c) __attribute__((always_inline)) {
        return read_part<ACT>(in + c, ACT == kNone ? nullptr : y + c, row.elements - c, row.prologue_slope);
      };
      split_neighbours(values(2 * w), values(2 * w + kVectorLanes), row.out + j * words + w, row.parts, words - w);
    }
  }
}

template <class S>
void pack_pixels(const MatrixPixels<S>& row) {
  with_activation(row.prologue_y != nullptr, row.prologue_activation, [&](auto act) { pack_pixels_impl<act.value>(row); });
}

// ---- transposition --------------------------------------------------------------------------------------------------------------

// One step of a transposing network: exchanges the odd groups of HALF lanes of a row with the even ones of the row HALF below.
#if GF_VECTOR_BYTES == 64
template <int HALF, int... LANE>
GF_INLINE void exchange(Vec<uint32_t>& upper, Vec<uint32_t>& lower, std::integer_sequence<int, LANE...>) {
  const Vec<uint32_t> first = upper;
#ifdef __clang__
  upper = __builtin_shufflevector(first, lower, ((LANE & HALF) != 0 ? LANE - HALF + 16 : LANE)...);
  lower = __builtin_shufflevector(first, lower, ((LANE & HALF) != 0 ? LANE + 16 : LANE + HALF)...);
#else
  upper = __builtin_shuffle(first, lower, Vec<uint32_t>{((LANE & HALF) != 0 ? LANE - HALF + 16u : LANE + 0u)...});
  lower = __builtin_shuffle(first, lower, Vec<uint32_t>{((LANE & HALF) != 0 ? LANE + 16u : LANE + HALF + 0u)...});
#endif
}

template <int HALF>
GF_INLINE void exchange_rows(Vec<uint32_t>* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if ((i & HALF) == 0) exchange<HALF>(rows[i], rows[i + HALF], std::make_integer_sequence<int, 16>{});
  }
}
#endif

GF_INLINE void transpose_block(uint32_t* block) {
#if GF_VECTOR_BYTES == 64
  Vec<uint32_t> rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = load<uint32_t>(block + i * 16);
  exchange_rows<1>(rows);
  exchange_rows<2>(rows);
  exchange_rows<4>(rows);
  exchange_rows<8>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) store<uint32_t>(block + i * 16, rows[i]);
#else
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < i; ++j) {
      const uint32_t word = block[i * 16 + j];
      block[i * 16 + j] = block[j * 16 + i];
      block[j * 16 + i] = word;
    }
  }
#endif
}

void transpose(Bf16Pair* blocks, int64_t count) {
  for (int64_t n = 0; n < count; ++n) transpose_block(blocks + n * kMatrixRows * kRegisterWords);
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
