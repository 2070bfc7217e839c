// Kernels of matrix_kernels.h.
#include "bf16_parts.h"
#include "common/activation.h"
#include "matrix_kernels.h"
#include "matrix_pack.h"
#include "matrix_registers.h"
#include "vec.h"
#include "vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

constexpr int64_t kSumsStride = kMatrixLanes * static_cast<int64_t>(sizeof(float));
constexpr int64_t kRunSums = kMatrixRows * kMatrixLanes;

// ---- conv and conv_transpose ----------------------------------------------------------------------------------------------------

// The four registers of sums lie SECOND and THIRD elements behind the first, and both together.
template <int64_t SECOND, int64_t THIRD>
GF_INLINE void begin_sums(const float* sums, bool go_on) {
  if (go_on) {
    load_register<0>(sums, kSumsStride);
    load_register<1>(sums + SECOND, kSumsStride);
    load_register<2>(sums + THIRD, kSumsStride);
    load_register<3>(sums + THIRD + SECOND, kSumsStride);
  } else {
    zero_register<0>();
    zero_register<1>();
    zero_register<2>();
    zero_register<3>();
  }
}

template <int64_t SECOND, int64_t THIRD>
GF_INLINE void store_sums(float* sums) {
  store_register<0>(sums, kSumsStride);
  store_register<1>(sums + SECOND, kSumsStride);
  store_register<2>(sums + THIRD, kSumsStride);
  store_register<3>(sums + THIRD + SECOND, kSumsStride);
}

// The panel of the part after this one, from behind L2, by the blocks that meet it first: so many lines of it for each left operand.
template <bool FETCH>
GF_INLINE void prefetch_panel(const char*& at) {
  if constexpr (!FETCH) return;
  constexpr int lines = 8;
  prefetch(at, lines * 64);
  at += lines * 64;
}

// Two runs x 32 lanes: each loaded register is multiplied twice. With several parts, those whose numbers add up to less than there are parts
// are multiplied, so that a part of the right operands is loaded once.
template <bool FETCH, class S>
GF_INLINE void multiply_two(const MatrixJob<S>& job, const int64_t* run_in, int64_t first_step, int64_t last_step, float* sums, const char* ahead) {
  const int64_t a_stride = job.position_words * 4, b_part = job.depth * kMatrixLanes, b_step = kParts<S> * b_part;
  const Bf16Pair *first = job.tile + run_in[0], *second = job.tile + run_in[1];
  const Bf16Pair* panel = job.panel + first_step * b_step;
  begin_sums<16, kRunSums>(sums, first_step > 0);
  for (int64_t s = first_step; s < last_step; ++s, panel += b_step) {
#pragma GCC unroll 3
    for (int64_t right = 0; right < kParts<S>; ++right) {
      load_register<6>(panel + right * b_part, kSumsStride);
#pragma GCC unroll 3
      for (int64_t left = 0; left < kParts<S> - right; ++left) {
        const int64_t at = job.steps[s] + left * job.tile_part;
        load_register<4>(first + at, a_stride);
        multiply_registers<0, 4, 6>();
        prefetch_panel<FETCH>(ahead);
        if (left == 0) load_register<7>(panel + right * b_part + 16, kSumsStride);
        multiply_registers<1, 4, 7>();
        load_register<5>(second + at, a_stride);
        multiply_registers<2, 5, 6>();
        multiply_registers<3, 5, 7>();
      }
    }
  }
  store_sums<16, kRunSums>(sums);
}

// Four runs x 16 lanes.
template <bool FETCH, class S>
GF_INLINE void multiply_four(const MatrixJob<S>& job, const int64_t* run_in, int64_t first_step, int64_t last_step, float* sums, const char* ahead) {
  const int64_t a_stride = job.position_words * 4, b_part = job.depth * kMatrixLanes, b_step = kParts<S> * b_part;
  const Bf16Pair *tile = job.tile, *panel = job.panel + first_step * b_step;
  begin_sums<kRunSums, 2 * kRunSums>(sums, first_step > 0);
  for (int64_t s = first_step; s < last_step; ++s, panel += b_step) {
#pragma GCC unroll 3
    for (int64_t right = 0; right < kParts<S>; ++right) {
      load_register<6>(panel + right * b_part, kSumsStride);
#pragma GCC unroll 3
      for (int64_t left = 0; left < kParts<S> - right; ++left) {
        const Bf16Pair* at = tile + job.steps[s] + left * job.tile_part;
        load_register<4>(at + run_in[0], a_stride);
        multiply_registers<0, 4, 6>();
        prefetch_panel<FETCH>(ahead);
        load_register<5>(at + run_in[1], a_stride);
        multiply_registers<1, 5, 6>();
        load_register<4>(at + run_in[2], a_stride);
        multiply_registers<2, 4, 6>();
        load_register<5>(at + run_in[3], a_stride);
        multiply_registers<3, 5, 6>();
      }
    }
  }
  store_sums<kRunSums, 2 * kRunSums>(sums);
}

// bf16 rounds 32 lanes at once; 16 and fewer, and a block's last channels, as the other kernels do.
template <int ACT, bool STREAM, class S>
void store_rows(const MatrixJob<S>& job, const int64_t* row_out, const float* sums, int64_t runs) {
  Vec<float> bias[kMatrixLanes / kVectorLanes];
  for (int64_t v = 0; v < kMatrixLanes; v += kVectorLanes) {
    bias[v / kVectorLanes] = job.bias == nullptr ? Vec<float>{} : load<float>(job.bias + v);
  }
  for (int64_t r = 0; r < runs; ++r) {
    for (int i = 0; i < job.rows; ++i) {
      const int64_t at = row_out[r * kMatrixRows + i];
      if (at < 0) continue;
      const float* sum = sums + r * kRunSums + i * kMatrixLanes;
      S* out = job.output + at;
      const auto value = [&](int64_t v) __attribute__((always_inline)) {
        return activate<ACT>(load<float>(sum + v) + bias[v / kVectorLanes], job.slope);
      };
      if (job.out_lanes == kMatrixLanes) {
#pragma GCC unroll 4
        for (int64_t v = 0; v < kMatrixLanes; v += 2 * kVectorLanes) {
          write_two<S>(out + v, value(v), value(v + kVectorLanes), STREAM);
        }
        continue;
      }
      for (int64_t v = 0; v < job.out_lanes; v += kVectorLanes) {
        write_part(out + v, value(v), job.out_lanes - v);
      }
    }
  }
}

template <class S>
void store_wide(const MatrixJob<S>& job, const int64_t* row_out, const float* sums, int64_t runs) {
  for (int64_t r = 0; r < runs; ++r) {
    for (int i = 0; i < job.rows; ++i) {
      if (row_out[r * kMatrixRows + i] < 0) continue;
      const float* sum = sums + r * kRunSums + i * kMatrixLanes;
      float* out = job.wide_output + row_out[r * kMatrixRows + i];
      int64_t v = 0;
      for (; v + kVectorLanes <= job.out_lanes; v += kVectorLanes) store<float>(out + v, load<float>(sum + v));
      if (v < job.out_lanes) store_first<float>(out + v, load<float>(sum + v), job.out_lanes - v);
    }
  }
}

template <class S>
void store_sums_of(const MatrixJob<S>& job, const int64_t* row_out, const float* sums, int64_t runs) {
  if (job.wide_output != nullptr) return store_wide(job, row_out, sums, runs);
  with_activation(true, job.activation, [&](auto act) {
    if constexpr (kParts<S> > 1) {
      if (job.stream) return store_rows<act.value, true>(job, row_out, sums, runs);
    }
    store_rows<act.value, false>(job, row_out, sums, runs);
  });
}

// Some blocks at a time, a part of the panel after the other: the part, which all of them multiply, and their sums then stay in L1. With the
// whole panel streaming from L2 a step took a quarter longer.
constexpr int64_t kPartBytes = 32 * 1024;

template <bool FETCH, int64_t RUNS, class S>
void multiply_blocks(const MatrixJob<S>& job, int64_t begin_block, int64_t end_block) {
  constexpr int64_t block_sums = RUNS * kRunSums;
  const int64_t fitting = kPartBytes / (kParts<S> * job.depth * kSumsStride);
  const int64_t parts = job.step_count <= fitting ? 1 : ceil_div(job.step_count, fitting);
  for (int64_t first = begin_block; first < end_block; first += kMatrixBlocks) {
    const int64_t last = first + kMatrixBlocks < end_block ? first + kMatrixBlocks : end_block;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = job.step_count * part / parts, end = job.step_count * (part + 1) / parts;
      for (int64_t b = first; b < last; ++b) {
        const int64_t* const run_in = job.run_in + b * RUNS;
        float* const sums = job.sums + (b - first) * block_sums;
        const Bf16Pair* const next = job.panel + (end + (b - first) * (end - begin) / kMatrixBlocks) * kParts<S> * job.depth * kMatrixLanes;
        if constexpr (RUNS == 2) {
          multiply_two<FETCH>(job, run_in, begin, end, sums, reinterpret_cast<const char*>(next));
        } else {
          multiply_four<FETCH>(job, run_in, begin, end, sums, reinterpret_cast<const char*>(next));
        }
        if (part + 1 == parts) store_sums_of(job, job.row_out + b * RUNS * kMatrixRows, sums, RUNS);
      }
    }
  }
}

template <int64_t RUNS, class S>
void multiply_with(const MatrixJob<S>& job) {
  int64_t first = 0;
  if constexpr (kParts<S> > 1) {
    if (job.fetch) {
      first = job.blocks < kMatrixBlocks ? job.blocks : kMatrixBlocks;
      multiply_blocks<true, RUNS>(job, 0, first);
    }
  }
  multiply_blocks<false, RUNS>(job, first, job.blocks);
}

template <class S>
void multiply(const MatrixJob<S>& job) {
  configure(job.rows, job.depth);
  if (matrix_runs(job.out_lanes) == 2) {
    multiply_with<2>(job);
  } else {
    multiply_with<4>(job);
  }
  release();
#if GF_VECTOR_BYTES > 16
  if (job.stream) _mm_sfence();
#endif
}

void add_lanes(const MatrixLanes& job) {
  for (int64_t v = 0; v < job.outs; v += kVectorLanes) {
    const int64_t left = job.outs - v < kVectorLanes ? job.outs - v : kVectorLanes;
    const auto values = [&](const float* p) __attribute__((always_inline)) {
      return left == kVectorLanes ? load<float>(p) : load_first<float>(p, left);
    };
    const float* from = job.from + v;
    float* to = job.line + v;
    for (int64_t u = 0; u < job.count; ++u, from += job.lanes, to += job.step * job.outs) {
      Vec<float> sum = load<float>(job.bias + v);
      for (int64_t t = 0; t < job.tap_count; ++t) sum += values(from + job.taps[t]);
      if (left == kVectorLanes) {
        store<float>(to, sum);
      } else {
        store_first<float>(to, sum, left);
      }
    }
  }
}

template <class S>
void activate_row(const float* in, int64_t count, int activation, float slope, S* out) {
  for (int64_t i = 0; i < count; i += kVectorLanes) {
    const int64_t left = count - i;
    const Vec<float> value = left >= kVectorLanes ? load<float>(in + i) : load_first<float>(in + i, left);
    write_part(out + i, activate(value, slope, activation), left);
  }
}

// ---- conv_weight_grad -----------------------------------------------------------------------------------------------------------

// One left operand for up to six right ones, which are one another's neighbours or near by: taps of the same channels. Two left and two
// right operands would load as much, but all of it from L2: 40 instead of 28 cycles a product.
template <int COUNT, class S>
void outer_of(const MatrixOuterJob<S>& job) {
  constexpr int64_t row = kRegisterWords * 4, step = kMatrixRows * kRegisterWords;
  const auto each_sum = [&](auto&& use) __attribute__((always_inline)) {
    use(Number<0>{});
    if constexpr (COUNT > 1) use(Number<1>{});
    if constexpr (COUNT > 2) use(Number<2>{});
    if constexpr (COUNT > 3) use(Number<3>{});
    if constexpr (COUNT > 4) use(Number<4>{});  // of one part, which takes none of these registers
    if constexpr (COUNT > 5) use(Number<5>{});
  };
  each_sum([&](auto n) __attribute__((always_inline)) { load_register<n.value>(job.sums[n.value], row); });
  for (int64_t line = 0; line < job.lines; ++line) {
    const Bf16Pair* a = job.a + line * job.a_line;
    int64_t at = line * job.b_line;
    for (int64_t s = 0; s < job.steps; ++s, a += step, at += step) {
      load_register<6>(a, row);
      if constexpr (kParts<S> > 1) {
        load_register<5>(a + job.a_part, row);
        load_register<4>(a + 2 * job.a_part, row);
      }
      each_sum([&](auto n) __attribute__((always_inline)) {
        load_register<7>(job.b[n.value] + at, row);
        multiply_registers<n.value, 6, 7>();
        if constexpr (kParts<S> > 1) {
          multiply_registers<n.value, 5, 7>();
          multiply_registers<n.value, 4, 7>();
          load_register<7>(job.b[n.value] + job.b_part + at, row);
          multiply_registers<n.value, 6, 7>();
          multiply_registers<n.value, 5, 7>();
          load_register<7>(job.b[n.value] + 2 * job.b_part + at, row);
          multiply_registers<n.value, 6, 7>();
        }
      });
    }
  }
  each_sum([&](auto n) __attribute__((always_inline)) { store_register<n.value>(job.sums[n.value], row); });
}

template <class S>
void outer_matrix(const MatrixOuterJob<S>& job) {
  configure(kMatrixRows, kRegisterWords);
  switch (job.count) {
    case 1: outer_of<1>(job); break;
    case 2: outer_of<2>(job); break;
    case 3: outer_of<3>(job); break;
    case 4: outer_of<4>(job); break;
  }
  if constexpr (kMatrixOperands<S> == 6) {
    if (job.count == 5) outer_of<5>(job);
    if (job.count == 6) outer_of<6>(job);
  }
  release();
}

// Sixteen taps at a time: their rows are the output's where channels are neighbours there, and its columns where taps are.
template <class S>
void store_gradient(const MatrixGradient<S>& job) {
  for (int64_t first = 0; first < job.taps; first += 16) {
    const int64_t count = job.taps - first < 16 ? job.taps - first : 16;
    alignas(64) uint32_t block[16 * 16] = {};
    for (int64_t t = 0; t < count; ++t) {
      const float* from = job.sums + (first + t) * job.tap_sums;
      for (int64_t v = 0; v < 16; v += kVectorLanes) {
        Vec<float> sum = load<float>(from + v);
        for (int64_t part = 1; part < job.parts; ++part) sum += load<float>(from + part * job.part_sums + v);
        store<uint32_t>(block + t * 16 + v, reinterpret_cast<Vec<uint32_t>>(sum));
      }
    }
    const bool by_tap = job.channel_step == 1;
    if (!by_tap) transpose_block(block);
    const int64_t lines = by_tap ? count : job.channels, length = by_tap ? job.channels : count;
    for (int64_t i = 0; i < lines; ++i) {
      S* out = job.out + (by_tap ? (first + i) * job.tap_step : i * job.channel_step + first);
      for (int64_t v = 0; v < length; v += kVectorLanes) {
        write_part(out + v, reinterpret_cast<Vec<float>>(load<uint32_t>(block + i * 16 + v)), length - v);
      }
    }
  }
}

template <class S>
constexpr MatrixFunctions<S> kFunctions = {multiply<S>, pack_pixels<S>, activate_row<S>, outer_matrix<S>, store_gradient<S>};

extern const MatrixKernels matrix_kernels_table = {
    kFunctions<Bf16>, kFunctions<float>, add_lanes, transpose, split_row, {nullptr, split_channels, nullptr, nullptr}, split_lines,
};

}  // namespace GF_LEVEL
}  // namespace gan_fast
