// libFuzzer on the image decoders: any bytes give a picture or an ImageError.
//
//   cmake -S sdk/cpp -B build-fuzz -DUNIECS_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++
//   cmake --build build-fuzz --target image_fuzzer
//   build-fuzz/image_fuzzer -max_len=65536 -timeout=60 -rss_limit_mb=4096 NEW_CORPUS sdk/cpp/fuzz/corpus
#include "../images/decode.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const uniecs::ImagePreprocessing preprocessing{40, 30, {0.5, 0.5, 0.5}, {0.5, 0.5, 0.5}};
    try {
        uniecs::image_pixel_values({data, size}, preprocessing);
    } catch (const uniecs::ImageError&) {
    }
    return 0;
}
