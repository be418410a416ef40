// Simulated machines, whose times are known.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/draft_length.h"

namespace calandra {

// A machine as it really is: another shape than the model's roofline, other speeds than its first guess, noise.
struct Machine {
  std::string name;
  StepCost target, draft_pass;
  double bytes_per_second, flops_per_second;
  double launch_seconds = 0;  // of a step
  double pass_seconds = 0;    // of a draft pass, beside its bytes
  double correlation = 1;     // fraction of the experts that are modelled to be read
  double guess = 1;           // of both speeds, relative to the true ones
  double flops_guess = 1;     // and of the second once more
  double settling = 0;        // seconds that the first step of a kind takes longer, and some more do, ever less
  int sequences = 1;
  int64_t context = 1000;

  double roofline(const StepCost& c, const StepShape& s) const {
    if (s.rows == 0) return 0;
    StepCost cost = c;
    cost.expert_bytes *= correlation;
    const double bytes = cost.weight_bytes_of(s.rows) + static_cast<double>(s.sequences) * c.state_bytes +
                         static_cast<double>(s.keys) * c.kv_bytes_per_key;
    const double flops = static_cast<double>(s.rows) * c.flops_per_row +
                         static_cast<double>(s.logit_rows) * c.flops_per_logit_row +
                         static_cast<double>(s.row_keys) * c.flops_per_row_and_key;
    return std::max(bytes / bytes_per_second, flops / flops_per_second);
  }
  double step_seconds(const StepShape& s) const { return launch_seconds + roofline(target, s); }
  double drafting_seconds(const std::vector<StepShape>& passes) const {
    double sum = 0;
    for (const StepShape& pass : passes) sum += pass_seconds + roofline(draft_pass, pass);
    return draft_pass.weight_bytes > 0 ? sum : 0;
  }
};

inline StepCost dense(double parameters, double head, double bytes_per_parameter, double state_bytes, double kv_bytes) {
  StepCost cost;
  cost.weight_bytes = (parameters + head) * bytes_per_parameter;
  cost.flops_per_row = 2 * parameters;
  cost.flops_per_logit_row = 2 * head;
  cost.state_bytes = state_bytes;
  cost.kv_bytes_per_key = kv_bytes;
  cost.flops_per_row_and_key = 4 * kv_bytes;
  return cost;
}

// A 0.8B model in bf16 on a small CPU, and in batches up to where arithmetic binds.
inline Machine cpu(int sequences, double guess) {
  Machine m{"cpu x" + std::to_string(sequences), dense(0.5e9, 0.25e9, 2, 38e6, 12e3), dense(20e6, 33e6, 1, 0, 2e3),
            20e9, 300e9};
  m.sequences = sequences;
  m.guess = guess;
  m.launch_seconds = 2e-3;
  m.pass_seconds = 0.3e-3;
  return m;
}

// A 27B model on a large GPU.
inline Machine gpu(int sequences, double guess) {
  Machine m{"gpu x" + std::to_string(sequences), dense(24e9, 1.3e9, 2, 300e6, 64e3), dense(425e6, 170e6, 1.5, 0, 4e3),
            4.3e12, 700e12};
  m.sequences = sequences;
  m.guess = guess;
  m.context = 4000;
  m.launch_seconds = 0.3e-3;
  m.pass_seconds = 0.1e-3;
  return m;
}

// The whole output head for each draft, and host work: half a step per draft.
inline Machine expensive_head() {
  Machine m = cpu(1, 0.7);
  m.name = "expensive head";
  m.draft_pass = dense(20e6, 0.25e9, 2, 0, 2e3);
  m.pass_seconds = 10e-3;
  return m;
}

// 35B with 3B active, one byte per parameter: every row of a small batch reads other experts.
inline Machine moe(int sequences, double correlation) {
  Machine m{"moe x" + std::to_string(sequences), dense(1.4e9, 0.5e9, 1, 126e6, 20e3), dense(40e6, 33e6, 1, 0, 2e3),
            4.3e12, 1400e12};
  m.target.experts = 256;
  m.target.experts_per_row = 8;
  m.target.expert_bytes = 3.15e6 * 40;
  m.target.flops_per_row += 2 * 8 * 3.15e6 * 40;
  m.draft_pass.experts = 256;
  m.draft_pass.experts_per_row = 8;
  m.draft_pass.expert_bytes = 3.15e6;
  m.sequences = sequences;
  m.correlation = correlation;
  m.guess = 1.5;
  m.launch_seconds = 0.1e-3;
  return m;
}

// Steps without drafts, and with some, as long as they were guessed to be.
inline void measure(DraftLength& length, int sequences, int64_t context) {
  for (const int rows : {1, 3}) {
    StepShape step;
    for (int i = 0; i < sequences; ++i) step.add(rows, context, rows);
    for (int i = 0; i < 4; ++i) length.observe_step(step, length.step_seconds(step), false);
  }
}

}  // namespace calandra
