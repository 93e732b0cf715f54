// What uniecs throws, named as in Python (sdk/uniecs/errors.py). The message gives what was got and what was
// expected. A wrong call of the index core stays std::invalid_argument, a damaged snapshot SnapshotError.
#pragma once

#include <stdexcept>

namespace uniecs {

class Error : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

// An argument or an item that cannot be used.
class InputError : public Error {
    using Error::Error;
};

// A text that is empty, too long, or not UTF-8.
class TextError : public InputError {
    using InputError::InputError;
};

// A model bundle that is missing, damaged, foreign or of a newer format.
class BundleError : public Error {
    using Error::Error;
};

}  // namespace uniecs
