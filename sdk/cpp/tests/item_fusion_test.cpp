// The row kernels of every set of instructions against sums in double, on random sizes; and whole items,
// alike with all of them.
#include "../src/item_fusion.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <thread>

#include "../src/crew.hpp"
#include "../src/row_kernels.hpp"

namespace {

using Floats = std::vector<float>;

std::mt19937 random_bits(7);

std::size_t drawn(std::size_t least, std::size_t most) {
    return std::uniform_int_distribution<std::size_t>(least, most)(random_bits);
}

Floats normal(std::size_t size, float scale = 1) {
    Floats made(size);
    for (float& each : made) each = std::normal_distribution<float>(0, scale)(random_bits);
    return made;
}

// The largest difference; infinite where either is not a number.
double gap(const Floats& found, const Floats& expected) {
    double most = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const double each = std::fabs(static_cast<double>(found[i]) - expected[i]);
        most = each <= most ? most : std::isnan(each) ? HUGE_VAL : each;
    }
    return most;
}

Floats attention(const Floats& q, const Floats& kv, std::size_t rows, std::size_t others, std::size_t heads,
                 std::size_t width) {
    const std::size_t dim = heads * width;
    Floats made(rows * dim);
    for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t head = 0; head < heads; ++head) {
            std::vector<double> weights(others);
            double total = 0;
            for (std::size_t other = 0; other < others; ++other) {
                double score = 0;
                for (std::size_t i = head * width; i < (head + 1) * width; ++i)
                    score += static_cast<double>(q[row * dim + i]) * kv[other * 2 * dim + i];
                total += weights[other] = std::exp(score / std::sqrt(static_cast<double>(width)));
            }
            for (std::size_t i = head * width; i < (head + 1) * width; ++i) {
                double sum = 0;
                for (std::size_t other = 0; other < others; ++other)
                    sum += weights[other] / total * kv[(other * 2 + 1) * dim + i];
                made[row * dim + i] = static_cast<float>(sum);
            }
        }
    return made;
}

uniecs::NamedArrays network(std::size_t dim, std::size_t hidden, std::size_t blocks) {
    uniecs::NamedArrays made;
    const auto add = [&](const std::string& name, std::size_t rows, std::size_t columns) {
        made[name] = {rows, columns, normal(rows * columns, rows > 2 ? 0.2f : 0.5f)};
    };
    const auto linear = [&](const std::string& name, std::size_t rows, std::size_t columns) {
        add(name + ".weight", rows, columns);
        add(name + ".bias", 1, columns);
    };
    const auto attend = [&](const std::string& name) {
        linear(name + ".q", dim, dim);
        linear(name + ".kv", dim, 2 * dim);
        linear(name + ".out", dim, dim);
    };
    const auto block = [&](const std::string& name) {
        linear(name + ".norm1", 1, dim);
        linear(name + ".norm2", 1, dim);
        attend(name + ".attention");
        linear(name + ".mlp.0", dim, hidden);
        linear(name + ".mlp.2", hidden, dim);
    };
    for (const std::string side : {"image_sides.0", "text_sides.0"}) {
        attend(side + ".cross_attention");
        linear(side + ".norm", 1, dim);
        linear(side + ".gate.linear", 2 * dim, dim);
        add(side + ".gate.present", 1, dim);
        block(side + ".block");
    }
    for (std::size_t i = 0; i < blocks; ++i) block("blocks." + std::to_string(i));
    add("modality_embedding", 2, dim);
    linear("norm", 1, dim);
    linear("head", dim, dim);
    return made;
}

// So many times the same item.
Floats embedded(const uniecs::ItemFusion& fusion, const Floats& image, const Floats& text,
                std::size_t times = 1) {
    const std::size_t dim = fusion.embed_dim();
    Floats made(times * dim);
    const uniecs::ItemFusion::Item item{{image.data(), image.size() / dim}, {text.data(), text.size() / dim}};
    fusion.embed(std::vector(times, item), made.data());
    return made;
}

std::shared_ptr<uniecs::Crew> crew(std::size_t threads) { return std::make_shared<uniecs::Crew>(threads); }

}  // namespace

int main() {
    int failures = 0;
    const auto check = [&](double error, double most, const std::string& what) {
        if (error <= most) return;
        std::fprintf(stderr, "FAILED %s: %g\n", what.c_str(), error);
        ++failures;
    };
    const std::vector<std::string> sets = uniecs::supported_row_kernels();
    for (int round = 0; round < 60; ++round) {
        const std::size_t rows = drawn(1, 40), depth = drawn(1, 90), columns = drawn(1, 100);
        Floats x = normal(rows * depth), weights = normal(depth * columns), bias = normal(columns);
        if (round % 2)
            for (float& each : weights) each = std::round(each * 64) / 64;  // float16 holds these
        const uniecs::Matrix matrix(weights.data(), depth, columns);
        const std::size_t padded = matrix.all().count;
        bias.resize(padded);
        Floats product(rows * padded);
        for (std::size_t row = 0; row < rows; ++row)
            for (std::size_t column = 0; column < padded; ++column) {
                double sum = bias[column];
                for (std::size_t k = 0; k < depth && column < columns; ++k)
                    sum += static_cast<double>(x[row * depth + k]) * weights[k * columns + column];
                product[row * padded + column] = static_cast<float>(sum);
            }
        const std::size_t heads = drawn(1, 4), width = 32 * drawn(1, 2), others = drawn(1, 70);
        const Floats q = normal(rows * heads * width), kv = normal(others * 2 * heads * width);
        const Floats attended = attention(q, kv, rows, others, heads, width);
        Floats gelu = normal(256, 3), activated(256);
        std::transform(gelu.begin(), gelu.end(), activated.begin(), [](double each) {
            return static_cast<float>(each * std::erfc(-each / std::sqrt(2.0)) / 2);
        });
        for (const std::string& name : sets) {
            const uniecs::RowKernels& run = *uniecs::row_kernels(name);
            Floats found(rows * padded, NAN), apart(rows * (padded + 5), 7);
            run.product(x.data(), rows, matrix.all(), bias.data(), found.data(), padded);
            check(gap(found, product), 2e-5, name + " product");
            run.product(x.data(), rows, matrix.all(), bias.data(), apart.data(), padded + 5);
            for (std::size_t row = 0; row < rows; ++row) {
                const auto at = apart.begin() + static_cast<std::ptrdiff_t>(row * (padded + 5));
                const bool same = std::equal(at, at + static_cast<std::ptrdiff_t>(padded),
                                             found.begin() + static_cast<std::ptrdiff_t>(row * padded));
                check(same && std::count(at + static_cast<std::ptrdiff_t>(padded),
                                         at + static_cast<std::ptrdiff_t>(padded + 5), 7) == 5
                          ? 0
                          : 1,
                      0, name + " rows apart");
            }
            Floats room(uniecs::attention_scratch(rows, others, width)), out(rows * heads * width, NAN);
            run.attention({q.data(), heads * width, rows},
                          {kv.data(), kv.data() + heads * width, 2 * heads * width, others}, heads, width,
                          room.data(), out.data(), heads * width);
            check(gap(out, attended), 1e-5, name + " attention");
            Floats some = gelu;
            run.gelu(some.data(), some.size());
            check(gap(some, activated), 2e-6, name + " gelu");
            if (round == 0) {
                found[0] += 1e-3f;
                if (gap(found, product) < 5e-4) check(1, 0, "a wrong sum goes unseen");
            }
        }
        const std::size_t blocks = drawn(1, 3), hidden = 32 * drawn(1, 5);
        const auto arrays = network(heads * width, hidden, blocks);
        const Floats image = normal(drawn(0, 60) * heads * width),
                     text = normal(drawn(image.empty() ? 1 : 0, 20) * heads * width);
        std::vector<Floats> embeddings;
        for (const std::string& name : sets)
            embeddings.push_back(embedded(uniecs::ItemFusion(arrays, heads, crew(1), name), image, text));
        for (const Floats& each : embeddings) check(gap(each, embeddings.front()), 2e-5, "sets differ");
        if (sets.empty()) continue;
        // By themselves, or each by some threads.
        for (std::size_t threads : {2, 5})
            for (std::size_t times : {1, 3}) {
                Floats expected;
                for (std::size_t i = 0; i < times; ++i)
                    expected.insert(expected.end(), embeddings.front().begin(), embeddings.front().end());
                const uniecs::ItemFusion fusion(arrays, heads, crew(threads));
                check(gap(embedded(fusion, image, text, times), expected), 0, "threads differ");
            }
        if (round >= 5) continue;
        const uniecs::ItemFusion fusion(arrays, heads, crew(3));
        std::vector<Floats> found(12);  // more callers than rooms are kept
        std::vector<std::thread> callers;
        for (Floats& each : found) callers.emplace_back([&] { each = embedded(fusion, image, text); });
        for (std::thread& each : callers) each.join();
        for (const Floats& each : found) check(gap(each, embeddings.front()), 0, "callers differ");
    }
    std::printf("%s, %zu sets of instructions\n", failures ? "failed" : "passed", sets.size());
    return failures ? 1 : 0;
}
