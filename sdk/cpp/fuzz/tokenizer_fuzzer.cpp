// libFuzzer: any bytes as tokenizer.json, and any bytes as a text.
//
//   CXX=clang++ cmake -S sdk/cpp -B build-fuzz -DUNIECS_FUZZ=ON && cmake --build build-fuzz
//   build-fuzz/tokenizer_fuzzer -max_total_time=900 -dict=sdk/cpp/fuzz/tokenizer.dict NEW
//   sdk/cpp/fuzz/corpus/tokenizer
//
// An input is a tokenizer.json, a byte FF, which no UTF-8 holds, and a text. An input without FF is a text
// for a tokenizer of BERT's kind. Either the input is refused with uniecs::Error, or the ids keep what is
// promised of them.
#include <cstdlib>
#include <string>

#include "../src/json.hpp"
#include "../src/tokenizer.hpp"

namespace {

constexpr std::size_t MAX_TOKENS = 16;

std::string small_tokenizer() {
    std::string vocab = R"("[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,"[MASK]":4,"dress":5,"##es":6)";
    for (int c = 33, id = 7; c < 127; ++c) {
        const std::string letter(1, static_cast<char>(c));
        vocab += "," + uniecs::json::quoted(letter) + ":" + std::to_string(id++);
        vocab += "," + uniecs::json::quoted("##" + letter) + ":" + std::to_string(id++);
    }
    const auto special = [](const char* content, int id) {
        return "{\"id\":" + std::to_string(id) + ",\"content\":\"" + content +
               R"(","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true})";
    };
    return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)" + special("[CLS]", 2) +
           "," + special("[SEP]", 3) +
           R"(],"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,)"
           R"("strip_accents":null,"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},)"
           R"("post_processor":{"type":"BertProcessing","sep":["[SEP]",3],"cls":["[CLS]",2]},"decoder":null,)"
           R"("model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",)"
           R"("max_input_chars_per_word":100,"vocab":{)" +
           vocab + "}}}";
}

void require(bool holds) {
    if (!holds) std::abort();
}

void encode(const uniecs::Tokenizer& tokenizer, std::string_view text) {
    const auto ids = tokenizer.encode(text);
    require(ids.size() <= MAX_TOKENS);
    require(ids == tokenizer.encode(text));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
    static const uniecs::Tokenizer usual(small_tokenizer(), MAX_TOKENS);
    const std::string_view input(reinterpret_cast<const char*>(data), size);
    const std::size_t end = input.find('\xff');
    try {
        if (end == std::string_view::npos)
            encode(usual, input);
        else
            encode(uniecs::Tokenizer(input.substr(0, end), MAX_TOKENS), input.substr(end + 1));
    } catch (const uniecs::Error&) {
    }
    return 0;
}
