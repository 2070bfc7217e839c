#include "common/plan.h"

#include <algorithm>
#include <utility>

#include "common/parallel.h"

namespace gan_fast {
namespace {

struct Recorder {
  bool on = false;
  Plan plan;
};

thread_local Recorder recorder;

}  // namespace

bool recording_plan() { return recorder.on; }

void note_loop(int64_t tasks) { recorder.plan.loops.push_back(tasks); }

void note_scratch(ScratchSlot slot, std::size_t bytes) {
  if (recorder.on) recorder.plan.scratch[slot] = std::max(recorder.plan.scratch[slot], bytes);
}

void note_winograd(int outputs) {
  if (recorder.on) recorder.plan.winograd = outputs;
}

void note_parts(int parts) {
  if (recorder.on) recorder.plan.parts = parts;
}

void begin_plan() {
  recorder.plan = Plan{};
  recorder.on = true;
}

Plan end_plan() {
  recorder.on = false;
  return std::exchange(recorder.plan, Plan{});
}

}  // namespace gan_fast
