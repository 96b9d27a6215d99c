// Owners of what the kernel lends: file descriptors and mappings of sealed memfds. Nothing here has a name in a file
// system, so nothing can be left behind.
#pragma once

#include <cstddef>
#include <utility>

namespace step35 {

class Fd {
  public:
    explicit Fd(int fd = -1) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Fd();

    int get() const { return fd_; }
    bool is_open() const { return fd_ >= 0; }

  private:
    int fd_;
};

// A shared, writable mapping of a whole memfd.
class Mapping {
  public:
    Mapping() = default;
    // Throws std::system_error; std::invalid_argument when the file can shrink under us or is smaller than `bytes`.
    Mapping(const Fd& memfd, size_t bytes);
    Mapping(Mapping&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Mapping& operator=(Mapping&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Mapping();

    std::byte* data() const { return data_; }

  private:
    std::byte* data_ = nullptr;
    size_t bytes_ = 0;
};

// A zeroed memfd of fixed size. Throws std::system_error.
Fd create_sealed_memory(size_t bytes);

[[noreturn]] void throw_errno(const char* what);

}  // namespace step35
