// Runs a fuzzer on given files, for compilers without libFuzzer: tests/test_cpp_fuzz.py runs the corpora.
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

// libFuzzer's; nothing is mutated here.
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t*, std::size_t size, std::size_t) { return size; }

int main(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
        std::puts(argv[i]);
        std::fflush(stdout);
        std::ifstream file(argv[i], std::ios::binary);
        const std::string data{std::istreambuf_iterator<char>(file), {}};
        LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(data.data()), data.size());
    }
    return argc > 1 ? 0 : 2;
}
