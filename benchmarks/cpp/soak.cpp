// Many minutes of what a service does, to see that nothing fails and that memory stays where it is.
//
//   soak BUNDLE FOLDER SECONDS ENGINE_THREADS PHOTO...
//
// Eight threads search by text, photo and both, with filters and by likeness, add, replace and remove
// products of their own, and send what cannot be read; one of them saves now and then. Each knows what it
// wrote, and must find exactly that. FOLDER is for the index, and must not exist. Every ten seconds a line
// with the memory in use. It fails if an answer is wrong, or if the mean of the memory of the last quarter is
// above that of the third by more than MAX_GROWTH_MB.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "uniecs/uniecs.hpp"

namespace {

using namespace uniecs;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr unsigned THREADS = 8;
constexpr std::size_t OWN = 400;  // products of a thread
constexpr double MAX_GROWTH_MB = 8;
constexpr const char* COLOURS[] = {"red", "blue", "green"};
constexpr const char* WORDS[] = {"cotton", "shirt", "kurta", "women", "with", "collar", "leather", "bag"};

std::atomic<std::size_t> searches{0}, changes{0}, refused{0}, errors{0};

void fail(const std::string& what) {
    if (++errors <= 20) std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

double resident_mb() {
    std::ifstream file("/proc/self/statm");
    double size = 0, resident = 0;
    file >> size >> resident;
    return resident * static_cast<double>(::sysconf(_SC_PAGESIZE)) / 1e6;
}

// What malloc has given and not got back.
double allocated_mb() {
    const struct mallinfo2 info = mallinfo2();
    return static_cast<double>(info.uordblks + info.hblkhd) / 1e6;
}

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// One thread's requests, and what it knows of its own products.
class Client {
  public:
    Client(SearchEngine& engine, const std::vector<std::string>& photos, unsigned number)
        : engine_(engine), photos_(photos), number_(number), random_(number), version_(OWN) {}

    void request() {
        const unsigned kind = below(100);
        if (kind < 70)
            search();
        else if (kind < 75)
            similar();
        else if (kind < 78)
            refuse();
        else
            change();
        if (number_ == 0 && Clock::now() - saved_ > std::chrono::seconds(20)) {
            engine_.save();
            saved_ = Clock::now();
        }
    }

  private:
    unsigned below(std::size_t count) { return static_cast<unsigned>(random_() % count); }

    std::string id(std::size_t place) const {
        return "t" + std::to_string(number_) + "-" + std::to_string(place);
    }

    std::string title() {
        std::string made = COLOURS[below(3)];
        for (unsigned i = below(20); i-- > 0;) made += std::string(" ") + WORDS[below(8)];
        return made;
    }

    Image photo() { return Image::bytes(photos_[below(photos_.size())]); }

    void search() {
        const unsigned sides = below(3);
        Item query;
        if (sides != 1) query.text = title();
        if (sides != 0) query.image = photo();
        QueryOptions options;
        options.k = 10;
        const unsigned filter = below(4);
        if (filter == 1) options.where = R"({"colour": "red", "price": {"$between": [null, 120]}})";
        if (filter == 2)
            options.where =
                R"({"$not": {"colour": ["red", "blue"]}, "owner": )" + std::to_string(number_) + "}";
        if (filter == 3) options.where = R"({"owner": )" + std::to_string(number_) + "}", options.k = OWN;
        const std::vector<Hit> hits = engine_.search(query, options);
        check(hits, options);
        if (filter == 3) check_own(hits);
        ++searches;
    }

    void similar() {
        const std::size_t place = below(OWN);
        if (!version_[place]) return;
        const std::vector<Hit> hits = engine_.similar(id(place));
        check(hits, {});
        for (const Hit& hit : hits)
            if (hit.id == id(place)) fail(hit.id + " is like itself");
        ++searches;
    }

    static void check(const std::vector<Hit>& hits, const QueryOptions& options) {
        if (hits.size() > options.k) fail("more hits than were asked for");
        std::set<std::string> ids;
        float last = 2;
        for (const Hit& hit : hits) {
            if (!ids.insert(hit.id).second) fail(hit.id + " was found twice");
            if (!(hit.score <= last) || hit.score < -1.001F) fail("a score of " + std::to_string(hit.score));
            last = hit.score;
        }
    }

    // All of this thread's products, as it wrote them last.
    void check_own(const std::vector<Hit>& hits) {
        std::size_t present = 0;
        for (const unsigned version : version_) present += version > 0;
        if (hits.size() != present)
            fail("thread " + std::to_string(number_) + " found " + std::to_string(hits.size()) + " of its " +
                 std::to_string(present) + " products");
        for (const Hit& hit : hits) {
            const std::size_t place = std::stoul(hit.id.substr(hit.id.find('-') + 1));
            const std::string version = "\"version\":" + std::to_string(version_[place]) + ",";
            if (hit.product.attributes.find(version) == std::string::npos)
                fail(hit.id + " is " + hit.product.attributes + ", not of version " +
                     std::to_string(version_[place]));
        }
    }

    void change() {
        const std::size_t first = below(OWN), count = 1 + below(3);
        std::vector<Product> added, updated;
        std::vector<std::string> removed;
        for (std::size_t place = first; place < std::min(first + count, OWN); ++place) {
            if (version_[place] && below(3) == 0) {
                removed.push_back(id(place));
                version_[place] = 0;
                continue;
            }
            (version_[place] ? updated : added).push_back(product(place));
        }
        if (!removed.empty() && engine_.remove(removed) != removed.size()) fail("not all were removed");
        taken(engine_.add(added), added.size());
        taken(engine_.update(updated), updated.size());
        ++changes;
    }

    Product product(std::size_t place) {
        version_[place] = ++versions_;
        Product made{id(place),
                     title(),
                     {},
                     "{\"version\":" + std::to_string(versions_) + ",\"owner\":" + std::to_string(number_) +
                         ",\"colour\":\"" + COLOURS[below(3)] + "\",\"price\":" + std::to_string(below(200)) +
                         "}"};
        if (below(2)) made.image = photo();
        return made;
    }

    static void taken(const AddReport& report, std::size_t count) {
        for (const Rejected& each : report.rejected) fail(each.id + " was rejected: " + each.message);
        if (report.added != count) fail("not all were taken");
    }

    // Each must be refused.
    void refuse() {
        const std::string& whole = photos_[below(photos_.size())];
        try {
            switch (below(4)) {
                case 0:
                    engine_.search({std::nullopt, Image::bytes(std::string_view(whole).substr(0, 100))});
                    break;
                case 1:
                    engine_.search({"\xff", std::nullopt});
                    break;
                case 2:
                    engine_.search({"red", std::nullopt}, {10, {}, "{\"colour\":"});
                    break;
                default:
                    engine_.remove({"nobody's"});
            }
            fail("what cannot be used was taken");
        } catch (const InputError&) {
            ++refused;
        }
        const AddReport report = engine_.update({{"nobody's", "red", {}, "{}"}});
        if (report.added || report.rejected.size() != 1) fail("an unknown product was replaced");
    }

    SearchEngine& engine_;
    const std::vector<std::string>& photos_;
    const unsigned number_;
    std::mt19937 random_;
    std::vector<unsigned> version_;  // by place, of the product there; 0: none
    unsigned versions_ = 0;
    Clock::time_point saved_ = Clock::now();
};

double mean(const std::vector<double>& values, std::size_t first, std::size_t last) {
    const auto at = values.begin();
    return std::accumulate(at + static_cast<std::ptrdiff_t>(first), at + static_cast<std::ptrdiff_t>(last),
                           0.0) /
           static_cast<double>(last - first);
}

// Megabytes in use, every ten seconds.
std::vector<double> watch(double seconds) {
    const Clock::time_point start = Clock::now();
    std::vector<double> resident;
    while (Seconds(Clock::now() - start).count() < seconds) {
        std::this_thread::sleep_for(Seconds(std::min(10.0, seconds)));
        resident.push_back(resident_mb());
        std::printf(
            "%4.0f s  %7.1f MB  %7.1f allocated  %zu searches  %zu changes  %zu refused  %zu errors\n",
            Seconds(Clock::now() - start).count(), resident.back(), allocated_mb(), searches.load(),
            changes.load(), refused.load(), errors.load());
        std::fflush(stdout);
    }
    return resident;
}

bool is_flat(const std::vector<double>& resident) {
    const std::size_t n = resident.size();
    if (n < 4) return true;
    const double third = mean(resident, n / 2, 3 * n / 4), last = mean(resident, 3 * n / 4, n);
    std::printf("mean of the third quarter %.1f MB, of the last %.1f MB: %+.1f MB (at most %+.1f)\n", third,
                last, last - third, MAX_GROWTH_MB);
    return last - third <= MAX_GROWTH_MB;
}

int soak(const std::string& bundle, const std::string& folder, double seconds, unsigned engine_threads,
         const std::vector<std::string>& photos) {
    const auto encoder = Encoder::load(bundle, {"fp32", engine_threads});
    auto engine = SearchEngine::create(folder, encoder, {{"multimodal", "text"}});
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (unsigned number = 0; number < THREADS; ++number)
        threads.emplace_back([&, number] {
            Client client(engine, photos, number);
            while (!stop) try {
                    client.request();
                } catch (const std::exception& error) {
                    fail(error.what());
                }
        });
    const std::vector<double> resident = watch(seconds);
    stop = true;
    for (std::thread& each : threads) each.join();
    const bool flat = is_flat(resident);
    std::printf("%zu products, %zu errors: %s\n", engine.size(), errors.load(),
                flat && !errors ? "passed" : "FAILED");
    return flat && !errors ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 6) {
        std::fprintf(stderr, "usage: soak BUNDLE FOLDER SECONDS ENGINE_THREADS PHOTO...\n");
        return 2;
    }
    std::vector<std::string> photos;
    for (int i = 5; i < argc; ++i) photos.push_back(read_file(argv[i]));
    try {
        return soak(argv[1], argv[2], std::atof(argv[3]), static_cast<unsigned>(std::atoi(argv[4])), photos);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
