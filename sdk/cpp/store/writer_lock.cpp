#include "writer_lock.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <set>

#include "uniecs/errors.hpp"

namespace uniecs::store {
namespace {

// A forked process shares the open file, and with it the lock: it would keep it after its parent's death. So
// children close the files of all locks, which stand here. Never destroyed: an engine may be a global one.
std::mutex& guard() {
    static auto& mutex = *new std::mutex;
    return mutex;
}

std::set<int>& open_files() {
    static auto& files = *new std::set<int>;
    return files;
}

void close_all_in_child() {
    for (const int file : open_files()) ::close(file);
    open_files().clear();
    guard().unlock();
}

void note(int file) {
    static const int told =
        ::pthread_atfork([] { guard().lock(); }, [] { guard().unlock(); }, close_all_in_child);
    (void)told;
    const std::lock_guard<std::mutex> lock(guard());
    open_files().insert(file);
}

std::string owner_in(int file) {
    char text[1024];
    const ssize_t bytes = ::read(file, text, sizeof text);
    std::string owner(text, bytes > 0 ? static_cast<std::size_t>(bytes) : 0);
    while (!owner.empty() && std::strchr(" \n\r\t", owner.back())) owner.pop_back();
    return owner.empty() ? "another process" : owner;
}

}  // namespace

void WriterLock::acquire() {
    if (held()) return;
    const std::string path = folder_ + "/writer.lock";
    const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) throw IndexFileError(folder_ + " cannot be written: " + std::strerror(errno));
    while (::flock(file, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EINTR) continue;
        const int error = errno;
        const std::string owner = error == EWOULDBLOCK ? owner_in(file) : "";
        ::close(file);
        if (error == EWOULDBLOCK)
            throw IndexFileError(folder_ + " is being written by " + owner +
                                 "; one writer at a time: close the index there first");
        throw IndexFileError(path + " cannot be locked (" + std::strerror(error) +
                             "); put the index on another disk");
    }
    note(file);
    file_ = file;
    char host[256] = "";
    ::gethostname(host, sizeof host - 1);
    const std::string text = "process " + std::to_string(::getpid()) + " on " + host + "\n";
    // On a full disk the text may be missing; the lock holds all the same.
    if (::ftruncate(file, 0) != 0 || ::write(file, text.data(), text.size()) < 0) errno = 0;
}

void WriterLock::release() noexcept {
    if (file_ < 0) return;
    const int file = file_;
    file_ = -1;
    const std::lock_guard<std::mutex> lock(guard());
    if (!open_files().erase(file)) return;  // closed already, in a forked process
    if (::ftruncate(file, 0) != 0) errno = 0;
    ::close(file);
}

}  // namespace uniecs::store
