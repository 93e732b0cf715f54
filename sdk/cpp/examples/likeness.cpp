// How well texts fit a photo: likeness BUNDLE PHOTO TEXT...
#include <cstdio>
#include <numeric>

#include "uniecs/uniecs.hpp"

int main(int argc, char** argv) {
    if (argc < 4) {
        std::fprintf(stderr, "usage: likeness BUNDLE PHOTO TEXT...\n");
        return 2;
    }
    try {
        const uniecs::Encoder encoder = uniecs::Encoder::load(argv[1]);
        std::vector<uniecs::Item> items{{{}, uniecs::Image::file(argv[2])}};
        for (int i = 3; i < argc; ++i) items.push_back({argv[i], {}});
        const std::vector<float> x = encoder.encode(items);
        const std::size_t dim = encoder.embed_dim();
        for (int i = 3; i < argc; ++i)
            std::printf("%.4f  %s\n",
                        std::inner_product(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(dim),
                                           x.begin() + static_cast<std::ptrdiff_t>(dim * (i - 2)), 0.0f),
                        argv[i]);
    } catch (const uniecs::Error& error) {
        std::fprintf(stderr, "likeness: %s\n", error.what());
        return 1;
    }
}
