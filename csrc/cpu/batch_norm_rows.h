// Walking over the rows of a piece: kernel text that batch_norm_act and its backward share (see vec.h).
//
// A row is read in whole vectors. The last one ends with the row and overlaps the one before it where the channels do not
// divide evenly: an element computed twice has the same value twice. Sums have a slot of their own for it. Rows shorter
// than a vector are padded with zeros.
//
// S is what images are stored in, T = Wide<S> what everything else is computed in (bf16.h).
#pragma once

#include "cpu/batch_norm_act.h"
#include "cpu/bf16.h"
#include "cpu/vec.h"

namespace gan_fast {
namespace GF_LEVEL {

// Rows are taken together, so that a channel's coefficients and sums are loaded once for all of them, only where they are
// short: memory is best read and written from one end to the other. Four rows of 512 bytes at a time take 1.6 times as long.
template <class S>
inline __attribute__((always_inline)) bool norm_short_rows(int64_t channels) {
  return channels * static_cast<int64_t>(sizeof(S)) < 512;
}

// Rows whose sums are taken in T before they are added up in double.
constexpr int64_t kNormRun = 128;

// Room for the slots of a piece: its channels in whole vectors.
constexpr int64_t kNormSlots = kNormChannels + kMostLanes;

template <class T>
inline __attribute__((always_inline)) int64_t norm_slots(int64_t channels) {
  constexpr int lanes = VecOf<T>::lanes;
  return (channels + lanes - 1) / lanes * lanes;
}

// step(channel, slot) for every vector of a row: its first channel, and where its sums are kept.
template <class T, class Step>
inline __attribute__((always_inline)) void norm_vectors(int64_t channels, const Step& step) {
  constexpr int lanes = VecOf<T>::lanes;
  int64_t slot = 0;
  for (; slot + lanes <= channels; slot += lanes) step(slot, slot);
  if (slot < channels) step(channels > lanes ? channels - lanes : 0, slot);
}

// body(r, rows) over all rows, several (at most MOST) at a time where they are short; `rows` is a constant type.
template <int ROWS>
struct RowCount {
  static constexpr int value = ROWS;
};

template <class S, int MOST, class Body>
inline __attribute__((always_inline)) void norm_rows(int64_t begin, int64_t end, int64_t channels, const Body& body) {
  int64_t r = begin;
  if (norm_short_rows<S>(channels)) {
    for (; r + MOST <= end; r += MOST) body(r, RowCount<MOST>{});
  }
  for (; r < end; ++r) body(r, RowCount<1>{});
}

template <class S, bool NARROW>
inline __attribute__((always_inline)) Vec<Wide<S>> norm_load(const S* p, int64_t channels) {
  if constexpr (NARROW) {
    return load_wide_first(p, channels);
  } else {
    return load_wide(p);
  }
}

template <class S, bool NARROW>
inline __attribute__((always_inline)) void norm_store(S* p, Vec<Wide<S>> v, int64_t channels) {
  if constexpr (NARROW) {
    store_narrow_first(p, v, channels);
  } else {
    store_narrow(p, v);
  }
}

// Adds the run's sums to the totals and clears them.
template <class T>
inline __attribute__((always_inline)) void norm_flush(T* sums, double* totals, int64_t slots) {
  for (int64_t i = 0; i < slots; ++i) {
    totals[i] += static_cast<double>(sums[i]);
    sums[i] = T(0);
  }
}

// Sums by slots to sums by channels.
template <class T>
inline __attribute__((always_inline)) void norm_unslot(const double* slots, int64_t channels, double* out) {
  norm_vectors<T>(channels, [&](int64_t channel, int64_t slot) {
    for (int64_t i = 0; i < VecOf<T>::lanes && channel + i < channels; ++i) out[channel + i] = slots[slot + i];
  });
}

}  // namespace GF_LEVEL
}  // namespace gan_fast
