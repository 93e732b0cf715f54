#include "crc32c.hpp"

#include <array>
#include <cstring>

#include "x86.hpp"

namespace uniecs {
namespace {

constexpr std::uint32_t POLYNOMIAL = 0x82f63b78;  // reversed

std::uint32_t by_table(const unsigned char* data, std::size_t bytes, std::uint32_t crc) {
    static const auto table = [] {
        std::array<std::uint32_t, 256> made{};
        for (std::uint32_t i = 0; i < 256; ++i) {
            std::uint32_t value = i;
            for (int bit = 0; bit < 8; ++bit) value = value & 1 ? value >> 1 ^ POLYNOMIAL : value >> 1;
            made[i] = value;
        }
        return made;
    }();
    for (std::size_t i = 0; i < bytes; ++i) crc = table[(crc ^ data[i]) & 0xff] ^ crc >> 8;
    return crc;
}

#ifdef UNIECS_X86
__attribute__((target("sse4.2"))) std::uint32_t by_instruction(const unsigned char* data, std::size_t bytes,
                                                               std::uint32_t crc) {
    std::uint64_t wide = crc;
    for (; bytes >= 8; data += 8, bytes -= 8) {
        std::uint64_t word;
        std::memcpy(&word, data, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = static_cast<std::uint32_t>(wide);
    for (; bytes; ++data, --bytes) crc = _mm_crc32_u8(crc, *data);
    return crc;
}
#endif

}  // namespace

std::uint32_t crc32c(const void* data, std::size_t bytes, std::uint32_t before) {
    const auto* start = static_cast<const unsigned char*>(data);
#ifdef UNIECS_X86
    static const bool fast = [] {
        __builtin_cpu_init();
        return __builtin_cpu_supports("sse4.2") != 0;
    }();
    if (fast) return ~by_instruction(start, bytes, ~before);
#endif
    return ~by_table(start, bytes, ~before);
}

}  // namespace uniecs
