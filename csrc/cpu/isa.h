// Which instruction-set level the kernels run at: decided once from CPUID; GAN_FAST_CPU_ISA may only lower it.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "common/bf16.h"

namespace gan_fast {

enum class Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmxBf16 = 4 };

constexpr int kMostLanes = 16;  // floats in the widest vector of any level

const char* isa_name(Isa isa);

// Levels that are compiled in and that this CPU and operating system can run, best first.
std::vector<Isa> isa_levels();

// The level in use. The first call reads GAN_FAST_CPU_ISA and throws std::invalid_argument if that is unknown or unsupported.
Isa current_isa();

// Test hook: any of isa_levels(), by name. Throws std::invalid_argument otherwise.
void set_isa(const std::string& name);

// Whether the system tells of 2 MB and more of L2, as Intel's cores have since 2023. Such a core, measured on an Emerald Rapids, also
// multiplies twice as fast as Zen 4's: longer chunks pay there, and forms that save little do not.
bool roomy_near_cache();

// Whether a core computes vectors of 64 bytes whole. Zen 4 does so in halves: products take twice as long, and what is not computed weighs
// half as much beside them.
bool whole_vectors();

// Test hook: as if a core had so many bytes, and whole vectors if that is roomy; -1: what the system tells of both.
void set_near_cache(int64_t bytes);

// One kernel table per level. avx512_bf16 and amx_bf16 differ from avx512 only in kernels that use bf16 instructions.
template <class Table>
struct PerLevel {
  const Table* avx512;
  const Table* avx2;
  const Table* portable;

  const Table& current() const {
    switch (current_isa()) {
      case Isa::kAmxBf16:
      case Isa::kAvx512Bf16:
      case Isa::kAvx512:
        return *avx512;
      case Isa::kAvx2:
        return *avx2;
      case Isa::kPortable:
        break;
    }
    return *portable;
  }
};

}  // namespace gan_fast

namespace gan_fast {

// The functions for elements of type S in a table with the members f32, f64 and bf16.
template <class S, class Table>
const auto& functions_of(const Table& table) {
  if constexpr (std::is_same_v<S, double>) {
    return table.f64;
  } else if constexpr (std::is_same_v<S, float>) {
    return table.f32;
  } else {
    return table.bf16;
  }
}

// The function for a dtype's code (0 float, 1 double, 2 bfloat16), if it has one type for all: double is in `portable` only.
template <class Table>
auto function_for(int dtype, const Table& table, const Table& portable) {
  return dtype == 1 ? portable.f64 : dtype == 2 ? table.bf16 : table.f32;
}

}  // namespace gan_fast

// Declares gan_fast::<level>::<name> for the levels that this build has, the inline chooser <name>_for_level(), and <name>_for<T>():
// double, which only proves kernel texts, runs at the portable level.
#define GAN_FAST_DECLARE_TABLE(Table, name)         \
  GAN_FAST_DECLARE_LEVELS(Table, name)              \
  template <class T>                                \
  const Table& name##_for() {                       \
    if constexpr (std::is_same_v<T, double>) {      \
      return portable::name;                        \
    } else {                                        \
      return name##_for_level();                    \
    }                                               \
  }

#ifdef GAN_FAST_X86
#define GAN_FAST_DECLARE_LEVELS(Table, name)                                                 \
  namespace avx512 { extern const Table name; }                                              \
  namespace avx2 { extern const Table name; }                                                \
  namespace portable { extern const Table name; }                                            \
  inline const Table& name##_for_level() {                                                   \
    static const PerLevel<Table> levels{&avx512::name, &avx2::name, &portable::name};        \
    return levels.current();                                                                 \
  }
#else
#define GAN_FAST_DECLARE_LEVELS(Table, name)      \
  namespace portable { extern const Table name; } \
  inline const Table& name##_for_level() { return portable::name; }
#endif
