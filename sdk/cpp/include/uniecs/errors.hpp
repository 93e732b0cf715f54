// What the C++ SDK throws; kinds and names are those of uniecs/errors.py.
#pragma once

#include <stdexcept>

namespace uniecs {

class Error : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

// An image that is damaged, of an unknown kind, or too large.
class ImageError : public Error {
    using Error::Error;
};

}  // namespace uniecs
