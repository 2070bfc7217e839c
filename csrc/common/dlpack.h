// The part of the DLPack ABI (version 0, "dltensor" capsules) that tensors in CPU memory need. Field order and widths are
// the protocol's; everything else is left out.
#pragma once

#include <cstdint>

namespace gan_fast {
namespace dlpack {

constexpr char kCapsuleName[] = "dltensor";  // the consumer renames the capsule and then owns the tensor

constexpr int32_t kDeviceCpu = 1;

constexpr uint8_t kCodeFloat = 2;
constexpr uint8_t kCodeBfloat = 4;

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* manager;
  void (*deleter)(ManagedTensor* self);
};

}  // namespace dlpack
}  // namespace gan_fast
