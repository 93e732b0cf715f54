#include "row_words.hpp"

namespace uniecs {

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
    std::size_t total = 0;
    for (std::size_t i = 0; i < words->size(); ++i) total += bits_in(words->word(i));
    return total;
}

std::vector<Row> RowSet::rows() const {
    std::vector<Row> found;
    words()->for_each([&](Row row) { found.push_back(row); });
    return found;
}

RowSet RowSet::intersection(const RowSet& other) const {
    const auto a = words(), b = other.words();
    auto both = std::make_shared<Words>(std::min(a->size(), b->size()));
    for (std::size_t i = 0; i < both->size(); ++i) both->put(i, a->word(i) & b->word(i));
    return RowSet(std::move(both));
}

RowSet RowSet::united(const RowSet& other) const {
    const auto a = words(), b = other.words();
    auto either = std::make_shared<Words>(std::max(a->size(), b->size()));
    for (std::size_t i = 0; i < either->size(); ++i)
        either->put(i, (i < a->size() ? a->word(i) : 0) | (i < b->size() ? b->word(i) : 0));
    return RowSet(std::move(either));
}

RowSet RowSet::complement(Row last) const {
    const auto a = words();
    auto others = std::make_shared<Words>(last / 64 + 1);
    for (std::size_t i = 0; i < others->size(); ++i) others->put(i, ~(i < a->size() ? a->word(i) : 0));
    others->put(0, others->word(0) & ~std::uint64_t{1});  // there is no row 0
    if (const unsigned rest = (last + 1) % 64)
        others->put(others->size() - 1, others->word(others->size() - 1) & ((std::uint64_t{1} << rest) - 1));
    return RowSet(std::move(others));
}

}  // namespace uniecs
