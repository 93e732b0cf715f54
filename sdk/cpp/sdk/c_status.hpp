// What the two halves of the C interface share: no exception leaves it.
#pragma once

#include <exception>
#include <string>

#include "uniecs/uniecs.h"
#include "uniecs/uniecs.hpp"

struct uniecs_encoder {
    uniecs::Encoder encoder;
};

namespace uniecs::c {

// The status of an error, and its words in `message`.
uniecs_status status_of(const std::exception_ptr& error, std::string& message) noexcept;

// Of this thread's last call that failed.
std::string& last_error();

template <typename Work>
uniecs_status guarded(Work work) noexcept {
    try {
        work();
        return UNIECS_OK;
    } catch (...) {
        return status_of(std::current_exception(), last_error());
    }
}

void require(const void* pointer, const char* name);

Item item_of(const uniecs_item& given);
std::optional<Image> image_of(const char* path, const void* data, std::size_t bytes);

}  // namespace uniecs::c
