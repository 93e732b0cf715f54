// Search an index folder: search INDEX BUNDLE TEXT [PHOTO [WHERE]]; an empty TEXT or PHOTO is none.
#include <cstdio>

#include "uniecs/uniecs.hpp"

int main(int argc, char** argv) {
    if (argc < 4) {
        std::fprintf(stderr, "usage: search INDEX BUNDLE TEXT [PHOTO [WHERE]]\n");
        return 2;
    }
    try {
        const auto encoder = uniecs::Encoder::load(argv[2]);
        const auto engine = uniecs::SearchEngine::open(argv[1], encoder);
        uniecs::Item query;
        if (*argv[3]) query.text = argv[3];
        if (argc > 4 && *argv[4]) query.image = uniecs::Image::file(argv[4]);
        uniecs::QueryOptions options;
        if (argc > 5) options.where = argv[5];
        for (const uniecs::Hit& hit : engine.search(query, options))
            std::printf("%.4f  %s  %s\n", static_cast<double>(hit.score), hit.id.c_str(),
                        hit.product.title.value_or("").c_str());
    } catch (const uniecs::Error& error) {
        std::fprintf(stderr, "search: %s\n", error.what());
        return 1;
    }
}
