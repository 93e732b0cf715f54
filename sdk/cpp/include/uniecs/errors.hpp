// What uniecs throws, named as in Python (sdk/uniecs/errors.py). The message gives what was got, what was
// expected, and what to do. A wrong call of the index core stays std::invalid_argument, a damaged snapshot
// SnapshotError.
//
// Error
// |-- InputError          an argument or an item that cannot be used
// |   |-- ImageError      an image that is missing, damaged, too large or of an unknown kind
// |   |-- TextError       a text that is empty, too long, or not UTF-8
// |   `-- FilterError     a `where` filter with an unknown key or an unusable value
// |-- BundleError         a model bundle that is missing, damaged, foreign or of a newer format
// |-- IndexFileError      an index folder that is missing, damaged, foreign or of a newer format
// |-- ModelMismatchError  vectors of one model met another model
// `-- BackendError        an engine, device or precision that is not available, or that failed
//     `-- EngineMismatchError  a TensorRT engine that is damaged, or was built for something else
#pragma once

#include <stdexcept>

namespace uniecs {

class Error : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

class InputError : public Error {
    using Error::Error;
};

class ImageError : public InputError {
    using InputError::InputError;
};

class TextError : public InputError {
    using InputError::InputError;
};

class FilterError : public InputError {
    using InputError::InputError;
};

class BundleError : public Error {
    using Error::Error;
};

class IndexFileError : public Error {
    using Error::Error;
};

class ModelMismatchError : public Error {
    using Error::Error;
};

class BackendError : public Error {
    using Error::Error;
};

class EngineMismatchError : public BackendError {
    using BackendError::BackendError;
};

}  // namespace uniecs
