// A path that stays the same when the process goes to another folder.
#pragma once

#include <filesystem>
#include <string>

namespace uniecs {

// As it is where the folder that the process is in is gone.
inline std::string absolute_path(const std::string& path) {
    std::error_code failed;
    const std::filesystem::path found = std::filesystem::absolute(path, failed);
    return failed ? path : found.string();
}

}  // namespace uniecs
