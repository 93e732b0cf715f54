#include "row_words.hpp"
#include "x86.hpp"

namespace uniecs {
namespace {

using Word64 = std::atomic<std::uint64_t>;
constexpr auto RELAXED = std::memory_order_relaxed;

// out[i] = of(a[i], b[i]). By plain pointers: the compiler reads anew what it may not keep beside atomics.
template <typename Of>
void combine(const Word64* a, const Word64* b, std::size_t n, Word64* out, Of of) {
    for (std::size_t i = 0; i < n; ++i) out[i].store(of(a[i].load(RELAXED), b[i].load(RELAXED)), RELAXED);
}

// Of the bits that are in both.
std::size_t count_portable(const Word64* a, const Word64* b, std::size_t n) {
    std::size_t total = 0;
    for (std::size_t i = 0; i < n; ++i) total += bits_in(a[i].load(RELAXED) & b[i].load(RELAXED));
    return total;
}

#ifdef UNIECS_X86
__attribute__((target("popcnt"))) std::size_t count_popcnt(const Word64* a, const Word64* b, std::size_t n) {
    std::size_t total = 0;
    for (std::size_t i = 0; i < n; ++i)
        total += static_cast<std::size_t>(__builtin_popcountll(a[i].load(RELAXED) & b[i].load(RELAXED)));
    return total;
}

std::size_t count_bits(const Word64* a, const Word64* b, std::size_t n) {
    static const bool popcnt = [] {
        __builtin_cpu_init();
        return __builtin_cpu_supports("popcnt") != 0;
    }();
    return popcnt ? count_popcnt(a, b, n) : count_portable(a, b, n);
}
#else
std::size_t count_bits(const Word64* a, const Word64* b, std::size_t n) { return count_portable(a, b, n); }
#endif

}  // namespace

RowSet::RowSet(Span<const Row> rows) {
    Row last = 0;
    for (Row row : rows) last = std::max(last, row);
    words_ = std::make_shared<Words>(last / 64 + 1);
    for (Row row : rows) words_->set(row);
}

void RowSet::insert(Row row) {
    const std::size_t needed = row / 64 + 1;
    if (needed > words_->size()) {  // searches keep the words that they hold
        auto larger = std::make_shared<Words>(std::max(needed, 2 * words_->size()));
        for (std::size_t i = 0; i < words_->size(); ++i) larger->put(i, words_->word(i));
        std::atomic_store(&words_, std::move(larger));
    }
    words_->set(row);
}

std::shared_ptr<const RowSet::Words> RowSet::words() const { return std::atomic_load(&words_); }

bool RowSet::contains(Row row) const { return words()->contains(row); }

std::size_t RowSet::count() const {
    const auto words = this->words();
    return count_bits(words->begin(), words->begin(), words->size());
}

std::size_t RowSet::count_shared(const RowSet& other) const {
    const auto a = words(), b = other.words();
    return count_bits(a->begin(), b->begin(), std::min(a->size(), b->size()));
}

std::vector<Row> RowSet::rows() const {
    std::vector<Row> found;
    words()->for_each([&](Row row) { found.push_back(row); });
    return found;
}

RowSet RowSet::intersection(const RowSet& other) const {
    const auto a = words(), b = other.words();
    const std::size_t shared = std::min(a->size(), b->size());
    auto both = std::make_shared<Words>(shared);
    combine(a->begin(), b->begin(), shared, both->begin(), [](auto x, auto y) { return x & y; });
    return RowSet(std::move(both));
}

RowSet RowSet::united(const RowSet& other) const {
    auto a = words(), b = other.words();
    if (a->size() < b->size()) a.swap(b);
    auto either = std::make_shared<Words>(a->size());
    combine(a->begin(), b->begin(), b->size(), either->begin(), [](auto x, auto y) { return x | y; });
    for (std::size_t i = b->size(); i < a->size(); ++i) either->put(i, a->word(i));
    return RowSet(std::move(either));
}

RowSet RowSet::complement(Row last) const {
    const auto a = words();
    auto others = std::make_shared<Words>(last / 64 + 1);
    const std::size_t shared = std::min(a->size(), others->size());
    combine(a->begin(), a->begin(), shared, others->begin(), [](auto x, auto) { return ~x; });
    for (std::size_t i = shared; i < others->size(); ++i) others->put(i, ~std::uint64_t{0});
    others->put(0, others->word(0) & ~std::uint64_t{1});  // there is no row 0
    if (const unsigned rest = (last + 1) % 64)
        others->put(others->size() - 1, others->word(others->size() - 1) & ((std::uint64_t{1} << rest) - 1));
    return RowSet(std::move(others));
}

}  // namespace uniecs
