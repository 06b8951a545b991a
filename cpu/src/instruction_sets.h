// Declares an exported kernel of every instruction set that was built, and picks among them at run time.
//
//   QF_DECLARE(void, conv_direct_f32, (const ConvArguments*))
//   conv_direct_f32(isa)(&arguments);      // isa: a number below ISA_COUNT that isa_supported() accepts
//
// QF_HAS_<SET> macros come from setup.py's INSTRUCTION_SETS. With QF_EMULATED_V4, v4 runs where v3 does.
#pragma once

#if defined(QF_HAS_V4)
#define QF_DECLARE(result, name, arguments)   \
  extern "C" result name##_portable arguments; \
  extern "C" result name##_v2 arguments;       \
  extern "C" result name##_v3 arguments;       \
  extern "C" result name##_v4 arguments;       \
  inline auto name(int isa) -> result(*) arguments { \
    result(*const table[]) arguments = {name##_portable, name##_v2, name##_v3, name##_v4}; \
    return table[isa];                         \
  }
#else
#define QF_DECLARE(result, name, arguments)    \
  extern "C" result name##_portable arguments; \
  inline auto name(int) -> result(*) arguments { return name##_portable; }
#endif

static const char* const ISA_NAMES[] = {"portable", "v2", "v3", "v4"};

// Whether it is made out of another one's instructions.
inline bool isa_emulated([[maybe_unused]] int isa) {
#if defined(QF_EMULATED_V4)
  return isa == 3;
#else
  return false;
#endif
}

#if defined(QF_HAS_V4)
constexpr int ISA_COUNT = 4;
// The features that each x86-64 level adds, as far as the compiler may use them.
inline bool isa_supported(int isa) {
  __builtin_cpu_init();
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("popcnt");
  const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
#if defined(QF_EMULATED_V4)
  const bool v4 = v3;
#else
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
#endif
  return isa == 0 || (isa == 1 && v2) || (isa == 2 && v3) || (isa == 3 && v4);
}
#else
constexpr int ISA_COUNT = 1;
inline bool isa_supported(int isa) { return isa == 0; }
#endif
