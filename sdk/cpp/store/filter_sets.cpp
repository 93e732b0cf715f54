#include "filter_sets.hpp"

namespace uniecs::store {

void FilterSets::add(const std::vector<std::pair<Row, const Record*>>& products, Row last) {
    const std::lock_guard<std::mutex> lock(mutex_);
    last_ = last;
    ++version_;
    combined_.clear();
    predicates_.for_each([&](Predicate& each) {
        for (const auto& [row, product] : products)
            if (matches(each.filter, product->attributes)) each.rows->insert(row);
    });
    for (Late& late : building_)
        for (const auto& [row, product] : products)
            if (matches(*late.filter, product->attributes)) late.rows.push_back(row);
}

void FilterSets::forget(Row last) {
    const std::lock_guard<std::mutex> lock(mutex_);
    last_ = last;
    ++version_;
    ++forgotten_;
    predicates_.clear();
    combined_.clear();
}

std::uint64_t FilterSets::version() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return version_;
}

FilterSets::Matching FilterSets::find(const Filter& where, const RowsMatching& rows_matching) {
    std::uint64_t version;
    Row last;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (const Matching* known = combined_.find(where.identity)) return *known;
        version = version_, last = last_;
    }
    const auto rows = std::make_shared<const RowSet>(combine(where, last, rows_matching));
    const Matching found{rows, rows->count()};
    const std::lock_guard<std::mutex> lock(mutex_);
    if (version == version_) combined_.put(where.identity, found);
    return found;
}

RowSet FilterSets::combine(const Filter& where, Row last, const RowsMatching& rows_matching) {
    switch (where.node) {
        case Filter::Node::one_of:
        case Filter::Node::between:
            return predicate(where, rows_matching);
        case Filter::Node::none:
            return combine(where.parts[0], last, rows_matching).complement(last);
        case Filter::Node::any:
        case Filter::Node::all:
            break;
    }
    const bool any = where.node == Filter::Node::any;
    RowSet rows = any || !where.parts.empty() ? RowSet() : RowSet().complement(last);
    for (std::size_t i = 0; i < where.parts.size(); ++i) {
        const RowSet part = combine(where.parts[i], last, rows_matching);
        rows = i == 0 ? part : any ? rows.united(part) : rows.intersection(part);
    }
    return rows;
}

RowSet FilterSets::predicate(const Filter& filter, const RowsMatching& rows_matching) {
    std::list<Late>::iterator late;
    std::uint64_t forgotten;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (const Predicate* known = predicates_.find(filter.identity)) return *known->rows;
        late = building_.insert(building_.end(), {&filter, {}});
        forgotten = forgotten_;
    }
    std::vector<Row> rows;
    try {
        rows = rows_matching(filter);
    } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        building_.erase(late);
        throw;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    rows.insert(rows.end(), late->rows.begin(), late->rows.end());
    building_.erase(late);
    const auto made = std::make_shared<RowSet>(Span<const Row>(rows));
    if (forgotten == forgotten_)
        predicates_.put(filter.identity, {filter, made});  // else it may be of a state before
    return *made;
}

}  // namespace uniecs::store
