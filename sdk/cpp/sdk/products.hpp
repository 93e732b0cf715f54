// Products as they are given, and as they are stored: what counts as absent, and what cannot be used, as
// sdk/uniecs/catalog.py has it.
#pragma once

#include "../store/format.hpp"
#include "uniecs/uniecs.hpp"

namespace uniecs {

// A blank path is none.
bool has_image(const Product& product);

// Throws InputError or TextError for a product that cannot be used.
store::Record record_of(const Product& product);

}  // namespace uniecs
