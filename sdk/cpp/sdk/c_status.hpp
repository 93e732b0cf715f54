// What the two halves of the C interface share: no exception leaves it.
#pragma once

#include <exception>
#include <string>
#include <vector>

#include "uniecs/uniecs.h"
#include "uniecs/uniecs.hpp"

struct uniecs_encoder {
    uniecs::Encoder encoder;
};

struct uniecs_report {
    uniecs::AddReport report;
    std::vector<uniecs_rejection> rejections;  // their texts are in `report`
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

// What a call makes is NULL until it is made, also for a caller who frees it whatever happened.
template <typename T>
void clear(T** made, const char* name) {
    require(made, name);
    *made = nullptr;
}

Item item_of(const uniecs_item& given);
std::optional<Image> image_of(const char* path, const void* data, std::size_t bytes);

// What n things given are made into, but for those that have an error instead.
template <typename T>
struct Made {
    std::vector<T> good;
    std::vector<size_t> places;              // of the good among all
    std::vector<std::exception_ptr> errors;  // of all
};

template <typename T, typename Given>
Made<T> made_of(const Given* given, size_t n, T make(const Given&)) {
    Made<T> made;
    made.errors.resize(n);
    for (size_t i = 0; i < n; ++i) {
        try {
            made.good.push_back(make(given[i]));
            made.places.push_back(i);
        } catch (const Error&) {
            made.errors[i] = std::current_exception();
        }
    }
    return made;
}

// Into `out`, if there is one.
void keep_report(AddReport report, uniecs_report** out);

}  // namespace uniecs::c
