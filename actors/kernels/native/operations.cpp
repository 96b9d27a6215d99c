// All operations, compiled once per instruction set: STEP35_ISA is baseline, avx2 or avx512.
#include "operations.h"

#include <type_traits>

#include "attention.h"
#include "gate.h"
#include "mlp.h"

#define STEP35_STRING(name) #name
#define STEP35_NAME(name) STEP35_STRING(name)
#define STEP35_JOIN(a, b) a##b
#define STEP35_TABLE(isa) STEP35_JOIN(operations_, isa)

namespace step35 {

const Operations& STEP35_TABLE(STEP35_ISA)() {
    namespace isa = STEP35_ISA;
    static constexpr Operations kOperations{STEP35_NAME(STEP35_ISA), isa::gated_mlp, isa::dense_half,
                                            isa::expert_mlp,         isa::gate,      isa::head,
                                            isa::attention_half};
    return kOperations;
}

}  // namespace step35
