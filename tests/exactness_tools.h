// What the tests that compare logits bit for bit share.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/sequence.h"

namespace calandra::testing {

// Of a demo model or a case of the oracle; empty when that is only in the shared one, which is not there.
std::filesystem::path folder_of(const std::string& model);

// Token ids drawn with a seed.
std::vector<int32_t> random_tokens(int64_t count, uint32_t seed, int64_t vocab_size);

// All of them are its prompt.
Sequence sequence_of(std::vector<int32_t> tokens);

bool same_bits(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace calandra::testing
