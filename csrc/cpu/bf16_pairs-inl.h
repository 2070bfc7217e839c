// Kernels of pair_kernels.h: the texts of the other engines with another product, and packing into pairs.
#include "bf16_parts.h"
#include "common/activation.h"
#include "few_block.h"
#include "gemm_block.h"
#include "outer_block.h"
#include "pack_line.h"
#include "pair_kernels.h"
#include "vec.h"
#include "vec_math.h"
#include "winograd_transforms.h"

namespace gan_fast {
namespace GF_LEVEL {

template <int ACT>
void pack_row_impl(const PackRow<Bf16, Bf16Pair>& row) {
  each_row_word<ACT>(row, [&](const Bf16* in, const Bf16* y, int64_t c, Bf16Pair* out) __attribute__((always_inline)) {
    const int64_t left = row.channels - c;
    Vec<Bf16Pair> words{};
    if (in == nullptr || left <= 0) {
    } else if (ACT == kNone && left >= 2 * kVectorLanes) {  // neighbours lie in memory as words do
      __builtin_memcpy(&words, in + c, sizeof(words));
    } else if (ACT == kNone) {
      Halves halves[2] = {};
      if (left > kVectorLanes) {
        __builtin_memcpy(&halves[0], in + c, sizeof(Halves));
        halves[1] = load_first_halves(in + c + kVectorLanes, left - kVectorLanes);
      } else {
        halves[0] = left == kVectorLanes ? *reinterpret_cast<const Halves*>(in + c) : load_first_halves(in + c, left);
      }
      __builtin_memcpy(&words, halves, sizeof(words));
    } else {
      words = pair_neighbours(read_part<ACT>(in + c, y + c, left, row.prologue_slope),
                              read_part<ACT>(in + c + kVectorLanes, y + c + kVectorLanes, left - kVectorLanes, row.prologue_slope));
    }
    store<Bf16Pair>(out, words);
  });
}

void pack_row(const PackRow<Bf16, Bf16Pair>& row) {
  with_activation(row.prologue_y != nullptr, row.prologue_activation, [&](auto act) { pack_row_impl<act.value>(row); });
}

// Words of a channel of two images, the first `left` of a vector. Without an activation nothing is computed.
template <int ACT>
GF_INLINE Vec<Bf16Pair> shared_words(const PackChannels<Bf16, Bf16Pair>& job, const Bf16* in, const Bf16* y, int64_t left) {
  if (left <= 0) return Vec<Bf16Pair>{};
  if constexpr (ACT == kNone) {
    const auto upper = [&](const Bf16* p) __attribute__((always_inline)) {
      const Halves halves = left >= kVectorLanes ? *reinterpret_cast<const Halves*>(p) : load_first_halves(p, left);
      return reinterpret_cast<Vec<uint32_t>>(widen_halves(halves));
    };
    const Vec<uint32_t> first = upper(in) >> 16;
    return job.second == 0 ? first : first | upper(in + job.second);
  } else {
    return pair_lanes(read_part<ACT>(in, y, left, job.prologue_slope),
                      read_part<ACT>(in + job.second, y + job.second, job.second == 0 ? 0 : left, job.prologue_slope));
  }
}

template <int ACT>
void pack_channels_impl(const PackChannels<Bf16, Bf16Pair>& job) {
  each_shared_word<ACT>(job, [&](const Bf16* in, const Bf16* y, int64_t left, Bf16Pair* out) __attribute__((always_inline)) {
    store<Bf16Pair>(out, shared_words<ACT>(job, in, y, left));
  });
}

void pack_channels(const PackChannels<Bf16, Bf16Pair>& job) {
  with_activation(job.prologue_y != nullptr, job.prologue_activation, [&](auto act) { pack_channels_impl<act.value>(job); });
}

// ---- Winograd's operands: transformed in fp32, rounded once ---------------------------------------------------------------------

// F(2x2, 3x3) and F(3x3, 2x2) have the same points, and the same transforms of what is gathered.
constexpr int kPoints = piece_points(2);
static_assert(kPoints == piece_points(3));
using Points = Vec<float>[kPoints];

void input_transform(const InputTransform<float, Bf16Pair>& job) {
  for (int64_t b = 0; b < job.blocks; b += 2) {
    for (int64_t i = 0; i < job.count; ++i) {
      for (int64_t v = 0; v < kChannelBlock; v += kVectorLanes) {
        // Channels 2v and on of two blocks of the tile, the second of which may be missing.
        Points points[2] = {};
        for (int half = 0; half < 2; ++half) {
          const int64_t c = 2 * v + half * kVectorLanes, block = b + c / kChannelBlock;
          if (block >= job.blocks) continue;
          input_points<2, float>(job.tile + block * job.in_block + job.pieces[i] + c % kChannelBlock, job.row_stride,
                              [&](int point, Vec<float> value) __attribute__((always_inline)) { points[half][point] = value; });
        }
        const int64_t at = b / 2 * job.out_block + i * job.out_piece + v;
        for (int p = 0; p < kPoints; ++p) {
          if (job.out[p] != nullptr) store<Bf16Pair>(job.out[p] + at, pair_neighbours(points[0][p], points[1][p]));
        }
      }
    }
  }
}

void input_pieces(const InputTransform<float, Bf16Pair>& job) {
  for (int64_t b = 0; b < job.blocks; ++b) {
    for (int64_t i = 0; i < job.count; i += 2) {
      for (int64_t c = 0; c < kChannelBlock; c += kVectorLanes) {
        Points points[2] = {};
        for (int half = 0; half < 2 && i + half < job.count; ++half) {
          input_points<2, float>(job.tile + b * job.in_block + job.pieces[i + half] + c, job.row_stride,
                              [&](int point, Vec<float> value) __attribute__((always_inline)) { points[half][point] = value; });
        }
        const int64_t at = b * job.out_block + i / 2 * job.out_piece + c;
        for (int p = 0; p < kPoints; ++p) {
          if (job.out[p] != nullptr) store<Bf16Pair>(job.out[p] + at, pair_lanes(points[0][p], points[1][p]));
        }
      }
    }
  }
}

template <int M>
void weight_transform(const WeightTransform<float, Bf16Pair>& job) {
  for (int v = 0; v < 2; ++v) {
    Points points[2];
    for (int half = 0; half < 2; ++half) {
      weight_points<M, float>(job.taps[half], v * kVectorLanes,
                           [&](int point, Vec<float> value) __attribute__((always_inline)) { points[half][point] = value; });
    }
    for (int p = 0; p < kPoints; ++p) {
      if (job.out[p] != nullptr) store<Bf16Pair>(job.out[p] + v * kVectorLanes, pair_lanes(points[0][p], points[1][p]));
    }
  }
}

void gradient_transform(const GradientTransform<float, Bf16Pair>& job) {
  for (int64_t i = 0; i < job.count; i += 2) {
    for (int v = 0; v < 2; ++v) {
      Points points[2] = {};
      for (int half = 0; half < 2 && i + half < job.count; ++half) {
        gradient_points<2, float>(job.tile + job.pieces[i + half] + v * kVectorLanes, job.row_stride,
                               [&](int point, Vec<float> value) __attribute__((always_inline)) { points[half][point] = value; });
      }
      for (int p = 0; p < kPoints; ++p) store<Bf16Pair>(job.out[p] + (i + v) * kVectorLanes, pair_lanes(points[0][p], points[1][p]));
    }
  }
}

extern const PairKernels pair_kernels = {
    kPixels,
    kFewPixels,
    kRows,
    GF_VECTOR_BYTES,
    {pack_row, pack_line<Bf16, Bf16>, gemm<Bf16, Bf16Pair>, few<Bf16, Bf16Pair>},
    {outer<Bf16Pair>, pack_channels, fold_line<Bf16Pair>, nullptr},
    {input_transform, input_pieces, weight_transform<2>, gradient_transform},
    {input_transform, nullptr, weight_transform<3>, nullptr},
};

}  // namespace GF_LEVEL
}  // namespace gan_fast
