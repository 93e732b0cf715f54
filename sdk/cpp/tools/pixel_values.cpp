// Image files to raw `pixel_values`, for comparison with Python:
//
//   pixel_values HEIGHT WIDTH MEAN MEAN MEAN STD STD STD < paths > values
//
// Reads one path a line. Writes for each a 32-bit number and what it announces: 0 and the float32 values
// (3, HEIGHT, WIDTH), or the length of an error message and the message.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "../images/decode.hpp"

namespace {

void write(const void* data, std::size_t bytes) {
    std::cout.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
}

void answer(const std::string& path, const uniecs::ImagePreprocessing& preprocessing) {
    std::string message;
    std::vector<float> values;
    try {
        std::ifstream file(path, std::ios::binary);
        if (!file) throw uniecs::ImageError("cannot be opened");
        const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
        const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
        values = uniecs::image_pixel_values({data, bytes.size()}, preprocessing);
    } catch (const uniecs::ImageError& error) {
        message = error.what();
    }
    const auto size = static_cast<std::uint32_t>(message.size());
    write(&size, sizeof size);
    write(message.data(), message.size());
    write(values.data(), values.size() * sizeof(float));
    std::cout.flush();
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 9) {
        std::fprintf(stderr, "usage: %s HEIGHT WIDTH MEAN MEAN MEAN STD STD STD < paths\n", arguments[0]);
        return 2;
    }
    uniecs::ImagePreprocessing preprocessing;
    preprocessing.height_px = std::atoi(arguments[1]);
    preprocessing.width_px = std::atoi(arguments[2]);
    for (std::size_t i = 0; i < 3; ++i) {
        preprocessing.mean[i] = std::strtod(arguments[3 + i], nullptr);
        preprocessing.std[i] = std::strtod(arguments[6 + i], nullptr);
    }
    for (std::string path; std::getline(std::cin, path);) answer(path, preprocessing);
}
