// Kernels of matrix_kernels.h.
#include "common/activation.h"
#include "matrix_kernels.h"
#include "matrix_registers.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

constexpr int kVectorLanes = VecOf<float>::lanes;
constexpr int64_t kSumsStride = kMatrixLanes * static_cast<int64_t>(sizeof(float));
constexpr int64_t kRunSums = kMatrixRows * kMatrixLanes;

// ---- conv and conv_transpose ----------------------------------------------------------------------------------------------------

// Two runs x 32 lanes: each loaded register is multiplied twice.
GF_INLINE void multiply_two(const MatrixJob& job, const int64_t* run_in, float* sums) {
  const int64_t a_stride = job.position_words * 4, b_step = job.depth * kMatrixLanes;
  const Bf16Pair *first = job.tile + run_in[0], *second = job.tile + run_in[1], *panel = job.panel;
  if (job.accumulate) {
    load_register<0>(sums, kSumsStride);
    load_register<1>(sums + 16, kSumsStride);
    load_register<2>(sums + kRunSums, kSumsStride);
    load_register<3>(sums + kRunSums + 16, kSumsStride);
  } else {
    zero_register<0>();
    zero_register<1>();
    zero_register<2>();
    zero_register<3>();
  }
  for (int64_t s = 0; s < job.step_count; ++s, panel += b_step) {
    load_register<6>(panel, kSumsStride);
    load_register<4>(first + job.steps[s], a_stride);
    multiply_registers<0, 4, 6>();
    load_register<7>(panel + 16, kSumsStride);
    multiply_registers<1, 4, 7>();
    load_register<5>(second + job.steps[s], a_stride);
    multiply_registers<2, 5, 6>();
    multiply_registers<3, 5, 7>();
  }
  store_register<0>(sums, kSumsStride);
  store_register<1>(sums + 16, kSumsStride);
  store_register<2>(sums + kRunSums, kSumsStride);
  store_register<3>(sums + kRunSums + 16, kSumsStride);
}

// Four runs x 16 lanes.
GF_INLINE void multiply_four(const MatrixJob& job, const int64_t* run_in, float* sums) {
  const int64_t a_stride = job.position_words * 4, b_step = job.depth * kMatrixLanes;
  const Bf16Pair *tile = job.tile, *panel = job.panel;
  if (job.accumulate) {
    load_register<0>(sums, kSumsStride);
    load_register<1>(sums + kRunSums, kSumsStride);
    load_register<2>(sums + 2 * kRunSums, kSumsStride);
    load_register<3>(sums + 3 * kRunSums, kSumsStride);
  } else {
    zero_register<0>();
    zero_register<1>();
    zero_register<2>();
    zero_register<3>();
  }
  for (int64_t s = 0; s < job.step_count; ++s, panel += b_step) {
    const Bf16Pair* at = tile + job.steps[s];
    load_register<6>(panel, kSumsStride);
    load_register<4>(at + run_in[0], a_stride);
    multiply_registers<0, 4, 6>();
    load_register<5>(at + run_in[1], a_stride);
    multiply_registers<1, 5, 6>();
    load_register<4>(at + run_in[2], a_stride);
    multiply_registers<2, 4, 6>();
    load_register<5>(at + run_in[3], a_stride);
    multiply_registers<3, 5, 6>();
  }
  store_register<0>(sums, kSumsStride);
  store_register<1>(sums + kRunSums, kSumsStride);
  store_register<2>(sums + 2 * kRunSums, kSumsStride);
  store_register<3>(sums + 3 * kRunSums, kSumsStride);
}

// Rounds 32 lanes at once; 16 and fewer, and a block's last channels, as the other kernels do.
template <int ACT>
void store_rows(const MatrixJob& job, const int64_t* row_out, const float* sums, int64_t runs) {
  Vec<float> bias[kMatrixLanes / kVectorLanes];
  for (int64_t v = 0; v < kMatrixLanes; v += kVectorLanes) {
    bias[v / kVectorLanes] = job.bias == nullptr ? Vec<float>{} : load<float>(job.bias + v);
  }
  for (int64_t r = 0; r < runs; ++r) {
    for (int i = 0; i < job.rows; ++i) {
      const int64_t at = row_out[r * kMatrixRows + i];
      if (at < 0) continue;
      const float* sum = sums + r * kRunSums + i * kMatrixLanes;
      Bf16* out = job.output + at;
      const auto value = [&](int64_t v) __attribute__((always_inline)) {
        return activate<ACT>(load<float>(sum + v) + bias[v / kVectorLanes], job.slope);
      };
      if (job.out_lanes == kMatrixLanes) {
#pragma GCC unroll 4
        for (int64_t v = 0; v < kMatrixLanes; v += 2 * kVectorLanes) {
          const Vec<Bf16Pair> words = pair_neighbours(value(v), value(v + kVectorLanes));
          __builtin_memcpy(out + v, &words, sizeof(words));
        }
        continue;
      }
      for (int64_t v = 0; v < job.out_lanes; v += kVectorLanes) {
        if (job.out_lanes - v >= kVectorLanes) {
          write<Bf16>(out + v, value(v));
        } else {
          write_first<Bf16>(out + v, value(v), job.out_lanes - v);
        }
      }
    }
  }
}

void store_rows_for(const MatrixJob& job, const int64_t* row_out, const float* sums, int64_t runs) {
  switch (job.activation) {
    case kRelu:
      return store_rows<kRelu>(job, row_out, sums, runs);
    case kLeakyRelu:
      return store_rows<kLeakyRelu>(job, row_out, sums, runs);
    case kTanh:
      return store_rows<kTanh>(job, row_out, sums, runs);
    case kSigmoid:
      return store_rows<kSigmoid>(job, row_out, sums, runs);
    default:
      return store_rows<kNone>(job, row_out, sums, runs);
  }
}

void multiply(const MatrixJob& job) {
  const int64_t runs = matrix_runs(job.out_lanes);
  const bool whole = job.finish && !job.accumulate;  // the sums need not outlive their block
  configure(job.rows, job.depth);
  for (int64_t b = 0; b < job.blocks; ++b) {
    float* sums = job.sums + (whole ? 0 : b * runs * kRunSums);
    if (runs == 2) {
      multiply_two(job, job.run_in + b * runs, sums);
    } else {
      multiply_four(job, job.run_in + b * runs, sums);
    }
    if (job.finish) store_rows_for(job, job.row_out + b * runs * kMatrixRows, sums, runs);
  }
  release();
}

// ---- packing --------------------------------------------------------------------------------------------------------------------

// The first `left` of a vector of elements times act'(y), zeros behind.
template <int ACT>
GF_INLINE Vec<float> read_part(const Bf16* in, const Bf16* y, int64_t left, float slope) {
  if (left <= 0) return Vec<float>{};
  const Vec<float> value = left >= kVectorLanes ? read(in) : read_first(in, left);
  if constexpr (ACT == kNone) {
    return value;
  } else {
    return act_backward<ACT>(value, left >= kVectorLanes ? read(y) : read_first(y, left), slope);
  }
}

template <int ACT>
void pack_pixels_impl(const MatrixPixels& row) {
  const int64_t words = ceil_div(row.channels, 2);
  Bf16* out = reinterpret_cast<Bf16*>(row.out);
  for (int64_t j = 0; j < row.columns; ++j, out += 2 * words) {
    const int64_t column = row.first + j;
    if (row.input == nullptr || column < 0 || column >= row.width) {
      __builtin_memset(out, 0, static_cast<size_t>(words) * sizeof(Bf16Pair));
      continue;
    }
    const Bf16* in = row.input + column * row.channels;
    if constexpr (ACT == kNone) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
      const __m256i pixel = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << row.channels) - 1), in);
      _mm256_mask_storeu_epi32(out, static_cast<__mmask8>((1u << words) - 1), pixel);
#else
      for (int64_t c = 0; c < row.channels; ++c) out[c] = in[c];
      if (row.channels % 2 != 0) out[row.channels] = Bf16{};
#endif
    } else {
      const Bf16* y = row.prologue_y + column * row.channels;
      for (int64_t c = 0; c < 2 * words; c += kVectorLanes) {
        const int64_t left = 2 * words - c;
        write_first<Bf16>(out + c, read_part<ACT>(in + c, y + c, row.channels - c, row.prologue_slope),
                          left < kVectorLanes ? left : kVectorLanes);
      }
    }
  }
}

void pack_pixels(const MatrixPixels& row) {
  switch (row.prologue_y == nullptr ? kNone : row.prologue_activation) {
    case kRelu:
      return pack_pixels_impl<kRelu>(row);
    case kLeakyRelu:
      return pack_pixels_impl<kLeakyRelu>(row);
    case kTanh:
      return pack_pixels_impl<kTanh>(row);
    case kSigmoid:
      return pack_pixels_impl<kSigmoid>(row);
    default:
      return pack_pixels_impl<kNone>(row);
  }
}

using Block = uint32_t[kMatrixRows][kRegisterWords];

// 16 x 16 words, in place.
GF_INLINE void transpose(Block& block) {
#if defined(__AVX512F__)
  __m512i v[16], t[16];
  for (int i = 0; i < 16; ++i) v[i] = _mm512_load_si512(block[i]);
  // Of words, of pairs of words, then of the four 128-bit lanes.
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i even = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88), odd = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    const __m512i even2 = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88), odd2 = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    _mm512_store_si512(block[i], _mm512_shuffle_i32x4(even, even2, 0x88));
    _mm512_store_si512(block[i + 4], _mm512_shuffle_i32x4(odd, odd2, 0x88));
    _mm512_store_si512(block[i + 8], _mm512_shuffle_i32x4(even, even2, 0xdd));
    _mm512_store_si512(block[i + 12], _mm512_shuffle_i32x4(odd, odd2, 0xdd));
  }
#else
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < i; ++j) {
      const uint32_t word = block[i][j];
      block[i][j] = block[j][i];
      block[j][i] = word;
    }
  }
#endif
}

// Words of a channel of two images; the first `left` lanes.
template <int ACT>
GF_INLINE Vec<Bf16Pair> shared_words(const MatrixPositions& job, const Bf16* in, const Bf16* y, int64_t left) {
  if constexpr (ACT == kNone) {
    // Whole vectors of halves need no arithmetic.
    if (left >= kVectorLanes) {
      const auto wide = [](const Bf16* p) __attribute__((always_inline)) {
        return reinterpret_cast<Vec<uint32_t>>(widen_halves(*reinterpret_cast<const Halves*>(p)));
      };
      const Vec<uint32_t> first = wide(in) >> 16;
      return job.second == 0 ? first : first | wide(in + job.second);
    }
  }
  return pair_lanes(read_part<ACT>(in, y, left, job.prologue_slope),
                    read_part<ACT>(in + job.second, y + job.second, job.second == 0 ? 0 : left, job.prologue_slope));
}

template <int ACT>
void pack_positions_impl(const MatrixPositions& job) {
  alignas(64) Block block;
  for (int64_t j = 0; j < job.columns; j += kRegisterWords) {
    const int64_t count = job.columns - j < kRegisterWords ? job.columns - j : kRegisterWords;
    for (int64_t c = 0; c < job.channels; c += kMatrixRows) {
      for (int64_t i = 0; i < kRegisterWords; ++i) {
        const int64_t column = job.first + (j + i) * job.step;
        const bool inside = job.input != nullptr && i < count && column >= 0 && column < job.width;
        const int64_t at = inside ? column * job.pixel_stride + c : 0;
        for (int64_t v = 0; v < kMatrixRows; v += kVectorLanes) {
          const int64_t left = job.channels - c - v;
          const Vec<Bf16Pair> words = inside && left > 0 ? shared_words<ACT>(job, job.input + at + v, ACT == kNone ? nullptr : job.prologue_y + at + v, left)
                                                         : Vec<Bf16Pair>{};
          store<Bf16Pair>(block[i] + v, words);
        }
      }
      transpose(block);
      for (int64_t i = 0; i < kMatrixRows; ++i) {
        Bf16Pair* out = job.out + (c + i) * job.out_channel + j;
        for (int64_t v = 0; v < count; v += kVectorLanes) {
          const Vec<Bf16Pair> words = load<Bf16Pair>(block[i] + v);
          if (count - v >= kVectorLanes) {
            store<Bf16Pair>(out + v, words);
          } else {
            store_first<Bf16Pair>(out + v, words, count - v);
          }
        }
      }
    }
  }
}

void pack_positions(const MatrixPositions& job) {
  switch (job.prologue_y == nullptr ? kNone : job.prologue_activation) {
    case kRelu:
      return pack_positions_impl<kRelu>(job);
    case kLeakyRelu:
      return pack_positions_impl<kLeakyRelu>(job);
    case kTanh:
      return pack_positions_impl<kTanh>(job);
    case kSigmoid:
      return pack_positions_impl<kSigmoid>(job);
    default:
      return pack_positions_impl<kNone>(job);
  }
}

// ---- conv_weight_grad -----------------------------------------------------------------------------------------------------------

template <bool TWO_ROWS, bool TWO_LANES>
GF_INLINE void outer_of(const MatrixOuterJob& job) {
  const int64_t a_stride = job.a_channel * 4;
  load_register<0>(job.sums, kSumsStride);
  if (TWO_LANES) load_register<1>(job.sums + 16, kSumsStride);
  if (TWO_ROWS) load_register<2>(job.sums + kRunSums, kSumsStride);
  if (TWO_ROWS && TWO_LANES) load_register<3>(job.sums + kRunSums + 16, kSumsStride);
  for (int64_t image = 0; image < job.images; ++image) {
    const Bf16Pair *a = job.a + image * job.a_image, *b = job.b + image * job.b_image;
    const Bf16Pair* second = a + kMatrixRows * job.a_channel;
    for (int64_t s = 0; s < job.steps; ++s, a += job.depth, second += job.depth, b += job.depth * kMatrixLanes) {
      load_register<6>(b, kSumsStride);
      load_register<4>(a, a_stride);
      multiply_registers<0, 4, 6>();
      if (TWO_LANES) {
        load_register<7>(b + 16, kSumsStride);
        multiply_registers<1, 4, 7>();
      }
      if (TWO_ROWS) {
        load_register<5>(second, a_stride);
        multiply_registers<2, 5, 6>();
        if (TWO_LANES) multiply_registers<3, 5, 7>();
      }
    }
  }
  store_register<0>(job.sums, kSumsStride);
  if (TWO_LANES) store_register<1>(job.sums + 16, kSumsStride);
  if (TWO_ROWS) store_register<2>(job.sums + kRunSums, kSumsStride);
  if (TWO_ROWS && TWO_LANES) store_register<3>(job.sums + kRunSums + 16, kSumsStride);
}

void outer_matrix(const MatrixOuterJob& job) {
  configure(kMatrixRows, job.depth);
  if (job.half_rows) {
    job.half_lanes ? outer_of<false, false>(job) : outer_of<false, true>(job);
  } else {
    job.half_lanes ? outer_of<true, false>(job) : outer_of<true, true>(job);
  }
  release();
}

extern const MatrixKernels matrix_kernels_table = {multiply, pack_pixels, pack_positions, outer_matrix};

}  // namespace GF_LEVEL
}  // namespace gan_fast
