#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

namespace step35 {

void throw_errno(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

Fd::~Fd() {
    if (fd_ >= 0) close(fd_);
}

Mapping::Mapping(const Fd& memfd, size_t bytes) : bytes_(bytes) {
    // A file that shrinks turns our next access into SIGBUS: the seal is what makes a peer's memory safe to touch.
    const int seals = fcntl(memfd.get(), F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        throw std::invalid_argument("the memory is not sealed against shrinking");
    struct stat info{};
    if (fstat(memfd.get(), &info) < 0) throw_errno("fstat");
    if (static_cast<size_t>(info.st_size) < bytes) throw std::invalid_argument("the memory is smaller than agreed");
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd.get(), 0);
    if (data == MAP_FAILED) throw_errno("mmap");
    data_ = static_cast<std::byte*>(data);
}

Mapping::~Mapping() {
    if (data_ != nullptr) munmap(data_, bytes_);
}

Fd create_sealed_memory(size_t bytes) {
    Fd memfd(memfd_create("step35", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!memfd.is_open()) throw_errno("memfd_create");
    if (ftruncate(memfd.get(), static_cast<off_t>(bytes)) < 0) throw_errno("ftruncate");
    if (fcntl(memfd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) throw_errno("F_ADD_SEALS");
    return memfd;
}

}  // namespace step35
