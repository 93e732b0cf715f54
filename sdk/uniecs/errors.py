"""The one error tree of uniecs: every error a caller can meet is a `UniecsError`.

UniecsError
├── InputError            an argument or an item that cannot be used (also a ValueError)
│   ├── ImageError        an image that is missing, damaged, too large or of an unknown kind
│   ├── TextError         a text that is empty, not a string, or not encodable
│   └── FilterError       a `where` filter with an unknown key or an unusable value
├── ConfigError           a configuration with an unknown key or a value out of range
├── CatalogError          a catalogue file that cannot be read at all
├── BundleError           a model bundle that is missing, damaged, foreign or too new
├── IndexFileError        an index folder that is missing, damaged, foreign or too new
├── ModelMismatchError    vectors of one model met another model
├── BackendError          a backend, device or precision that is not available here
│   └── EngineMismatchError  a TensorRT engine that is damaged, or was built for something else
├── MissingExtraError     an optional dependency that is not installed
├── CheckpointError       a training checkpoint that is missing, damaged or does not fit
├── TrainingError         a training run that cannot start or go on
└── ParityError           a graph that does not give the answers it must
"""

from __future__ import annotations


class UniecsError(Exception):
    """Base of every error raised by uniecs; the message gives what was got, what was expected, what to do."""


class InputError(UniecsError, ValueError):
    """An argument or an item that cannot be used."""


class ImageError(InputError):
    """An image that is missing, damaged, too large or of an unknown kind."""


class TextError(InputError):
    """A text that is empty, not a string, or not encodable."""


class FilterError(InputError):
    """A `where` filter with an unknown key or an unusable value."""


class ConfigError(UniecsError):
    """A configuration with an unknown key or a value out of range."""


class CatalogError(UniecsError):
    """A catalogue file that cannot be read at all."""


class BundleError(UniecsError):
    """A model bundle that is missing, damaged, foreign or of a newer format."""


class IndexFileError(UniecsError):
    """An index folder that is missing, damaged, foreign or of a newer format."""


class ModelMismatchError(UniecsError):
    """Vectors of one model met another model."""


class BackendError(UniecsError):
    """A backend, device or precision that is not available on this machine."""


class EngineMismatchError(BackendError):
    """A TensorRT engine that is damaged, or was built for another model, GPU, driver or TensorRT."""


class MissingExtraError(UniecsError):
    """An optional dependency that is not installed; the message names the extra to install."""


class CheckpointError(UniecsError):
    """A training checkpoint that is missing, damaged or does not fit."""


class TrainingError(UniecsError):
    """A training run that cannot start or go on."""


class ParityError(UniecsError):
    """A graph that does not give the answers it must."""
