# The instruction sets of this build and whether the processor has them (src/instruction_sets.h).

cdef extern from "instruction_sets.h" nogil:
    const char* const* ISA_NAMES
    int ISA_COUNT
    bint isa_supported(int isa)
    bint isa_emulated(int isa)


def names():
    """The instruction sets that were built, the best one last."""
    return tuple(ISA_NAMES[isa].decode() for isa in range(ISA_COUNT))


def supported(int isa):
    """Whether this processor runs the instruction set of that number."""
    return 0 <= isa < ISA_COUNT and isa_supported(isa)


def emulated(int isa):
    """Whether the instruction set of that number is made out of another one's instructions, for tests."""
    return isa_emulated(isa)
