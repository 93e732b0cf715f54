// The rows that match a filter, as bit sets: one kept for each predicate and up to date, combined on use.
#pragma once

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "filters.hpp"
#include "format.hpp"

namespace uniecs::store {

// The values used last, by name.
template <typename T>
class Latest {
  public:
    explicit Latest(std::size_t most) : most_(most) {}

    T* find(const std::string& name) {
        const auto found = places_.find(name);
        if (found == places_.end()) return nullptr;
        entries_.splice(entries_.begin(), entries_, found->second);
        return &entries_.front().second;
    }
    void put(const std::string& name, T value) {
        if (T* known = find(name)) return static_cast<void>(*known = std::move(value));
        entries_.emplace_front(name, std::move(value));
        places_[name] = entries_.begin();
        if (entries_.size() > most_) {
            places_.erase(entries_.back().first);
            entries_.pop_back();
        }
    }
    void clear() { places_.clear(), entries_.clear(); }
    template <typename Each>
    void for_each(Each each) {
        for (auto& entry : entries_) each(entry.second);
    }

  private:
    std::size_t most_;
    std::list<std::pair<std::string, T>> entries_;
    std::unordered_map<std::string, typename std::list<std::pair<std::string, T>>::iterator> places_;
};

// Bit sets of rows for filters; thread-safe. A set may hold rows of products deleted since, which no search
// returns: after many deletions `forget` it all.
class FilterSets {
  public:
    struct Matching {
        std::shared_ptr<const RowSet> rows;
        std::size_t count;
    };
    // The rows of all products that match a predicate, as of the moment it is called or later.
    using RowsMatching = std::function<std::vector<Row>(const Filter&)>;

    // Note new products, row by row, of which `last` is the highest ever given.
    void add(const std::vector<std::pair<Row, const Record*>>& products, Row last);
    // Drop all sets; they are made anew on use.
    void forget(Row last);
    // The rows that match, and how many they are.
    Matching find(const Filter& where, const RowsMatching& rows_matching);
    // One more with each change: a set found before may lack rows.
    std::uint64_t version() const;

  private:
    struct Predicate {
        Filter filter;
        std::shared_ptr<RowSet> rows;
    };
    // Rows that come while the store is asked.
    struct Late {
        const Filter* filter;
        std::vector<Row> rows;
    };

    RowSet combine(const Filter& where, Row last, const RowsMatching& rows_matching);
    RowSet predicate(const Filter& filter, const RowsMatching& rows_matching);

    mutable std::mutex mutex_;
    Latest<Predicate> predicates_{256};
    Latest<Matching> combined_{64};
    std::list<Late> building_;
    Row last_ = 0;
    std::uint64_t forgotten_ = 0, version_ = 0;
};

}  // namespace uniecs::store
