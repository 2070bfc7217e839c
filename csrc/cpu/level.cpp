// Compiles one kernel text for one level: the build defines GF_KERNEL ("<name>-inl.h"), GF_LEVEL and GF_VECTOR_BYTES
// and gives the level's instruction-set flags.
#include <cstddef>
#include <cstdint>

#include GF_KERNEL
