// A block of CUDA threads on a CPU: csrc/cuda/device.h's interface, the threads' parts run one after the other.
//
// What a device would not tell is an error here: a load or store outside of the tensors or not on its own alignment, a read of
// memory that nothing wrote (poisoned with NaN), and a result that depends on the order of the threads (run both ways).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/products.h"

namespace gan_fast::cuda {

class Emulated {
 public:
  template <class T>
  class PerThread {
   public:
    PerThread() : own_(kThreads) {}
    T& operator[](int thread) { return own_[thread]; }

   private:
    std::vector<T> own_;
  };

  explicit Emulated(bool backwards) : backwards_(backwards) {}

  // Memory that kernels may read, or write; shared memory needs both.
  void may_read(const void* p, size_t bytes) { readable_.emplace_back(start(p), start(p) + bytes); }
  void may_write(const void* p, size_t bytes) { writable_.emplace_back(start(p), start(p) + bytes); }

  template <class F>
  void threads(F f) {
    for (int i = 0; i < kThreads; ++i) f(backwards_ ? kThreads - 1 - i : i);
  }
  template <class F>
  void warps(F f) {
    for (int i = 0; i < kWarps; ++i) f(backwards_ ? kWarps - 1 - i : i);
  }
  template <class F>
  void lanes(int warp, F f) {
    for (int i = 0; i < kWarp; ++i) {
      const int lane = backwards_ ? kWarp - 1 - i : i;
      f(lane, warp * kWarp + lane);
    }
  }
  void sync() {}

  template <class T>
  T load(const T* p) {
    inside(readable_, p, sizeof(T), "load");
    return *p;
  }
  Chunk load_chunk(const void* p) {
    inside(readable_, p, sizeof(Chunk), "load");
    Chunk c;
    std::memcpy(&c, p, sizeof(c));
    return c;
  }
  template <class T>
  void store(T* p, T value) {
    inside(writable_, p, sizeof(T), "store");
    *p = value;
  }
  void store_chunk(void* p, const Chunk& c) {
    inside(writable_, p, sizeof(Chunk), "store");
    std::memcpy(p, &c, sizeof(c));
  }

  bool arrive_last(uint32_t* counter, int blocks) {
    inside(writable_, counter, sizeof(*counter), "store");
    const bool last = *counter == static_cast<uint32_t>(blocks - 1);
    *counter = last ? 0 : *counter + 1;
    return last;
  }
  double load_fresh(const double* p) {
    inside(writable_, p, sizeof(*p), "load");
    return *p;
  }

  static float as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
  }
  static uint32_t as_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
  }
  static uint32_t round_to_tf32(uint32_t bits) { return (bits + 0x1000u) & ~0x1fffu; }  // ties away from zero

  template <Product P>
  static float widen(Element<P> bits) {
    if constexpr (P == kBfloat16) {
      return as_float(static_cast<uint32_t>(bits) << 16);
    } else if constexpr (P == kFloat16) {
      const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
      const float sign = bits >> 15 ? -1.0f : 1.0f;
      if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
      return sign * (exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(float(mantissa), -24));
    } else {
      return as_float(bits);
    }
  }
  template <Product P>
  static Element<P> narrow(float x) {
    if constexpr (P == kBfloat16) {
      const uint32_t bits = as_bits(x);
      return x != x ? 0x7fc0 : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    } else if constexpr (P == kFloat16) {
      if (x != x) return 0x7e00;
      const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
      const float size = std::fabs(x);
      if (size >= 65520.0f) return sign | 0x7c00;
      int exponent;
      std::frexp(size, &exponent);
      const int step = size == 0.0f || exponent < -13 ? -24 : exponent - 11;  // spacing: 2^step
      const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, -step)));
      return sign | static_cast<uint16_t>(step == -24 ? units : (static_cast<uint32_t>(step + 25) << 10) + units - 1024);
    } else {
      return as_bits(x);
    }
  }

  // The instruction, by its definition: the operands' elements are found where products.h says that the threads hold them.
  template <Product P, class Sums, class A, class B>
  void multiply(int warp, Sums sums, A a, B b) {
    float total[kRows][kColumns];
    for (int row = 0; row < kRows; ++row) {
      for (int column = 0; column < kColumns; ++column) {
        double sum = 0;
        for (int word = 0; word < kWords; ++word) {
          const uint32_t x = a(warp * kWarp + row % 8 * 4 + word % 4)[row / 8 + word / 4 * 2];
          const uint32_t y = b(warp * kWarp + column * 4 + word % 4)[word / 4];
          if constexpr (is_half(P)) {
            sum += double(widen<P>(x & 0xffff)) * widen<P>(y & 0xffff) + double(widen<P>(x >> 16)) * widen<P>(y >> 16);
          } else {
            if ((x | y) & 0x1fff) throw std::logic_error("an operand was not rounded to TF32");
            sum += double(as_float(x)) * as_float(y);
          }
        }
        total[row][column] = static_cast<float>(sum);
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {
        sums(warp * kWarp + lane)[i] += total[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
      }
    }
  }

  template <class At>
  void sum_over_group(int warp, At at) {
    for (int first = warp * kWarp; first < (warp + 1) * kWarp; first += 4) {
      const float sum = (at(first) + at(first + 1)) + (at(first + 2) + at(first + 3));
      for (int i = 0; i < 4; ++i) at(first + i) = sum;
    }
  }

 private:
  using Range = std::pair<uintptr_t, uintptr_t>;

  static uintptr_t start(const void* p) { return reinterpret_cast<uintptr_t>(p); }
  static void inside(const std::vector<Range>& ranges, const void* p, size_t bytes, const char* what) {
    if (start(p) % bytes != 0) throw std::logic_error(std::string(what) + " of " + std::to_string(bytes) + " bytes off its alignment");
    for (const auto& [first, last] : ranges) {
      if (start(p) >= first && start(p) + bytes <= last) return;
    }
    throw std::logic_error(std::string(what) + " outside of the tensors");
  }

  bool backwards_;
  std::vector<Range> readable_, writable_;
};

// Shared memory with NaN all over, exactly as much as a kernel asks for.
class Shared {
 public:
  explicit Shared(size_t bytes) : memory_(bytes / sizeof(Chunk) + 1), bytes_(bytes) {}
  void* poisoned(Emulated& machine) {
    std::memset(memory_.data(), 0xff, memory_.size() * sizeof(Chunk));
    machine.may_write(memory_.data(), bytes_);
    return memory_.data();
  }

 private:
  std::vector<Chunk> memory_;
  size_t bytes_;
};

}  // namespace gan_fast::cuda
