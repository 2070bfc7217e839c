// Kernels of columns.h.
#include "common/activation.h"
#include "cpu/columns.h"
#include "cpu/vec.h"
#include "cpu/vec_math.h"

namespace gan_fast {
namespace GF_LEVEL {

// ---- unfold -----------------------------------------------------------------------------------------------------------------------

// Where the channels of one tap lie in the image: a single zero, again and again, for a tap outside.
template <class T>
struct TapSource {
  const T* at;
  int64_t step;
};

template <class T>
TapSource<T> source_of(const Columns<T>& c, int64_t sample, int64_t y, int64_t x) {
  static constexpr T zero = 0;
  if (y < 0 || y >= c.g.image_h || x < 0 || x >= c.g.image_w) return {&zero, 0};
  return {c.image + sample * c.strides.sample + y * c.strides.row + x * c.strides.column, c.strides.channel};
}

// One tap's channels side by side.
template <class T>
void copy_channels(TapSource<T> source, int64_t channels, T* out) {
  if (source.step == 1) {
    __builtin_memcpy(out, source.at, static_cast<size_t>(channels) * sizeof(T));
  } else {
    for (int64_t i = 0; i < channels; ++i) out[i] = source.at[i * source.step];
  }
}

constexpr int kTapsTogether = 16;

// Some taps of every channel side by side: written in the order of memory, read from as many places as there are taps.
template <class T>
void interleave(const TapSource<T>* sources, int count, int64_t channels, T* out, int64_t out_channel) {
  TapSource<T> s[kTapsTogether];
  for (int k = 0; k < count; ++k) s[k] = sources[k];
  for (int64_t i = 0; i < channels; ++i, out += out_channel) {
    for (int k = 0; k < count; ++k) {
      out[k] = *s[k].at;
      s[k].at += s[k].step;
    }
  }
}

template <class T>
void unfold_line(const Columns<T>& c, int64_t sample, int64_t py) {
  const ColumnsGeometry& g = c.g;
  const int64_t taps = g.kernel_h * g.kernel_w;
  TapSource<T> waiting[kTapsTogether];
  for (int64_t px = 0; px < g.positions_w; ++px) {
    T* out = c.columns + ((sample * g.positions_h + py) * g.positions_w + px) * g.channels * taps;
    int count = 0;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t y = py * g.stride_h - g.pad_h + tap / g.kernel_w * g.dilation_h;
      const int64_t x = px * g.stride_w - g.pad_w + tap % g.kernel_w * g.dilation_w;
      const TapSource<T> source = source_of(c, sample, y, x);
      if (!c.taps_inner) {
        copy_channels(source, g.channels, out + tap * g.channels);
        continue;
      }
      waiting[count++] = source;
      if (count == kTapsTogether || tap + 1 == taps) {
        interleave(waiting, count, g.channels, out + tap + 1 - count, taps);
        count = 0;
      }
    }
  }
}

// ---- fold -------------------------------------------------------------------------------------------------------------------------

template <class T>
void add_block(T* sums, const T* block) {
  constexpr int lanes = VecOf<T>::lanes;
#pragma GCC unroll 16
  for (int i = 0; i < kFoldChannels; i += lanes) store<T>(sums + i, load<T>(sums + i) + load<T>(block + i));
}

// A position's columns of the job's channels as [tap][channel].
template <class T>
void gather_block(const Columns<T>& c, const FoldJob<T>& job, const T* columns, int64_t taps) {
  if (!c.taps_inner) {
    for (int64_t k = 0; k < taps; ++k) {
      __builtin_memcpy(job.block + k * kFoldChannels, columns + k * c.g.channels + job.channel,
                       static_cast<size_t>(job.channels) * sizeof(T));
    }
    return;
  }
  const T* from = columns + job.channel * taps;
  for (int64_t i = 0; i < job.channels; ++i, from += taps) {
    for (int64_t k = 0; k < taps; ++k) job.block[k * kFoldChannels + i] = from[k];
  }
}

template <class T>
void finish(const Columns<T>& c, const Epilogue& epilogue, const FoldJob<T>& job) {
  constexpr int lanes = VecOf<T>::lanes;
  const int64_t pixels = c.g.image_h * c.g.image_w;
  T bias[kFoldChannels] = {};
  if (epilogue.bias != nullptr) {
    __builtin_memcpy(bias, static_cast<const T*>(epilogue.bias) + job.channel, static_cast<size_t>(job.channels) * sizeof(T));
  }
  if (epilogue.bias != nullptr || epilogue.activation != kNone) {
    const T slope = static_cast<T>(epilogue.slope);
    for (int64_t p = 0; p < pixels; ++p) {
      for (int i = 0; i < kFoldChannels; i += lanes) {
        T* at = job.sums + p * kFoldChannels + i;
        store<T>(at, activate(load<T>(at) + load<T>(bias + i), slope, epilogue.activation));
      }
    }
  }
  T* image = c.image + job.sample * c.strides.sample + job.channel * c.strides.channel;
  if (c.strides.channel == 1) {
    for (int64_t y = 0; y < c.g.image_h; ++y) {
      for (int64_t x = 0; x < c.g.image_w; ++x) {
        __builtin_memcpy(image + y * c.strides.row + x * c.strides.column, job.sums + (y * c.g.image_w + x) * kFoldChannels,
                         static_cast<size_t>(job.channels) * sizeof(T));
      }
    }
    return;
  }
  for (int64_t i = 0; i < job.channels; ++i) {
    for (int64_t y = 0; y < c.g.image_h; ++y) {
      T* row = image + i * c.strides.channel + y * c.strides.row;
      const T* sums = job.sums + y * c.g.image_w * kFoldChannels + i;
      for (int64_t x = 0; x < c.g.image_w; ++x) row[x * c.strides.column] = sums[x * kFoldChannels];
    }
  }
}

template <class T>
void fold_channels(const Columns<T>& c, const Epilogue& epilogue, const FoldJob<T>& job) {
  const ColumnsGeometry& g = c.g;
  const int64_t taps = g.kernel_h * g.kernel_w;
  for (int64_t i = 0; i < g.image_h * g.image_w * kFoldChannels; ++i) job.sums[i] = T(0);
  for (int64_t i = 0; i < taps * kFoldChannels; ++i) job.block[i] = T(0);
  for (int64_t py = 0; py < g.positions_h; ++py) {
    for (int64_t px = 0; px < g.positions_w; ++px) {
      gather_block(c, job, c.columns + ((job.sample * g.positions_h + py) * g.positions_w + px) * g.channels * taps, taps);
      for (int64_t ky = 0; ky < g.kernel_h; ++ky) {
        const int64_t y = py * g.stride_h - g.pad_h + ky * g.dilation_h;
        if (y < 0 || y >= g.image_h) continue;
        for (int64_t kx = 0; kx < g.kernel_w; ++kx) {
          const int64_t x = px * g.stride_w - g.pad_w + kx * g.dilation_w;
          if (x < 0 || x >= g.image_w) continue;
          add_block(job.sums + (y * g.image_w + x) * kFoldChannels, job.block + (ky * g.kernel_w + kx) * kFoldChannels);
        }
      }
    }
  }
  finish(c, epilogue, job);
}

extern const ColumnsTable columns_table = {
    {unfold_line<float>, fold_channels<float>},
#if GF_VECTOR_BYTES == 16
    {unfold_line<double>, fold_channels<double>},
#else
    {nullptr, nullptr},
#endif
};

}  // namespace GF_LEVEL
}  // namespace gan_fast
