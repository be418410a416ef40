#include "weights/dummy_checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <mutex>
#include <numeric>
#include <thread>

#include "base/error.h"
#include "weights/dummy_weights.h"

namespace calandra {
namespace {

namespace fs = std::filesystem;
using StoredTensor = WeightStore::StoredTensor;

constexpr int64_t kPieceBytes = int64_t{4} << 20;  // written at a time

int64_t numel(const StoredTensor& tensor) {
  return std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
}
int64_t bytes_of(const StoredTensor& tensor) { return numel(tensor) * static_cast<int64_t>(size_of(tensor.dtype)); }

class File {
 public:
  explicit File(fs::path path)
      : path_(std::move(path)), fd_(open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (fd_ < 0) fail();
  }
  File(File&& other) noexcept : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  void write(const void* bytes, int64_t count, int64_t at) const {
    const auto* from = static_cast<const char*>(bytes);
    while (count > 0) {
      const ssize_t n = pwrite(fd_, from, static_cast<size_t>(count), at);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail();
      from += n;
      at += n;
      count -= n;
    }
  }

 private:
  [[noreturn]] void fail() const {
    throw LoadError(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
  }
  fs::path path_;
  int fd_;
};

struct Shard {
  std::vector<const StoredTensor*> tensors;
  int64_t bytes = 0;
};

// Rows of a matrix, or all of a small tensor.
struct Piece {
  size_t shard;
  const StoredTensor* tensor;
  int64_t first, rows, at;
};

// As safetensors begins: the length of the header and the header.
std::string head_of(const Shard& shard) {
  json::object header;
  int64_t offset = 0;
  for (const StoredTensor* tensor : shard.tensors) {
    json::array shape(tensor->shape.begin(), tensor->shape.end());
    header[tensor->name] = {{"dtype", safetensors_name(tensor->dtype)},
                            {"shape", std::move(shape)},
                            {"data_offsets", {offset, offset + bytes_of(*tensor)}}};
    offset += bytes_of(*tensor);
  }
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string head(8, '\0');
  for (int i = 0; i < 8; ++i) head[static_cast<size_t>(i)] = static_cast<char>(text.size() >> (8 * i));
  return head + text;
}

void add_pieces(size_t shard, const StoredTensor& tensor, int64_t at, std::vector<Piece>& pieces) {
  if (tensor.dtype == DType::kF32) return pieces.push_back({shard, &tensor, 0, 0, at});
  const int64_t row_bytes = tensor.K * static_cast<int64_t>(size_of(tensor.dtype));
  const int64_t rows = bytes_of(tensor) / row_bytes, most = std::max<int64_t>(1, kPieceBytes / row_bytes);
  for (int64_t first = 0; first < rows; first += most)
    pieces.push_back({shard, &tensor, first, std::min(most, rows - first), at + first * row_bytes});
}

void fill(const Piece& piece, std::vector<std::byte>& bytes) {
  const StoredTensor& tensor = *piece.tensor;
  if (tensor.dtype != DType::kF32) {
    bytes.resize(static_cast<size_t>(piece.rows * tensor.K) * size_of(tensor.dtype));
    return fill_dummy(tensor.name, piece.first, Tensor(bytes.data(), tensor.dtype, {piece.rows, tensor.K}));
  }
  bytes.resize(static_cast<size_t>(bytes_of(tensor)));
  const Tensor values(bytes.data(), DType::kF32, {numel(tensor)});
  if (tensor.K > 0)  // scales
    std::fill_n(values.as<float>(), values.numel(), dummy_scale(tensor.K));
  else
    fill_dummy(tensor.name, 0, values);
}

void write_index(const fs::path& folder, std::span<const Shard> shards, const std::vector<std::string>& names) {
  json::object map;
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    total += shards[i].bytes;
    for (const StoredTensor* tensor : shards[i].tensors) map[tensor->name] = names[i];
  }
  const std::string text =
      json::serialize(json::object{{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}});
  File(folder / "model.safetensors.index.json").write(text.data(), std::ssize(text), 0);
}

}  // namespace

void write_dummy_checkpoint(const fs::path& folder, std::span<const StoredTensor> tensors, int64_t shard_bytes,
                            int threads, const WeightStore::Progress& progress) {
  std::vector<const StoredTensor*> sorted;
  for (const StoredTensor& tensor : tensors) sorted.push_back(&tensor);
  // Wider types first, so that every tensor of a shard is aligned; otherwise as given.
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const StoredTensor* a, const StoredTensor* b) { return size_of(a->dtype) > size_of(b->dtype); });
  std::vector<Shard> shards(1);
  for (const StoredTensor* tensor : sorted) {
    if (shards.back().bytes > 0 && shards.back().bytes + bytes_of(*tensor) > shard_bytes) shards.emplace_back();
    shards.back().tensors.push_back(tensor);
    shards.back().bytes += bytes_of(*tensor);
  }

  std::vector<File> files;
  std::vector<std::string> names;
  std::vector<Piece> pieces;
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    names.push_back(shards.size() == 1 ? "model.safetensors"
                                       : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size()));
    files.emplace_back(folder / names[i]);
    const std::string head = head_of(shards[i]);
    files[i].write(head.data(), std::ssize(head), 0);
    int64_t at = std::ssize(head);
    for (const StoredTensor* tensor : shards[i].tensors) {
      add_pieces(i, *tensor, at, pieces);
      at += bytes_of(*tensor);
    }
    total += shards[i].bytes;
  }
  if (shards.size() > 1) write_index(folder, shards, names);
  // Writers of one file wait for each other: threads go through all files at once.
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.at < b.at; });

  std::atomic<size_t> next{0};
  std::atomic<int64_t> done{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    std::vector<std::byte> bytes;
    try {
      for (size_t i = next++; i < pieces.size(); i = next++) {
        fill(pieces[i], bytes);
        files[pieces[i].shard].write(bytes.data(), std::ssize(bytes), pieces[i].at);
        done += std::ssize(bytes);
        if (progress) progress(done, total);
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next = pieces.size();
    }
  };
  {
    std::vector<std::jthread> team;
    for (int i = 1; i < threads; ++i) team.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace calandra
