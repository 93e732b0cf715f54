// The path of a folder that stays the same when the process goes to another one.
#pragma once

#include <filesystem>
#include <string>

#include "uniecs/errors.hpp"

namespace uniecs {

// As it is where the folder that the process is in is gone. Throws InputError.
inline std::string absolute_path(const std::string& path) {
    if (path.find('\0') != std::string::npos)  // the file system would take what is before it
        throw InputError("the path '" + std::string(path.c_str()) +
                         "' goes on after a zero byte; expected the path of a folder");
    std::error_code failed;
    const std::filesystem::path found = std::filesystem::absolute(path, failed);
    return failed ? path : found.string();
}

}  // namespace uniecs
