// The lock file of an index folder: one writer at a time, over all processes and languages, and within one.
//
// The lock is the operating system's on the open file, so it ends with its process, however that ends. The
// file's text only serves the message that a second writer gets; the file itself stays.
#pragma once

#include <string>

namespace uniecs::store {

class WriterLock {
  public:
    // The lock of the index in `folder`, which need not exist yet. Not to be shared by threads unguarded.
    explicit WriterLock(std::string folder) : folder_(std::move(folder)) {}
    ~WriterLock() { release(); }
    WriterLock(WriterLock&& other) noexcept : folder_(std::move(other.folder_)), file_(other.file_) {
        other.file_ = -1;
    }
    WriterLock& operator=(WriterLock&&) = delete;

    bool held() const { return file_ >= 0; }
    // Does nothing if held. Throws IndexFileError naming the process that has it.
    void acquire();
    void release() noexcept;

  private:
    std::string folder_;
    int file_ = -1;
};

}  // namespace uniecs::store
