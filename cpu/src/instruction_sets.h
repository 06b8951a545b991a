// Declares an exported kernel of every instruction set that was built, and picks among them at run time.
//
//   QF_DECLARE(void, conv_direct_f32, (const ConvArguments*))
//   conv_direct_f32(isa)(&arguments);      // isa: a number below ISA_COUNT that isa_supported() accepts
//
// QF_HAS_<SET> macros come from setup.py's INSTRUCTION_SETS. With QF_EMULATED_V4, v4 and those beyond it run where v3 does.
// What is not compiled for v4_vnni and v4_amx serves them as it does v4. QF_DECLARE_VNNI declares a kernel that also has an
// instance for v4_vnni, which serves v4_amx, too, and QF_DECLARE_AMX one that also has an instance for v4_amx;
// QF_DECLARE_VNNI_ALONE one that has no other than v4_vnni's, and QF_DECLARE_AMX_ALONE one that has v4_amx's alone. These two
// are null for the sets before.
#pragma once

#if defined(QF_HAS_V4) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(QF_HAS_V4)
#define QF_DECLARE_SETS(result, name, arguments) \
  extern "C" result name##_portable arguments;   \
  extern "C" result name##_v2 arguments;         \
  extern "C" result name##_v3 arguments;         \
  extern "C" result name##_v4 arguments;
#define QF_DECLARE(result, name, arguments)        \
  QF_DECLARE_SETS(result, name, arguments)         \
  inline auto name(int isa) -> result(*) arguments { \
    result(*const table[]) arguments = {name##_portable, name##_v2, name##_v3, name##_v4, name##_v4, name##_v4}; \
    return table[isa];                             \
  }
#define QF_DECLARE_VNNI(result, name, arguments)   \
  QF_DECLARE_SETS(result, name, arguments)         \
  extern "C" result name##_v4_vnni arguments;      \
  inline auto name(int isa) -> result(*) arguments { \
    result(*const table[]) arguments = {name##_portable, name##_v2,      name##_v3, \
                                        name##_v4,       name##_v4_vnni, name##_v4_vnni}; \
    return table[isa];                             \
  }
#define QF_DECLARE_AMX(result, name, arguments)    \
  QF_DECLARE_SETS(result, name, arguments)         \
  extern "C" result name##_v4_amx arguments;       \
  inline auto name(int isa) -> result(*) arguments { \
    result(*const table[]) arguments = {name##_portable, name##_v2, name##_v3, \
                                        name##_v4,       name##_v4, name##_v4_amx}; \
    return table[isa];                             \
  }
#define QF_DECLARE_VNNI_ALONE(result, name, arguments) \
  extern "C" result name##_v4_vnni arguments;           \
  inline auto name(int isa) -> result(*) arguments { return isa >= 4 ? name##_v4_vnni : nullptr; }
#define QF_DECLARE_AMX_ALONE(result, name, arguments) \
  extern "C" result name##_v4_amx arguments;           \
  inline auto name(int isa) -> result(*) arguments { return isa == 5 ? name##_v4_amx : nullptr; }
#else
#define QF_DECLARE(result, name, arguments)    \
  extern "C" result name##_portable arguments; \
  inline auto name(int) -> result(*) arguments { return name##_portable; }
#define QF_DECLARE_VNNI QF_DECLARE
#define QF_DECLARE_AMX QF_DECLARE
#define QF_DECLARE_VNNI_ALONE(result, name, arguments) \
  inline auto name(int) -> result(*) arguments { return nullptr; }
#define QF_DECLARE_AMX_ALONE QF_DECLARE_VNNI_ALONE
#endif

static const char* const ISA_NAMES[] = {"portable", "v2", "v3", "v4", "v4_vnni", "v4_amx"};

// Whether it is made out of another one's instructions.
inline bool isa_emulated([[maybe_unused]] int isa) {
#if defined(QF_EMULATED_V4)
  return isa >= 3;
#else
  return false;
#endif
}

#if defined(QF_HAS_V4)
constexpr int ISA_COUNT = 6;

// Whether the processor has tile registers and Linux lets this process use them, for which it has to be asked once.
inline bool tiles_usable() {
#if defined(__linux__)
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25;
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return (~edx & (BF16 | TILE | INT8)) == 0 && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return false;
#endif
}

// The features that each level adds, as far as the compiler may use them.
inline bool isa_supported(int isa) {
  __builtin_cpu_init();
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("popcnt");
  const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
#if defined(QF_EMULATED_V4)
  const bool v4 = v3, vnni = v3, amx = v3;
#else
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  const bool vnni = v4 && __builtin_cpu_supports("avx512vnni");
  static const bool amx = vnni && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
                          __builtin_cpu_supports("avx512vbmi2") && tiles_usable();
#endif
  const bool supported[] = {true, v2, v3, v4, vnni, amx};
  return supported[isa];
}
#else
constexpr int ISA_COUNT = 1;
inline bool isa_supported(int isa) { return isa == 0; }
#endif
