// Working memory of one thread: grows to the largest call seen and is reused, so that a step allocates nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace step35 {

class Scratch {
  public:
    // Uninitialised bytes, aligned to a cache line, valid until reset().
    void* take(std::size_t num_bytes);

    // Ends the life of everything taken. Merges what was taken into one piece for the next call.
    void reset();

  private:
    struct Piece {
        std::unique_ptr<std::byte[]> bytes;
        std::size_t capacity;
    };
    std::vector<Piece> pieces_;
    std::size_t used_in_last_ = 0;
};

}  // namespace step35
