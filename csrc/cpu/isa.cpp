#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#ifdef GAN_FAST_X86
#include <cpuid.h>
#endif
#ifdef GAN_FAST_AMX
#include <sys/syscall.h>
#endif

namespace gan_fast {
namespace {

#ifdef GAN_FAST_AMX
// Whether the CPU has matrix registers with bf16 products, and Linux (from 5.16 on) lets this process use them: it wants to be asked
// first, and is not where GAN_FAST_CPU_ISA names another level. By CPUID's own bits: not all compilers know their names.
bool matrix_registers() {
  const char* wanted = std::getenv("GAN_FAST_CPU_ISA");
  if (wanted != nullptr && *wanted != '\0' && std::string(wanted) != isa_name(Isa::kAmxBf16)) return false;
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kBf16Products = 1u << 22, kRegisters = 1u << 24;
  if ((d & kBf16Products) == 0 || (d & kRegisters) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kRegisterData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kRegisterData) == 0;
}
#endif

std::vector<Isa> detect() {
  std::vector<Isa> levels;
#ifdef GAN_FAST_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#ifdef GAN_FAST_AMX
  if (bf16 && matrix_registers()) levels.push_back(Isa::kAmxBf16);
#endif
  if (avx512) levels.push_back(Isa::kAvx512);
  // An Emerald Rapids issues one VDPBF16PS of 64 bytes for every four FMAs (1.44 and 5.9 in a ns): widening the operands for FMAs is twice
  // as fast there. Taken for all of Intel's; AMD's issue as many of the one as of the other.
  if (bf16) levels.insert(__builtin_cpu_is("intel") ? levels.end() : levels.end() - 1, Isa::kAvx512Bf16);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) levels.push_back(Isa::kAvx2);
#endif
  levels.push_back(Isa::kPortable);
  return levels;
}

Isa parse(const std::string& name, const char* source) {
  std::string known;
  for (Isa isa : isa_levels()) {
    if (name == isa_name(isa)) return isa;
    known += known.empty() ? "" : ", ";
    known += isa_name(isa);
  }
  throw std::invalid_argument(std::string(source) + "='" + name + "': expected one of the levels this CPU can run: " + known);
}

// -1: not decided yet.
std::atomic<int> level{-1};

// -1: as the system tells.
std::atomic<int64_t> near_cache{-1};

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmxBf16:
      return "amx_bf16";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kPortable:
      break;
  }
  return "portable";
}

std::vector<Isa> isa_levels() {
  static const std::vector<Isa> levels = detect();
  return levels;
}

Isa current_isa() {
  const int known = level.load(std::memory_order_relaxed);
  if (known >= 0) return static_cast<Isa>(known);
  const char* wanted = std::getenv("GAN_FAST_CPU_ISA");
  const Isa isa = wanted != nullptr && *wanted != '\0' ? parse(wanted, "GAN_FAST_CPU_ISA") : isa_levels().front();
  level.store(static_cast<int>(isa), std::memory_order_relaxed);
  return isa;
}

bool roomy_near_cache() {
  constexpr int64_t kRoomy = 2 << 20;
  const int64_t set = near_cache.load(std::memory_order_relaxed);
  if (set >= 0) return set >= kRoomy;
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const bool roomy = sysconf(_SC_LEVEL2_CACHE_SIZE) >= kRoomy;
  return roomy;
#else
  return false;
#endif
}

bool whole_vectors() {
  if (near_cache.load(std::memory_order_relaxed) >= 0) return roomy_near_cache();
#ifdef GAN_FAST_X86
  static const bool zen4 = [] {
    __builtin_cpu_init();
    unsigned a = 0, b, c, d;
    if (!__builtin_cpu_is("amd") || __get_cpuid(1, &a, &b, &c, &d) == 0) return false;
    constexpr unsigned kZen3And4 = 0x19;
    return (a >> 8 & 0xf) + (a >> 20 & 0xff) == kZen3And4;
  }();
  return !zen4;
#else
  return true;
#endif
}

void set_near_cache(int64_t bytes) { near_cache.store(bytes, std::memory_order_relaxed); }

void set_isa(const std::string& name) {
  level.store(static_cast<int>(parse(name, "isa")), std::memory_order_relaxed);
}

}  // namespace gan_fast
