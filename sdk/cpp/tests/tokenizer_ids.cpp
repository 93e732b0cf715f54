// tokenizer_ids TOKENIZER_JSON MAX_TOKENS: reads texts, each after its length in bytes (four, little-endian),
// and prints the ids of each on a line. For the parity tests, and for sanitizers.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>

#include "../src/tokenizer.hpp"

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    std::ifstream file(argv[1], std::ios::binary);
    const std::string json{std::istreambuf_iterator<char>(file), {}};
    try {
        const uniecs::Tokenizer tokenizer(json, static_cast<std::size_t>(std::atoi(argv[2])));
        unsigned char head[4];
        std::string text;
        while (std::fread(head, 1, sizeof head, stdin) == sizeof head) {
            text.resize(head[0] | head[1] << 8 | head[2] << 16 | static_cast<std::size_t>(head[3]) << 24);
            if (std::fread(text.data(), 1, text.size(), stdin) != text.size()) return 2;
            for (uniecs::TokenId id : tokenizer.encode(text)) std::cout << id << ' ';
            std::cout << '\n';
        }
    } catch (const uniecs::Error& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
