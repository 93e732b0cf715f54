// The file of a graph: docs/index-format.md. Little-endian; written beside its path, flushed and renamed.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <unordered_set>

#include "crc32c.hpp"
#include "impl.hpp"
#include "process_id.hpp"

#if defined(_WIN32)
#include <io.h>
#else
#include <fcntl.h>
#include <unistd.h>
#endif

namespace uniecs {
namespace {

constexpr char MAGIC[8] = {'U', 'E', 'C', 'S', 'H', 'N', 'S', 'W'};
constexpr std::uint32_t VERSION = 4;
constexpr std::size_t LARGEST_MODEL_ID = 4096;
constexpr std::uint32_t LARGEST_BREADTH = 10'000;
constexpr float FARTHEST = 5;   // squared distances of unit vectors: 4, and what is rounded off
constexpr float LARGEST = 1e6;  // of what unit vectors keep far below: so that no score is NaN

static_assert(sizeof(Word) == 4, "links are read into place");

struct Fixed {  // after the magic, without padding
    std::uint32_t version, storage, dim, M, ef_construction, model_id_bytes;
    std::uint64_t sequence, last_row, nodes, entry;
};
static_assert(sizeof(Fixed) == 56);

struct Measured {  // next, without padding
    std::uint64_t changed;
    float close, slack;
    std::uint32_t breadths[std::size(WalkLimits::SHARES)][2];
};
static_assert(sizeof(Measured) == 40);

[[noreturn]] void cannot(const std::string& path, const char* what) {
    throw std::runtime_error(path + " cannot be " + what + ": " + std::strerror(errno));
}

class Writer {
  public:
    explicit Writer(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "wb")) {
        if (!file_) cannot(path, "written");
        std::setvbuf(file_, nullptr, _IOFBF, 1 << 20);
    }
    ~Writer() {
        if (file_) {
            std::fclose(file_);
            std::remove(path_.c_str());
        }
    }
    void write(const void* data, std::size_t bytes) {
        crc_ = crc32c(data, bytes, crc_);
        if (std::fwrite(data, 1, bytes, file_) != bytes) cannot(path_, "written");
    }
    void finish(const std::string& final_path) {
        const std::uint32_t crc = crc_;
        write(&crc, 4);
        if (std::fflush(file_) != 0) cannot(path_, "written");
#if defined(_WIN32)
        if (_commit(_fileno(file_)) != 0)
#else
        if (fsync(fileno(file_)) != 0)
#endif
            cannot(path_, "flushed");
        std::FILE* file = file_;
        file_ = nullptr;
        if (std::fclose(file) != 0 || std::rename(path_.c_str(), final_path.c_str()) != 0) {
            const int error = errno;
            std::remove(path_.c_str());
            errno = error;
            cannot(path_, "renamed");
        }
        sync_folder(final_path);
    }

  private:
    static void sync_folder(const std::string& path) {
#if !defined(_WIN32)
        const auto slash = path.rfind('/');
        const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
        const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY);
        if (descriptor < 0) return;  // the rename took place; only its order in a power cut is open
        (void)fsync(descriptor);
        close(descriptor);
#else
        (void)path;
#endif
    }

    std::string path_;
    std::FILE* file_;
    std::uint32_t crc_ = 0;
};

class Reader {
  public:
    explicit Reader(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rb")) {
        if (!file_) throw SnapshotError(path + " cannot be read: " + std::strerror(errno));
        std::setvbuf(file_, nullptr, _IOFBF, 1 << 20);
    }
    ~Reader() { std::fclose(file_); }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    void read(void* data, std::size_t bytes) {
        if (std::fread(data, 1, bytes, file_) != bytes) damaged("it ends early");
        crc_ = crc32c(data, bytes, crc_);
    }
    void finish() {
        const std::uint32_t expected = crc_;
        std::uint32_t found;
        read(&found, 4);
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION  // a fuzzer does not find checksums
        if (found != expected) damaged("its checksum is wrong");
#else
        (void)expected;
#endif
        if (std::fgetc(file_) != EOF) damaged("it goes on after its end");
    }
    [[noreturn]] void damaged(const std::string& why) const {
        throw SnapshotError(path_ + " is not usable: " + why);
    }

  private:
    std::string path_;
    std::FILE* file_;
    std::uint32_t crc_ = 0;
};

}  // namespace

void Graph::Impl::save(const std::string& path, const SnapshotInfo& info) const {
    if (info.model_id.size() > LARGEST_MODEL_ID) throw std::invalid_argument("the model id is too long");
    Writer file(path + "." + std::to_string(process_id()) + ".tmp");
    const Node count = nodes.count.load();
    file.write(MAGIC, sizeof MAGIC);
    const Fixed fixed{VERSION,
                      static_cast<std::uint32_t>(config.storage),
                      config.dim,
                      config.M,
                      config.ef_construction,
                      static_cast<std::uint32_t>(info.model_id.size()),
                      info.sequence,
                      info.last_row,
                      count,
                      entry.load()};
    file.write(&fixed, sizeof fixed);
    Measured walks{changed, measured->close, measured->slack, {}};
    for (std::size_t i = 0; i < measured->breadths.size(); ++i) {
        walks.breadths[i][0] = static_cast<std::uint32_t>(measured->breadths[i].any);
        walks.breadths[i][1] = static_cast<std::uint32_t>(measured->breadths[i].close);
    }
    file.write(&walks, sizeof walks);
    file.write(info.model_id.data(), info.model_id.size());
    const bool centred = config.storage != Storage::float32;
    if (centred) file.write(nodes.centre().data(), config.dim * sizeof(float));
    std::vector<Node> links(2 * config.M);
    for (Node node = 0; node < count; ++node) {
        const Header& header = nodes.header(node);
        const Tower& tower = nodes.tower(node);
        const bool kept = node_of(header.row) == node;  // else the place is free
        const std::uint64_t row = kept ? header.row : 0;
        const std::uint8_t marks[4] = {kept && header.removed.load() == NEVER,
                                       kept ? tower.layers : std::uint8_t{0}, kept && tower.leads, 0};
        const std::uint32_t twin = kept ? header.twin.load() : 0;
        file.write(&row, 8);
        file.write(marks, 4);
        file.write(&twin, 4);
        const Scale scale = centred ? nodes.scale(node) : Scale{};
        file.write(&scale.factor, 4);
        if (centred) file.write(&scale.offset, 4);
        file.write(nodes.vector(node), nodes.codec.bytes());
        for (unsigned layer = 0; layer <= marks[1]; ++layer) {
            const std::size_t most = nodes.most_links(layer);
            const auto n = static_cast<std::uint32_t>(
                kept ? read_links(nodes.links(node, layer), most, links.data()) : 0);
            file.write(&n, 4);
            file.write(links.data(), n * sizeof(Node));
        }
    }
    file.finish(path);
}

// What walks compare is not in the file: it follows from the vectors.
void Graph::Impl::derive_codes() {
    if (!nodes.coarse()) return;
    std::vector<Node> filled;
    for (Node node = 0; node < nodes.count; ++node)
        if (nodes.header(node).row != 0) filled.push_back(node);
    nodes.set_centre(filled.size(),
                     [&](std::size_t i) { return reinterpret_cast<const float*>(nodes.vector(filled[i])); });
    for (Node node : filled) nodes.derive_codes(node);
}

void Graph::Impl::load(const std::string& path, const std::string& model_id, SnapshotInfo* info) {
    Reader file(path);
    char magic[sizeof MAGIC];
    file.read(magic, sizeof magic);
    if (std::memcmp(magic, MAGIC, sizeof magic) != 0) file.damaged("it is no graph of uniecs");
    Fixed fixed;
    file.read(&fixed, sizeof fixed);
    if (fixed.version != VERSION)
        file.damaged("its format version is " + std::to_string(fixed.version) + "; expected " +
                     std::to_string(VERSION));
    if (fixed.storage != static_cast<std::uint32_t>(config.storage) || fixed.dim != config.dim ||
        fixed.M != config.M || fixed.ef_construction != config.ef_construction)
        file.damaged("it was made with another dim, M, ef_construction or storage");
    if (fixed.model_id_bytes > LARGEST_MODEL_ID || fixed.nodes >= NO_NODE)
        file.damaged("a length in it is too large");
    Measured walks;
    file.read(&walks, sizeof walks);
    WalkLimits limits;
    limits.close = walks.close, limits.slack = walks.slack;
    // A damaged breadth could cost a search minutes.
    bool possible = walks.close >= -1 && walks.close <= FARTHEST && walks.slack >= 1;
    for (std::size_t i = 0; i < limits.breadths.size(); ++i) {
        limits.breadths[i] = {walks.breadths[i][0], walks.breadths[i][1]};
        for (const std::uint32_t breadth : walks.breadths[i])
            possible = possible && breadth >= 1 && breadth <= LARGEST_BREADTH;
    }
    if (!possible) file.damaged("it says of its walks what cannot be");
    SnapshotInfo found{std::string(fixed.model_id_bytes, ' '), fixed.sequence, fixed.last_row};
    file.read(found.model_id.data(), found.model_id.size());
    if (found.model_id != model_id)
        file.damaged("it holds vectors of " + found.model_id + "; expected " + model_id);
    const bool centred = config.storage != Storage::float32;
    if (centred) file.read(nodes.centre().data(), config.dim * sizeof(float));
    const auto count = static_cast<Node>(fixed.nodes);
    std::vector<Node> links(2 * config.M);
    for (Node node = 0; node < count; ++node) {
        nodes.make_room(node);
        Header& header = nodes.header(node);
        Tower& tower = nodes.tower(node);
        Row row;
        std::uint8_t marks[4];
        std::uint32_t twin;
        file.read(&row, 8);
        file.read(marks, 4);
        file.read(&twin, 4);
        file.read(&nodes.scale(node).factor, 4);
        if (centred) file.read(&nodes.scale(node).offset, 4);
        file.read(nodes.vector(node), nodes.codec.bytes());
        if (row > found.last_row || row >= MOST_ROWS || marks[0] > 1 || marks[1] > 24 || marks[2] > 1 ||
            twin > count || (row == 0 ? marks[0] || marks[1] || marks[2] || twin : !marks[2] && !twin))
            file.damaged("node " + std::to_string(node) + " has impossible fields");
        header.row = static_cast<std::uint32_t>(row);
        tower.layers = marks[1];
        tower.leads = marks[2];
        header.twin.store(twin);
        header.added.store(marks[0] ? 1 : 0);
        header.removed.store(marks[0] ? NEVER : 0);
        if (tower.layers) tower.upper.store(new Word[nodes.upper_words(tower.layers)]);
        nodes.count.store(node + 1);
        for (unsigned layer = 0; layer <= tower.layers; ++layer) {
            std::uint32_t n;
            file.read(&n, 4);
            if (n > nodes.most_links(layer))
                file.damaged("node " + std::to_string(node) + " has too many links");
            file.read(links.data(), n * sizeof(Node));
            for (std::uint32_t i = 0; i < n; ++i)
                if (links[i] >= count) file.damaged("node " + std::to_string(node) + " links to none");
            write_links(nodes.links(node, layer), links.data(), n);
        }
    }
    file.finish();
    for (Node node = 0; node < count; ++node) {  // not before: a damaged row could ask for all memory
        const Header& header = nodes.header(node);
        if (header.row == 0) {
            free.push_back(node);
            continue;
        }
        if (node_of(header.row) != NO_NODE)
            file.damaged("row " + std::to_string(header.row) + " is in it twice");
        node_by_row.reach(header.row);
        give(header.row, node);
        ++(header.removed.load() == NEVER ? live : removed);
    }
    if (const Node node = without_ring(); node != NO_NODE)
        file.damaged("node " + std::to_string(node) + " is in no ring");
    derive_codes();
    for (Node node = 0; node < count; ++node) {
        const Scale& scale = nodes.scale(node);
        if (nodes.header(node).row != 0 &&
            !(std::fabs(scale.factor) <= LARGEST && std::fabs(scale.offset) <= LARGEST))
            file.damaged("the vector of node " + std::to_string(node) + " is no unit vector");
    }
    // Links of a layer must lead to nodes that are in it.
    for (Node node = 0; node < count; ++node)
        for (unsigned layer = 1; layer <= nodes.tower(node).layers; ++layer) {
            const std::size_t n = read_links(nodes.links(node, layer), config.M, links.data());
            for (std::size_t i = 0; i < n; ++i)
                if (nodes.tower(links[i]).layers < layer)
                    file.damaged("node " + std::to_string(node) + " links to none in its layer");
        }
    const Node start = static_cast<Node>(fixed.entry & 0xffffffff) - 1;
    if (live + removed == 0 ? fixed.entry != 0
                            : start >= count || nodes.header(start).row == 0 ||
                                  fixed.entry >> 32 != nodes.tower(start).layers)
        file.damaged("its entry is no node");
    entry.store(fixed.entry);
    measured = std::make_unique<const WalkLimits>(limits);
    walk_limits = measured.get();
    changed = walks.changed;
    if (info) *info = found;
}

}  // namespace uniecs
