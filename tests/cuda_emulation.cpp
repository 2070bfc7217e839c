// The texts of csrc/cuda/*-inl.h as functions of ordinary memory, for tests/cuda_texts.py. Each returns what went wrong, or "".
#include "cuda_emulation.h"

#include "cuda/bce_with_logits-inl.h"
#include "cuda/conv-inl.h"
#include "cuda/conv_transpose-inl.h"
#include "cuda/conv_weight_grad-inl.h"

using namespace gan_fast;
using namespace gan_fast::cuda;

namespace {

std::string message;

template <class F>
const char* guarded(F f) {
  try {
    f();
    message.clear();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

ConvGeometry geometry_of(const int64_t* g) {
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]};
}

size_t size_of(Product p) { return is_half(p) ? 2 : 4; }

}  // namespace

extern "C" {

const char* conv(int product, const int64_t* numbers, const void* x, const void* w, const void* bias, void* y, int activation,
                 float slope, int backwards) {
  return guarded([&] {
    const auto p = static_cast<Product>(product);
    const ConvGeometry g = geometry_of(numbers);
    const ConvPlan plan = plan_conv(g, p);
    const ConvTensors tensors{x, w, bias, y, activation, slope};
    Emulated machine(backwards != 0);
    machine.may_read(x, g.batch * g.in_h * g.in_w * g.in_channels * size_of(p));
    machine.may_read(w, plan.columns * g.in_channels * size_of(p));
    machine.may_read(bias, g.out_channels * size_of(p));
    machine.may_write(y, g.batch * g.out_h * g.out_w * g.out_channels * size_of(p));
    with_conv_kernel(plan, tensors, p, [&](auto kind, auto tiles, auto aligned) {
      Shared shared(conv_shared(plan, decltype(tiles)::value));
      void* memory = shared.poisoned(machine);
      for (int block = 0; block < g.batch * plan.tiles_y * plan.tiles_x; ++block) {
        shared.poisoned(machine);
        conv_block<decltype(kind)::value, decltype(tiles)::value, decltype(aligned)::value>(machine, plan, tensors, block, memory);
      }
    });
  });
}

// tile_h, tile_w, blocks, slice_rows, shared bytes: what a geometry is cut into.
const char* conv_plan(int product, const int64_t* numbers, int64_t* found) {
  return guarded([&] {
    const auto p = static_cast<Product>(product);
    const ConvGeometry g = geometry_of(numbers);
    const ConvPlan plan = plan_conv(g, p);
    found[0] = plan.tile_h;
    found[1] = plan.tile_w;
    found[2] = g.batch * plan.tiles_y * plan.tiles_x;
    found[3] = plan.slice_rows;
    found[4] = static_cast<int64_t>(conv_shared(plan, conv_column_tiles(plan, p)));
  });
}

const char* conv_transpose(int product, const int64_t* numbers, const void* x, const void* w, const void* bias,
                           const void* prologue, void* y, int activation, float slope, int prologue_activation,
                           float prologue_slope, int backwards) {
  return guarded([&] {
    const auto p = static_cast<Product>(product);
    const ConvGeometry g = geometry_of(numbers);
    const TransposePlan plan = plan_transpose(g, p);
    const TransposeTensors tensors{x, w, bias, prologue, y, activation, prologue_activation, slope, prologue_slope};
    Emulated machine(backwards != 0);
    for (const void* read : {x, prologue}) machine.may_read(read, g.batch * g.in_h * g.in_w * g.in_channels * size_of(p));
    machine.may_read(w, int64_t{plan.inner} * plan.out_channels * size_of(p));
    machine.may_read(bias, g.out_channels * size_of(p));
    machine.may_write(y, g.batch * g.out_h * g.out_w * g.out_channels * size_of(p));
    with_transpose_kernel(plan, tensors, p, [&](auto kind, auto tiles, auto aligned) {
      Shared shared(transpose_shared(plan, p, decltype(tiles)::value));
      for (int block = 0; block < plan.groups * plan.walkers; ++block) {
        transpose_block<decltype(kind)::value, decltype(tiles)::value, decltype(aligned)::value>(machine, plan, tensors, block,
                                                                                                shared.poisoned(machine));
      }
    });
  });
}

// walkers, groups, parts, shared bytes: what a geometry is cut into.
const char* conv_transpose_plan(int product, const int64_t* numbers, int64_t* found) {
  return guarded([&] {
    const auto p = static_cast<Product>(product);
    const TransposePlan plan = plan_transpose(geometry_of(numbers), p);
    found[0] = plan.walkers;
    found[1] = plan.groups;
    found[2] = plan.parts;
    found[3] = static_cast<int64_t>(transpose_shared(plan, p, transpose_column_tiles(plan, p)));
  });
}

// parts: how many were added up.
const char* conv_weight_grad(int product, const int64_t* numbers, const void* few, const void* many, void* grad, int* parts,
                             int backwards) {
  return guarded([&] {
    const auto p = static_cast<Product>(product);
    const ConvGeometry g = geometry_of(numbers);
    const GradPlan plan = plan_grad(g, p);
    *parts = plan.parts;
    std::vector<float> partial(plan.parts * grad_elements(plan), NAN);
    const GradTensors tensors{few, many, partial.data(), grad};
    Emulated machine(backwards != 0);
    machine.may_read(few, g.batch * g.in_h * g.in_w * g.in_channels * size_of(p));
    machine.may_read(many, g.batch * g.out_h * g.out_w * g.out_channels * size_of(p));
    machine.may_read(partial.data(), partial.size() * sizeof(float));
    machine.may_write(partial.data(), partial.size() * sizeof(float));
    machine.may_write(grad, grad_elements(plan) * size_of(p));
    with_product(p, [&](auto kind) {
      constexpr Product P = decltype(kind)::value;
      Shared shared(sizeof(GradShared<P>));
      for (int block = 0; block < plan.parts * plan.row_groups * plan.groups; ++block) {
        grad_block<P>(machine, plan, tensors, block, *static_cast<GradShared<P>*>(shared.poisoned(machine)));
      }
      for (int block = 0; block < (grad_elements(plan) + kThreads - 1) / kThreads; ++block) {
        add_parts_block<P>(machine, plan, tensors, block);
      }
    });
  });
}

const char* bce_with_logits(int product, int64_t n, const void* x, const void* target, float target_value, const void* weight,
                            const void* pos_weight, int reduction, float scale, void* loss, void* grad, void* partial,
                            void* counter, int backwards) {
  return guarded([&] {
    const auto p = static_cast<Product>(product);
    const BceTensors tensors{n,         x,     target, weight, pos_weight, target_value, reduction, scale, loss, grad, static_cast<double*>(partial),
                             static_cast<uint32_t*>(counter)};
    Emulated machine(backwards != 0);
    for (const void* read : {x, target, weight, pos_weight}) machine.may_read(read, n * size_of(p));
    machine.may_write(loss, (reduction == kReduceNone ? n : 1) * size_of(p));
    machine.may_write(grad, n * size_of(p));
    const int blocks = bce_blocks(n);
    machine.may_write(partial, blocks * sizeof(double));
    machine.may_write(counter, sizeof(uint32_t));
    with_bce_kernel(p, [&](auto kind) {
      Shared shared(sizeof(BceShared));
      for (int block = 0; block < blocks; ++block) {
        bce_block<decltype(kind)::value>(machine, tensors, backwards ? blocks - 1 - block : block, blocks,
                                         *static_cast<BceShared*>(shared.poisoned(machine)));
      }
    });
  });
}

}
