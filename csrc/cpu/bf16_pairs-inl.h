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
  constexpr int64_t block_channels = 2 * kChannelBlock;
  const int64_t blocks = ceil_div(row.channels, block_channels), pixel = row.pixel, block_stride = row.block_stride;
  for (int64_t j = 0; j < row.columns; ++j) {
    const int64_t column = row.first + j * row.step;
    const bool inside = row.input != nullptr && column >= 0 && column < row.width;
    const Bf16* in = inside ? row.input + column * row.pixel_stride : nullptr;
    const Bf16* y = ACT == kNone || !inside ? nullptr : row.prologue_y + column * row.pixel_stride;
    if (inside) prefetch(in + kPrefetchPixels * row.step * row.pixel_stride, row.channels * static_cast<int64_t>(sizeof(Bf16)));
    Bf16Pair* out = row.tile + j * pixel;
    for (int64_t b = 0; b < blocks; ++b, out += block_stride) {
      for (int64_t v = 0; v < kChannelBlock; v += kVectorLanes) {
        const int64_t c = b * block_channels + 2 * v, left = row.channels - c;
        Vec<Bf16Pair> words{};
        if (!inside || left <= 0) {
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
        store<Bf16Pair>(out + v, words);
      }
    }
  }
}

void pack_row(const PackRow<Bf16, Bf16Pair>& row) {
  switch (row.prologue_y == nullptr ? kNone : row.prologue_activation) {
    case kRelu:
      return pack_row_impl<kRelu>(row);
    case kLeakyRelu:
      return pack_row_impl<kLeakyRelu>(row);
    case kTanh:
      return pack_row_impl<kTanh>(row);
    case kSigmoid:
      return pack_row_impl<kSigmoid>(row);
    default:
      return pack_row_impl<kNone>(row);
  }
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
  for (int64_t j = 0; j < job.columns; ++j) {
    const int64_t column = job.first + j * job.step;
    const bool inside = job.input != nullptr && column >= 0 && column < job.width;
    const Bf16* in = inside ? job.input + column * job.pixel_stride : nullptr;
    const Bf16* y = ACT == kNone || !inside ? nullptr : job.prologue_y + column * job.pixel_stride;
    if (inside) {
      const int64_t ahead = kPrefetchPixels * job.step * job.pixel_stride;
      prefetch(in + ahead, job.channels * static_cast<int64_t>(sizeof(Bf16)));
      prefetch(in + job.second + ahead, job.channels * static_cast<int64_t>(sizeof(Bf16)));
    }
    Bf16Pair* block = job.out + j * job.out_pixel;
    for (int64_t c = 0; c < job.channels; c += job.packed, block += job.out_block) {
      const int64_t valid = inside ? (job.channels - c < job.packed ? job.channels - c : job.packed) : 0;
      // Pixels are written in order, so what a whole vector writes too far is overwritten by the next pixel.
      for (int64_t v = 0; v < job.packed; v += kVectorLanes) {
        store<Bf16Pair>(block + v, shared_words<ACT>(job, in + c + v, ACT == kNone ? nullptr : y + c + v, valid - v));
      }
    }
  }
}

void pack_channels(const PackChannels<Bf16, Bf16Pair>& job) {
  switch (job.prologue_y == nullptr ? kNone : job.prologue_activation) {
    case kRelu:
      return pack_channels_impl<kRelu>(job);
    case kLeakyRelu:
      return pack_channels_impl<kLeakyRelu>(job);
    case kTanh:
      return pack_channels_impl<kTanh>(job);
    case kSigmoid:
      return pack_channels_impl<kSigmoid>(job);
    default:
      return pack_channels_impl<kNone>(job);
  }
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
