// BertEncoder, with the kernels of every set of instructions and any number of threads, against a BERT in
// double.
#include "../src/bert_encoder.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "../src/crew.hpp"
#include "../src/row_kernels.hpp"

namespace {

using Floats = std::vector<float>;
using Rows = std::vector<std::vector<double>>;
using uniecs::NamedArray, uniecs::NamedArrays, uniecs::BertEncoder;
using Ids = std::vector<std::int64_t>;

std::mt19937 random_bits(11);

std::size_t drawn(std::size_t least, std::size_t most) {
    return std::uniform_int_distribution<std::size_t>(least, most)(random_bits);
}

constexpr std::size_t WORDS = 50, POSITIONS = 20;
constexpr float EPSILON = 1e-3f;  // so large that another one would be seen
const std::string EMBEDDINGS = "backbone.embeddings.";

NamedArray normal(std::size_t rows, std::size_t columns, float scale) {
    NamedArray made{rows, columns, Floats(rows * columns)};
    for (float& each : made.values) each = std::normal_distribution<float>(0, scale)(random_bits);
    return made;
}

NamedArrays network(std::size_t dim, std::size_t hidden, std::size_t embed_dim, std::size_t layers,
                    bool coded) {
    NamedArrays made;
    const auto linear = [&](const std::string& name, std::size_t rows, std::size_t columns) {
        made[name + ".weight"] = normal(rows, columns, rows > 1 ? 0.15f : 0.5f);
        made[name + ".bias"] = normal(1, columns, 0.3f);
    };
    const std::string words = EMBEDDINGS + "word_embeddings.weight";
    if (coded) {
        NamedArray& codes = made[words + ".int8"] = normal(WORDS, dim, 40);
        for (float& each : codes.values) each = std::clamp(std::round(each), -128.0f, 127.0f);
        made[words + ".scale"] = normal(WORDS, 1, 0.01f);
    } else {
        made[words] = normal(WORDS, dim, 1);
    }
    made[EMBEDDINGS + "position_embeddings.weight"] = normal(POSITIONS, dim, 1);
    made[EMBEDDINGS + "token_type_embeddings.weight"] = normal(2, dim, 1);
    linear(EMBEDDINGS + "LayerNorm", 1, dim);
    for (std::size_t i = 0; i < layers; ++i) {
        const std::string name = "backbone.encoder.layer." + std::to_string(i) + ".";
        for (const std::string each : {"query", "key", "value"})
            linear(name + "attention.self." + each, dim, dim);
        linear(name + "attention.output.dense", dim, dim);
        linear(name + "attention.output.LayerNorm", 1, dim);
        linear(name + "intermediate.dense", dim, hidden);
        linear(name + "output.dense", hidden, dim);
        linear(name + "output.LayerNorm", 1, dim);
    }
    linear("proj", dim, embed_dim);
    return made;
}

// Of one text, without its padding: the tokens at `places`.
class Reference {
  public:
    Reference(const NamedArrays& arrays, std::size_t width) : arrays_(arrays), width_(width) {}

    Rows encode(const Ids& ids, const std::vector<std::size_t>& places) const {
        Rows x;
        for (std::size_t i = 0; i < ids.size(); ++i) x.push_back(embedding(ids[i], places[i]));
        x = norm(EMBEDDINGS + "LayerNorm", x);
        for (std::size_t i = 0;
             arrays_.count("backbone.encoder.layer." + std::to_string(i) + ".output.dense.bias"); ++i)
            x = layer("backbone.encoder.layer." + std::to_string(i) + ".", x);
        return linear("proj", x);
    }

  private:
    std::vector<double> embedding(std::int64_t id, std::size_t place) const {
        const std::string words = EMBEDDINGS + "word_embeddings.weight";
        const auto row = static_cast<std::size_t>(id);
        const NamedArray& positions = arrays_.at(EMBEDDINGS + "position_embeddings.weight");
        const NamedArray& types = arrays_.at(EMBEDDINGS + "token_type_embeddings.weight");
        const bool coded = arrays_.count(words + ".scale");
        const NamedArray& table = arrays_.at(coded ? words + ".int8" : words);
        std::vector<double> made;
        for (std::size_t i = 0; i < table.columns; ++i) {
            const double scale = coded ? arrays_.at(words + ".scale").values[row] : 1;
            made.push_back(table.values[row * table.columns + i] * scale +
                           positions.values[place * table.columns + i] + types.values[i]);
        }
        return made;
    }

    Rows linear(const std::string& name, const Rows& x) const {
        const NamedArray &weight = arrays_.at(name + ".weight"), &bias = arrays_.at(name + ".bias");
        Rows made;
        for (const auto& row : x) {
            std::vector<double> sums(bias.values.begin(), bias.values.end());
            for (std::size_t k = 0; k < weight.rows; ++k)
                for (std::size_t i = 0; i < weight.columns; ++i)
                    sums[i] += row[k] * weight.values[k * weight.columns + i];
            made.push_back(sums);
        }
        return made;
    }

    Rows norm(const std::string& name, Rows x) const {
        const NamedArray &gain = arrays_.at(name + ".weight"), &bias = arrays_.at(name + ".bias");
        for (auto& row : x) {
            double mean = 0, variance = 0;
            for (double each : row) mean += each / static_cast<double>(row.size());
            for (double each : row)
                variance += (each - mean) * (each - mean) / static_cast<double>(row.size());
            for (std::size_t i = 0; i < row.size(); ++i)
                row[i] = (row[i] - mean) / std::sqrt(variance + EPSILON) * gain.values[i] + bias.values[i];
        }
        return x;
    }

    Rows attention(const Rows& q, const Rows& k, const Rows& v) const {
        Rows made(q.size(), std::vector<double>(q[0].size()));
        for (std::size_t first = 0; first < q[0].size(); first += width_)
            for (std::size_t row = 0; row < q.size(); ++row) {
                std::vector<double> weights;
                double total = 0;
                for (const auto& other : k) {
                    double score = 0;
                    for (std::size_t i = first; i < first + width_; ++i) score += q[row][i] * other[i];
                    weights.push_back(std::exp(score / std::sqrt(static_cast<double>(width_))));
                    total += weights.back();
                }
                for (std::size_t other = 0; other < v.size(); ++other)
                    for (std::size_t i = first; i < first + width_; ++i)
                        made[row][i] += weights[other] / total * v[other][i];
            }
        return made;
    }

    Rows layer(const std::string& name, const Rows& x) const {
        const std::string self = name + "attention.self.";
        const Rows attended =
            attention(linear(self + "query", x), linear(self + "key", x), linear(self + "value", x));
        const Rows middle = norm(name + "attention.output.LayerNorm",
                                 sum(linear(name + "attention.output.dense", attended), x));
        Rows wide = linear(name + "intermediate.dense", middle);
        for (auto& row : wide)
            for (double& each : row) each = each * std::erfc(-each / std::sqrt(2.0)) / 2;
        return norm(name + "output.LayerNorm", sum(linear(name + "output.dense", wide), middle));
    }

    static Rows sum(Rows a, const Rows& b) {
        for (std::size_t row = 0; row < a.size(); ++row)
            for (std::size_t i = 0; i < a[row].size(); ++i) a[row][i] += b[row][i];
        return a;
    }

    const NamedArrays& arrays_;
    std::size_t width_;
};

struct Texts {
    std::size_t count, length;
    Ids ids, mask;
};

// Some with padding behind them, or a hole.
Texts texts(std::size_t most_tokens) {
    Texts made{drawn(1, 4), 0, {}, {}};
    made.length = drawn(1, std::min(POSITIONS, most_tokens / made.count));
    for (std::size_t i = 0; i < made.count * made.length; ++i) {
        made.ids.push_back(static_cast<std::int64_t>(drawn(0, WORDS - 1)));
        made.mask.push_back(i % made.length == 0 || drawn(0, 3) ? 1 : 0);
    }
    return made;
}

// The largest difference; infinite where either is not a number, or padding is not 0.
double gap(const Texts& given, const Floats& found, const Reference& reference, std::size_t embed_dim) {
    double most = found.size() == given.count * given.length * embed_dim ? 0 : HUGE_VAL;
    for (std::size_t text = 0; text < given.count; ++text) {
        Ids ids;
        std::vector<std::size_t> places;
        for (std::size_t i = 0; i < given.length; ++i)
            if (given.mask[text * given.length + i]) {
                ids.push_back(given.ids[text * given.length + i]);
                places.push_back(i);
            }
        const Rows expected = reference.encode(ids, places);
        for (std::size_t place = 0, row = 0; place < given.length; ++place) {
            const bool seen = given.mask[text * given.length + place];
            for (std::size_t i = 0; i < embed_dim; ++i) {
                const double value = found[(text * given.length + place) * embed_dim + i],
                             each = seen    ? std::fabs(value - expected[row][i])
                                    : value ? HUGE_VAL
                                            : 0;
                most = each <= most ? most : std::isnan(each) ? HUGE_VAL : each;
            }
            row += seen;
        }
    }
    return most;
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 12;
    int failures = 0;
    const auto check = [&](bool right, const std::string& what) {
        if (right) return;
        std::fprintf(stderr, "FAILED %s\n", what.c_str());
        ++failures;
    };
    const std::vector<std::string> sets = uniecs::supported_row_kernels();
    for (int round = 0; round < rounds; ++round) {
        const std::size_t width = 32 * drawn(1, 2), dim = width * drawn(1, 3), embed_dim = 32 * drawn(1, 3);
        const NamedArrays arrays = network(dim, 32 * drawn(1, 6), embed_dim, drawn(1, 3), round % 2);
        const auto find = [&](const std::string& name) {
            const auto found = arrays.find(name);
            return found == arrays.end() ? std::nullopt : std::optional(found->second);
        };
        const Reference reference(arrays, width);
        for (const std::string& set : sets)
            for (unsigned threads : {1u, 2u, 5u}) {
                const BertEncoder encoder(find, width, EPSILON, std::make_shared<uniecs::Crew>(threads), set);
                const std::string name = set + ", " + std::to_string(threads) + " threads";
                check(encoder.embed_dim() == embed_dim, name + ": embed_dim");
                for (int i = 0; i < 4; ++i) {
                    const Texts given = texts(encoder.max_tokens());
                    Floats found;
                    check(
                        encoder.encode(given.ids.data(), given.mask.data(), given.count, given.length, found),
                        name + ": not taken");
                    const double most = gap(given, found, reference, embed_dim);
                    check(most < 2e-4, name + ": off by " + std::to_string(most));
                    found[0] += 1e-3f;
                    check(gap(given, found, reference, embed_dim) > 5e-4, "a wrong token goes unseen");
                }
                const Texts given = texts(encoder.max_tokens());
                Floats alone;
                encoder.encode(given.ids.data(), given.mask.data(), given.count, given.length, alone);
                std::vector<Floats> together(6);
                std::vector<std::thread> callers;
                for (Floats& each : together)
                    callers.emplace_back([&] {
                        for (int i = 0; i < 5; ++i)
                            encoder.encode(given.ids.data(), given.mask.data(), given.count, given.length,
                                           each);
                    });
                for (std::thread& each : callers) each.join();
                for (const Floats& each : together) check(each == alone, name + ": callers differ");
            }
    }
    std::printf("%s, %zu sets of instructions\n", failures ? "failed" : "passed", sets.size());
    return failures ? 1 : 0;
}
